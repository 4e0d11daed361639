"""The golden-score gate: before a run, every evaluator must reproduce stored scores of clips made by a formula.

See "Gates" in docs/explanation/protocol.md; the result is `gates["golden_scores"]` of the run's record. The clips are
integer formulas of frame, row and column: no random number, no file. The expected scores are stored in the
checkpoint's folder as `golden_scores.json`, by `bench nano golden` and `bench check EVALUATOR --write-golden`. That
file changes no number of a run, so neither the manifest of the checkpoint nor the digest of a run covers it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from bench import store
from bench.api import Evaluator
from bench.core.errors import BenchError
from bench.core.hashing import GOLDEN, digest
from bench.core.provenance import package_versions
from bench.suite.paths import resolve_parameters
from bench.suite.prepared import PreparedSuite

GATE = "golden_scores"
"""Name of the gate in records."""
TOLERANCES: dict[str, tuple[float, str]] = {
    "float32": (
        1e-5,
        "five times 1.8e-6, the largest difference of the nano scorers between batches and single clips, one and two "
        "threads, and the AVX-512, AVX2 and scalar kernels of one CPU",
    ),
    "bfloat16": (0.06, "twice 0.031, the largest such difference in bfloat16, whose step is 0.4 to 0.8 % of a value"),
}
"""Largest |score - expected| / max(1, |expected|) by dtype, with the measurement behind it."""
NAMES_ONLY = ("checkpoint",)
"""Keys of a fingerprint that change no score: the name of the checkpoint's folder."""
REWRITE = "`bench check EVALUATOR --params ... --write-golden` (for the nano checkpoints `bench nano golden`)"
"""The commands that write golden scores, for error messages."""

Scores = dict[str, dict[str, float]]
"""Clip to metric to value."""


class Clip(NamedTuple):
    """One test video; `paint(t, y, x)` gives its three channels as integers, which are taken modulo 256."""

    name: str
    prompt: str
    size: tuple[int, int, int]
    """Frames, height, width."""
    fps: float
    paint: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

    def levels(self) -> UInt8[Tensor, "3 f h w"]:
        """The pixels as integers, 0 to 255."""
        axes = torch.meshgrid(*(torch.arange(n) for n in self.size), indexing="ij")
        return torch.stack(torch.broadcast_tensors(*self.paint(*axes), axes[0])[:3]).remainder(256).to(torch.uint8)

    def pixels(self) -> Float[Tensor, "3 f h w"]:
        """In [0, 1]."""
        return self.levels().float() / 255


def _ramp(t: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return 16 * x + 8 * t, 12 * y - 5 * t + 64, 9 * (x + y) + 3 * t


def _square(t: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A red square that bounces between the left and the right border, two pixels per frame."""
    side, room = 5, int(x.max()) - 4
    left, top = room - (2 * t % (2 * room) - room).abs(), int(y.max()) // 3
    inside = ((x >= left) & (x < left + side) & (y >= top) & (y < top + side)).long()
    return 20 + 215 * inside, 20 + 21 * inside, 20 + 16 * inside


def _still(t: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A blue cone that does not move."""
    height = (255 - 6 * ((2 * x - x.max()) ** 2 + (2 * y - y.max()) ** 2)).clamp(min=0)
    return 20 + height // 8, 20 + height // 4, 20 + 235 * height // 255


def _texture(t: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quadratic residues of a prime, which look like noise."""
    seed = (x * x * 7 + y * y * 13 + x * y * 31 + t * (x + 3 * y + 29)) % 251
    return seed * seed % 251, seed * (seed + 97) % 241, seed * seed * 3 % 239


def _flicker(t: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slanted checks that swap their colours, at a varying speed.

    There are no flat areas: enlarged, they would lie halfway between two levels, and rounding would be arbitrary.
    """
    even, slant = (x // 4 + y // 4 + t * t // 5) % 2, (3 * x + 5 * y + t) % 17
    return 30 + 199 * even + slant, 220 - 181 * even - slant, 90 + 10 * (t % 13) + slant


CLIPS = (
    Clip("ramp", "a green square moving right quickly", (13, 16, 16), 8.0, _ramp),
    Clip("square", "a red square moving left slowly", (13, 16, 16), 8.0, _square),
    Clip("still", "a blue circle moving up slowly", (13, 16, 16), 8.0, _still),
    Clip("wide ramp", "waves of many colours that drift to the upper left, evenly lit", (49, 48, 64), 24.0, _ramp),
    Clip("wide square", "a red square bounces", (49, 48, 64), 24.0, _square),
    Clip("wide texture", "television snow {no braces}, grey", (49, 48, 64), 24.0, _texture),
    Clip("tall flicker", "orange and blue checks flicker", (25, 40, 24), 12.0, _flicker),
)
"""Clips of one size are neighbours and are scored as one batch; the prompts of a batch differ in length."""


def formula_clips(evaluator: Evaluator) -> list[Clip]:
    """The clips of a size that the evaluator accepts."""
    return [clip for clip in CLIPS if evaluator.only_size in (None, clip.size)]


def clips_digest(clips: Sequence[Clip]) -> str:
    """Digest of the names, prompts, frame rates and pixels."""

    def content(clip: Clip) -> list[Any]:
        return [clip.name, clip.prompt, clip.fps, hashlib.sha256(clip.levels().numpy().tobytes()).hexdigest()]

    return digest([content(clip) for clip in clips])


def measure_golden(evaluator: Evaluator, alone: bool = False) -> Scores:
    """Scores of all clips, in batches of one size, or each clip `alone`."""
    scores: Scores = {}
    for _, group in groupby(formula_clips(evaluator), lambda clip: clip.name if alone else clip.size):
        batch = list(group)
        videos = torch.stack([clip.pixels() for clip in batch])
        metrics = evaluator.score(videos, [clip.prompt for clip in batch], batch[0].fps)
        for i, clip in enumerate(batch):
            scores[clip.name] = {metric: float(values[i]) for metric, values in metrics.items()}
    return scores


class GoldenScores(BaseModel):
    """`golden_scores.json`: the scores of the clips by one checkpoint with one set of constructor arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    fingerprint: dict[str, str]
    """Fingerprint of the evaluator that made the scores."""
    fingerprint_digest: str
    clips_digest: str
    dtype: str
    tolerance: float
    """Largest |score - expected| / max(1, |expected|)."""
    tolerance_reason: str
    packages: dict[str, str | None]
    """Versions that the scores were made with."""
    scores: Scores


def tolerance(evaluator: Evaluator) -> tuple[float, str]:
    """Tolerance and its reason for the dtype in the evaluator's fingerprint; without a dtype, those of float32."""
    dtype = evaluator.fingerprint().get("dtype", "float32")
    if dtype not in TOLERANCES:
        raise BenchError(
            f"evaluator {type(evaluator).__name__} has the dtype {dtype!r} in its fingerprint, for which no golden "
            f"tolerance is known: use one of {', '.join(TOLERANCES)}."
        )
    return evaluator.float32_spread if dtype == "float32" and evaluator.float32_spread else TOLERANCES[dtype]


def golden_path(evaluator: Evaluator, params: Mapping[str, Any]) -> Path | None:
    """Path of the golden scores: in the evaluator's own folder, else beside its `checkpoint`; None without either."""
    if evaluator.golden_folder is not None:
        return evaluator.golden_folder / GOLDEN
    if params.get("checkpoint") is None:
        return None
    checkpoint = Path(params["checkpoint"])
    return checkpoint / GOLDEN if checkpoint.is_dir() else checkpoint.with_name(f"{checkpoint.stem}.{GOLDEN}")


def farthest_score(scores: Scores, expected: Scores) -> tuple[float, str, str]:
    """Largest |score - expected| / max(1, |expected|), with its clip and metric."""
    return max(
        (abs(scores[clip][metric] - value) / max(1.0, abs(value)), clip, metric)
        for clip, values in expected.items()
        for metric, value in values.items()
    )


def write_golden(evaluator: Evaluator, path: Path) -> Path:
    """Score every clip alone and store the scores; scores that depend on batches or threads are refused."""
    expected, (limit, reason) = measure_golden(evaluator, alone=True), tolerance(evaluator)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            gap, clip, metric = farthest_score(measure_golden(evaluator), expected)
            if gap > limit:
                raise BenchError(
                    f"{metric} of golden clip {clip!r} changes by {gap:.3g} between a clip alone and {count}-threaded "
                    f"batches (tolerance {limit:g}), so no golden score can be written: make the scores independent "
                    "of the batch."
                )
    finally:
        torch.set_num_threads(threads)
    fingerprint = dict(evaluator.fingerprint())
    golden = GoldenScores(
        fingerprint=fingerprint,
        fingerprint_digest=digest(fingerprint),
        clips_digest=clips_digest(formula_clips(evaluator)),
        dtype=fingerprint.get("dtype", "float32"),
        tolerance=limit,
        tolerance_reason=reason,
        packages={name: version for name, version in package_versions().items() if version},
        scores=expected,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(path, golden.model_dump_json(indent=1) + "\n")
    return path


def read_golden(path: Path) -> GoldenScores:
    """The golden scores of a file, validated."""
    try:
        golden = GoldenScores.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = f"{error.errors()[0]['msg']}" if isinstance(error, ValidationError) else error.strerror
        raise BenchError(
            f"golden scores {path} cannot be read ({reason}): restore the file, or write it again."
        ) from None
    if not golden.scores or digest(golden.fingerprint) != golden.fingerprint_digest:
        raise BenchError(f"golden scores {path} were edited or are empty: restore the file, or write it again.")
    return golden


def check_golden(name: str, evaluator: Evaluator, path: Path | None) -> dict[str, Any]:
    """The gate's entry for one evaluator; raises `BenchError` if a score is not reproduced.

    `passed` is None, with a reason, if no scores are stored for this evaluator's settings.
    """
    if path is None or not path.is_file():
        return {"passed": None, "not_available": f"the checkpoint has no {GOLDEN}"}
    golden = read_golden(path)
    key = _first_difference(golden.fingerprint, evaluator.fingerprint())
    if key and key.startswith("sha256"):
        raise BenchError(
            f"evaluator {name}: the golden scores {path} were made with other files ({key} differs): restore the "
            f"checkpoint, or, if the new files are intended, write the scores again with {REWRITE}."
        )
    if key:
        return {"passed": None, "not_available": f"golden scores are stored for another {key}"}
    if golden.clips_digest != clips_digest(formula_clips(evaluator)) or golden.scores.keys() != {
        clip.name for clip in formula_clips(evaluator)
    }:
        raise BenchError(f"golden scores {path} were made with other clips: write them again with {REWRITE}.")
    return _compare(name, measure_golden(evaluator), golden, path)


def _compare(name: str, scores: Scores, golden: GoldenScores, path: Path) -> dict[str, Any]:
    """The gate's entry of an evaluator with these scores."""
    for clip, values in golden.scores.items():
        if scores[clip].keys() != values.keys():
            raise BenchError(
                f"evaluator {name} gives {', '.join(scores[clip])} on golden clip {clip!r}, but {path} has "
                f"{', '.join(values)}: install the versions of requirements.lock, or write it again with {REWRITE}."
            )
    gap, clip, metric = farthest_score(scores, golden.scores)
    if not gap <= golden.tolerance:
        raise BenchError(
            f"evaluator {name} does not reproduce its golden scores: {metric} of clip {clip!r} is "
            f"{scores[clip][metric]:.7g}, expected {golden.scores[clip][metric]:.7g} within {golden.tolerance:g} "
            f"x max(1, |expected|) ({path}); nothing was trained. Install the versions of requirements.lock and undo "
            f"changes of the evaluator, or, if the change is intended, write them again with {REWRITE}."
        )
    return {"passed": True, "clips": len(golden.scores), "largest": gap, "tolerance": golden.tolerance}


def _first_difference(left: Mapping[str, str], right: Mapping[str, str]) -> str | None:
    """The first key in which two fingerprints differ, hashes first."""
    keys = sorted(left.keys() | right.keys(), key=lambda key: (not key.startswith("sha256"), key))
    return next((key for key in keys if key not in NAMES_ONLY and left.get(key) != right.get(key)), None)


def golden_gate(prepared: PreparedSuite, evaluators: Mapping[str, Evaluator]) -> dict[str, Any]:
    """The golden-score gate of a run; `passed` is None if an evaluator has no golden scores."""
    entries = {}
    for name, evaluator in evaluators.items():
        params = resolve_parameters(prepared.suite.evaluator_params.get(name, {}))
        entries[name] = check_golden(name, evaluator, golden_path(evaluator, params))
    passed = True if all(entry["passed"] for entry in entries.values()) else None
    return {"passed": passed, "evaluators": entries}
