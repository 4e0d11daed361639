"""What a call of `bench score` leaves behind: `scores.partial.jsonl` while it runs, then `scores.parquet` and `.json`.

The partial file holds one line per evaluator (what identifies its numbers) and one per video, prompt and evaluator
that was scored. It is only ever appended to, and kept: a second call takes what it holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import __version__, store
from bench.core.errors import BenchError
from bench.core.hashing import plain
from bench.core.provenance import hardware
from bench.score.videos import Pair
from bench.suite.difference import first_difference

LAYOUT = "bench score 1"
"""First line of a partial file; another layout is refused."""

COLUMNS = ("video", "prompt", "evaluator", "metric", "value", "status", "error", "frames", "fps", "height", "width")


@dataclass(frozen=True)
class Result:
    """One evaluator's scores of one video with one prompt, or the error in their place."""

    sha256: str | None = None
    """Of the video file; None if it cannot be read."""
    shape: tuple[int, float, int, int] | None = None
    """Frames, frames per second, height and width in pixels; None if the video was not decoded."""
    scores: Mapping[str, float] | None = None
    error: str | None = None
    """One sentence; None for a scored video."""


class PartialScores:
    """The scores of one `--out`."""

    def __init__(self, out: Path, overwrite: bool = False):
        """Take up what an earlier call left at `out`, or with `overwrite` start anew."""
        if out.suffix != ".parquet":
            raise BenchError(f"--out {out} does not end in .parquet: name a file such as scores.parquet.")
        self.out, self.partial = out, out.with_suffix(".partial.jsonl")
        if overwrite:
            self.partial.unlink(missing_ok=True)
        elif out.exists() and not self.partial.exists():
            raise BenchError(
                f"{out} exists without {self.partial.name} beside it, so it cannot be taken up: name another --out, "
                "or replace it with --overwrite."
            )
        lines = self._read()
        self.identities = {line["evaluator"]: line["identity"] for line in lines if "identity" in line}
        self.done = {
            (line["sha256"], line["prompt"], line["evaluator"]): Result(
                line["sha256"], tuple(line["shape"]), line["scores"]
            )
            for line in lines
            if "scores" in line
        }
        if not lines:
            store.append_line(self.partial, {"layout": LAYOUT})

    def _read(self) -> list[dict[str, Any]]:
        mend = "name another --out, or start anew with --overwrite."
        try:
            lines = store.read_lines(self.partial)
        except BenchError as error:
            raise BenchError(f"{self.partial} has a line that is not JSON: {mend}") from error
        if self.partial.exists() and self.partial.stat().st_size and lines[:1] != [{"layout": LAYOUT}]:
            if not lines:  # half a first line, cut off by a kill
                return []
            raise BenchError(f"{self.partial} is no list of partial scores of this version: {mend}")
        return lines

    def claim(self, name: str, identity: Mapping[str, Any]) -> None:
        """Refuse scores that the evaluator of this name gave in another version, or note this one."""
        had = self.identities.get(name)
        if had is None:
            store.append_line(self.partial, {"evaluator": name, "identity": identity})
            self.identities[name] = dict(identity)
        elif had != identity:
            change = first_difference(had, identity) or "a part of it was dropped"
            raise BenchError(
                f"{self.partial} holds scores of another {name!r}: {change}. Name another --out, or score all videos "
                "anew with --overwrite."
            )

    def add(self, pair: Pair, name: str, result: Result) -> None:
        """Keep one evaluator's scores of a video, on the disk before the next are computed."""
        assert result.scores is not None
        assert result.shape is not None
        line = {"video": pair.video, "sha256": result.sha256, "prompt": pair.prompt, "evaluator": name}
        store.append_line(self.partial, {**line, "shape": list(result.shape), "scores": result.scores})
        self.done[str(result.sha256), str(pair.prompt), name] = result


# the finished files -------------------------------------------------------------------------------------------
def score_rows(
    pairs: Sequence[Pair], metrics: Mapping[str, Sequence[str]], results: Mapping[tuple[Pair, str], Result]
) -> list[dict[str, Any]]:
    """One row per video, prompt and metric, in the order of the videos; a failed one has a null value."""
    found = []
    for pair in pairs:
        for name, own in metrics.items():
            result = results[pair, name]
            frames, fps, height, width = result.shape or (None, None, None, None)
            for metric in own:
                value = None if result.scores is None else result.scores[metric]
                status = "ok" if result.error is None else "error"
                numbers = (value, status, result.error, frames, fps, height, width)
                row = dict(zip(COLUMNS, (pair.video, pair.prompt, name, metric, *numbers), strict=True))
                found.append({**row, "sha256": result.sha256})
    return found


def summarise(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per metric: videos scored, videos that failed, and mean, sample std, min and max over the scored ones."""
    groups: dict[tuple[str, str], list[float | None]] = {}
    for row in found:
        groups.setdefault((row["evaluator"], row["metric"]), []).append(row["value"])
    lines = []
    for (name, metric), values in groups.items():
        good = np.array([value for value in values if value is not None], dtype=np.float64)
        line: dict[str, Any] = {"evaluator": name, "metric": metric, "n": len(good), "failed": len(values) - len(good)}
        some = len(good) > 0
        line |= {
            "mean": float(good.mean()) if some else None,
            "std": float(good.std(ddof=1)) if len(good) > 1 else None,
            "min": float(good.min()) if some else None,
            "max": float(good.max()) if some else None,
        }
        lines.append(line)
    return lines


def score_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The summary as text, 4 significant digits."""
    from tabulate import tabulate

    def short(value: Any) -> Any:
        return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else value

    text = [{key: short(value) for key, value in line.items()} for line in lines]
    numbers = ["left", "left", *["right"] * 6]
    return str(tabulate(text, headers="keys", tablefmt="github", disable_numparse=True, colalign=numbers))


def write_scores(
    out: Path, found: Sequence[Mapping[str, Any]], identities: Mapping[str, Any], lines: Sequence[Any]
) -> Path:
    """`out` with the identities in its schema metadata, and the same with the summary as JSON; returns the JSON."""
    made = {"made_by": f"bench score {__version__}", "evaluators": identities}
    store.replace_atomically(out, lambda path: _write_parquet(found, made, path))
    beside = out.with_suffix(".json")
    failed = sum(row["status"] == "error" for row in found)
    content = {**made, "scores": out.name, "rows": len(found), "failed_rows": failed, "summary": list(lines)}
    text = json.dumps(plain({**content, "hardware": hardware()}), indent=1, ensure_ascii=False, allow_nan=False)
    store.write_text(beside, text + "\n")
    return beside


def _write_parquet(found: Sequence[Mapping[str, Any]], made: Mapping[str, Any], path: Path) -> None:
    import pyarrow as pa

    kinds = {"value": pa.float64(), "fps": pa.float64()} | dict.fromkeys(("frames", "height", "width"), pa.int64())
    names = (*COLUMNS, "sha256")
    fields = [pa.field(name, kinds.get(name, pa.string())) for name in names]
    schema = pa.schema(fields, metadata={"bench.score": json.dumps(plain(made), ensure_ascii=False)})
    store.write_table(pa.table({name: [row[name] for row in found] for name in names}, schema=schema), path)


def not_finite(scores: Mapping[str, float]) -> str | None:
    """Name of the first metric that is not a finite number."""
    return next((metric for metric, value in scores.items() if not math.isfinite(value)), None)
