"""Files of `bench score`: `scores.partial.jsonl` while it runs, then `scores.parquet` and `scores.json`.

The partial file holds one line per evaluator (its identity) and one per scored video, prompt and evaluator. Lines are
only appended, and the file is not deleted at the end: a second call reuses its scores.
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
from bench.score.videos import VideoPrompt
from bench.suite.difference import first_difference

LAYOUT = "bench score 2"
"""First line of a partial file; a file with another layout is an error."""

COLUMNS = {
    "video": "string",
    "prompt": "string",
    "evaluator": "string",
    "metric": "string",
    "value": "float64",
    "status": "string",
    "error": "string",
    "frames": "int64",
    "fps": "float64",
    "height": "int64",
    "width": "int64",
    "prompt_truncated": "bool",
    "note": "string",
    "sha256": "string",
}
"""Columns of the parquet file to their Arrow types."""


@dataclass(frozen=True)
class Result:
    """One evaluator's scores of one video with one prompt, or the error."""

    sha256: str | None = None
    """sha256 of the video file; None if it cannot be read."""
    shape: tuple[int, float, int, int] | None = None
    """Frames, frames per second, height and width in pixels; None if the video was not decoded."""
    scores: Mapping[str, float] | None = None
    """Metric to score; None if there is an error."""
    error: str | None = None
    """One sentence; None for a scored video."""
    truncated: bool | None = None
    """Whether the evaluator cut the prompt; None if it does not report it."""
    token_limit: int | None = None
    """Number of tokens that the evaluator reads at most; None if it does not report it."""
    notes: tuple[str, ...] = ()
    """What the reader of the video file noted."""


class PartialScores:
    """The partial file of one `--out`, and the rows of the table that an earlier call wrote there."""

    def __init__(self, out: Path, overwrite: bool = False):
        """Read the scores of an earlier call with the same `out`, or delete them with `overwrite`."""
        if out.suffix != ".parquet":
            raise BenchError(f"--out {out} does not end in .parquet: name a file such as scores.parquet.")
        self.out, self.partial = out, out.with_suffix(".partial.jsonl")
        if overwrite:
            self.partial.unlink(missing_ok=True)
        elif out.exists() and not self.partial.exists():
            raise BenchError(
                f"{out} exists without {self.partial.name} beside it, so it cannot be resumed: name another --out, "
                "or replace it with --overwrite."
            )
        lines = self._read()
        self.identities = {line["evaluator"]: line["identity"] for line in lines if "identity" in line}
        self.done = {
            (line["sha256"], line["prompt"], line["evaluator"]): Result(
                line["sha256"],
                tuple(line["shape"]),
                line["scores"],
                truncated=line["truncated"],
                token_limit=line["token_limit"],
                notes=tuple(line["notes"]),
            )
            for line in lines
            if "scores" in line
        }
        self.rows = self._read_table() if lines and out.exists() else []
        if not lines:
            store.append_line(self.partial, {"layout": LAYOUT})

    def _read(self) -> list[dict[str, Any]]:
        fix = "name another --out, or start again with --overwrite."
        try:
            lines = store.read_lines(self.partial)
        except BenchError as error:
            raise BenchError(f"{self.partial} has a line that is not JSON: {fix}") from error
        if self.partial.exists() and self.partial.stat().st_size and lines[:1] != [{"layout": LAYOUT}]:
            if not lines:  # half a first line, because the process was killed
                return []
            raise BenchError(f"{self.partial} is not a list of partial scores of this version: {fix}")
        return lines

    def _read_table(self) -> list[dict[str, Any]]:
        """Rows of the table by the evaluators of the partial file; those of others are of another version."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(self.out)
            identities = json.loads(table.schema.metadata[b"bench.score"])["evaluators"]
            rows: list[dict[str, Any]] = table.select([*COLUMNS]).to_pylist()
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise BenchError(
                f"{self.out} is not a table of bench score: name another --out, or replace it with --overwrite."
            ) from error
        known = {name for name, identity in self.identities.items() if identities.get(name) == identity}
        return [row for row in rows if row["evaluator"] in known]

    def other_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows of earlier calls, but for the videos that an evaluator has scored again in `rows`."""
        again = {(row["video"], row["evaluator"]) for row in rows}
        return [row for row in self.rows if (row["video"], row["evaluator"]) not in again]

    def register(self, name: str, identity: Mapping[str, Any]) -> None:
        """Store the identity of an evaluator; a stored one that differs is an error."""
        stored = self.identities.get(name)
        if stored is None:
            store.append_line(self.partial, {"evaluator": name, "identity": identity})
            self.identities[name] = dict(identity)
        elif stored != identity:
            change = first_difference(stored, identity) or "a part of it was dropped"
            raise BenchError(
                f"{self.partial} holds scores of another {name!r}: {change}. Name another --out, or score all videos "
                "again with --overwrite."
            )

    def add(self, item: VideoPrompt, name: str, result: Result) -> None:
        """Write one evaluator's scores of a video to the partial file."""
        assert result.scores is not None
        assert result.shape is not None
        line: dict[str, Any] = {
            "video": storable(item.video),
            "sha256": result.sha256,
            "prompt": item.prompt,
            "evaluator": name,
        }
        line |= {"shape": list(result.shape), "scores": result.scores, "notes": list(result.notes)}
        line |= {"truncated": result.truncated, "token_limit": result.token_limit}
        store.append_line(self.partial, line)
        self.done[str(result.sha256), str(item.prompt), name] = result


def score_rows(
    items: Sequence[VideoPrompt],
    metrics: Mapping[str, Sequence[str]],
    results: Mapping[tuple[VideoPrompt, str], Result],
) -> list[dict[str, Any]]:
    """One row per video, prompt and metric, in the order of the videos; a failed one has a null value.

    `metrics`: evaluator to its metrics.
    """
    rows = []
    for item in items:
        for name, names in metrics.items():
            result = results[item, name]
            frames, fps, height, width = result.shape or (None, None, None, None)
            common = {
                "video": storable(item.video),
                "prompt": storable(item.prompt),
                "evaluator": name,
                "status": "ok" if result.error is None else "error",
                "error": storable(result.error),
                **{"frames": frames, "fps": fps, "height": height, "width": width},
                "prompt_truncated": result.truncated,
                "note": "; ".join(result.notes) or None,
                "sha256": result.sha256,
            }
            for metric in names:
                value = None if result.scores is None else result.scores[metric]
                rows.append({**common, "metric": metric, "value": value})
    return rows


def storable(text: str | None) -> str | None:
    """The text with `\\ud83d` for half a surrogate pair: names of files and prompts may hold one, UTF-8 cannot."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def prompt_notes(results: Mapping[tuple[VideoPrompt, str], Result]) -> list[str]:
    """One line per evaluator that cut prompts."""
    prompts: dict[str, dict[str | None, bool]] = {}
    limits: dict[str, int | None] = {}
    for (item, name), result in results.items():
        if result.truncated is not None:
            prompts.setdefault(name, {})[item.prompt] = result.truncated
            limits[name] = result.token_limit
    return [
        f"{name} cut {sum(cut.values())} of {len(cut)} prompts at {limits[name] or 'its number of'} tokens"
        for name, cut in prompts.items()
        if any(cut.values())
    ]


def video_notes(results: Mapping[tuple[VideoPrompt, str], Result]) -> list[str]:
    """One line per note of the reader: the number of videos, and the first of them."""
    videos: dict[str, dict[str, None]] = {}
    for (item, _), result in results.items():
        for note in result.notes:
            videos.setdefault(note, {})[item.video] = None
    return [f"{len(names)} video(s), first {next(iter(names))}: {note}" for note, names in videos.items()]


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per metric: numbers of scored and of failed videos, and mean, sample std, min and max over the scored ones.

    `truncated`: number of scores with a prompt that the evaluator cut; None if it does not report it.
    """
    groups: dict[tuple[str, str], list[float | None]] = {}
    cuts: dict[tuple[str, str], list[bool]] = {}
    for row in rows:
        key = row["evaluator"], row["metric"]
        groups.setdefault(key, []).append(row["value"])
        cuts.setdefault(key, []).extend([] if row["prompt_truncated"] is None else [row["prompt_truncated"]])
    lines = []
    for (name, metric), values in groups.items():
        cut = cuts[name, metric]
        scores = np.array([value for value in values if value is not None], dtype=np.float64)
        n = len(scores)
        lines.append(
            {
                "evaluator": name,
                "metric": metric,
                "n": n,
                "failed": len(values) - n,
                "mean": float(scores.mean()) if n > 0 else None,
                "std": float(scores.std(ddof=1)) if n > 1 else None,
                "min": float(scores.min()) if n > 0 else None,
                "max": float(scores.max()) if n > 0 else None,
                "truncated": sum(cut) if cut else None,
            }
        )
    return lines


def score_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The summary as text, 4 significant digits."""
    from tabulate import tabulate

    def format_value(value: Any) -> Any:
        return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else value

    text = [{key: format_value(value) for key, value in line.items()} for line in lines]
    numbers = ["left", "left", *["right"] * 7]
    return str(tabulate(text, headers="keys", tablefmt="github", disable_numparse=True, colalign=numbers))


def write_scores(
    out: Path,
    rows: Sequence[Mapping[str, Any]],
    identities: Mapping[str, Any],
    summary: Sequence[Any],
    notes: Sequence[str],
) -> Path:
    """Write `out`, with the identities in its schema metadata, and a JSON file of the summary; returns the latter."""
    origin = {"made_by": f"bench score {__version__}", "evaluators": identities}
    store.replace_atomically(out, lambda path: _write_parquet(rows, origin, path))
    summary_file = out.with_suffix(".json")
    failed = sum(row["status"] == "error" for row in rows)
    content = {**origin, "scores": out.name, "rows": len(rows), "failed_rows": failed, "summary": list(summary)}
    content |= {"notes": [storable(note) for note in notes], "hardware": hardware()}
    text = json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False)
    store.write_text(summary_file, text + "\n")
    return summary_file


def _write_parquet(rows: Sequence[Mapping[str, Any]], origin: Mapping[str, Any], path: Path) -> None:
    import pyarrow as pa

    fields = [pa.field(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()]
    schema = pa.schema(fields, metadata={"bench.score": json.dumps(plain(origin), ensure_ascii=False)})
    store.write_table(pa.table({name: [row[name] for row in rows] for name in COLUMNS}, schema=schema), path)


def first_non_finite(scores: Mapping[str, float]) -> str | None:
    """Name of the first metric that is not a finite number."""
    return next((metric for metric, value in scores.items() if not math.isfinite(value)), None)
