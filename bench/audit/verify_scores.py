"""Relations between the stored scores of one video, which their definitions fix."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.audit.findings import StoredRun

if TYPE_CHECKING:
    import pandas as pd

    Column = pd.Series[float]

ROUNDING = 16 * 2.0**-23
"""Relative error of a score that a few operations in float32 computed, means over frames included."""
CLIPSCORE_WEIGHT = 2.5
"""w of Hessel et al. 2021, section 3: clipscore is the mean over frames of w max(cosine, 0)."""
SPREAD = 0.52
"""Largest difference of the cosines of one video's frames. Frames on both sides of 0 make clipscore larger than
w max(mean cosine, 0); about one of 400 stored videos of nano has such frames, at a mean cosine of up to 0.44, which
asks for a spread of at least 0.511."""
PICKSCORE_DIVISOR = 26.0
"""pickscore_div26 is pickscore in the unit of flow_grpo's logs."""


def check_scores(run: StoredRun) -> Iterator[str]:
    """Problems of scores that contradict each other."""
    if run.scores.empty:
        return
    table = run.scores.pivot(index=["prompt_index", "video"], columns=["evaluator", "metric"], values="value")
    for evaluator in table.columns.get_level_values(0).unique():
        scores: Mapping[str, Column] = {str(metric): column for metric, column in table[evaluator].items()}
        yield from _normalised(scores, run.record.evaluators.get(evaluator, {}))
        yield from _clipscore(scores)
        yield from _pickscore(scores)


def _normalised(scores: Mapping[str, Column], fingerprint: Mapping[str, Any]) -> Iterator[str]:
    """X = (X_raw - mean) / std with the constants of the evaluator's fingerprint; X = X_raw where it has none."""
    constants = normalisation(fingerprint)
    for axis in (name for name in scores if f"{name}_raw" in scores):
        raw, (mean, std) = scores[f"{axis}_raw"], constants.get(axis, (0.0, 1.0))
        expected = (raw - mean) / std
        slack = ROUNDING * ((raw.abs() + abs(mean)) / std + expected.abs())
        yield from _differing(axis, scores[axis], expected, slack, f"({axis}_raw - {mean}) / {std}")


def normalisation(fingerprint: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Axis to mean and standard deviation of its raw scores, as the fingerprint has them; {} where it has none."""
    try:
        constants = ast.literal_eval(str(fingerprint.get("normalised", False)))
        return {str(axis): (float(mean), float(std)) for axis, (mean, std) in constants.items()} if constants else {}
    except (ValueError, SyntaxError, TypeError, AttributeError):
        return {}


def _clipscore(scores: Mapping[str, Column]) -> Iterator[str]:
    if not {"clipscore", "clip_cosine"} <= scores.keys():
        return
    own, cosine = scores["clipscore"], scores["clip_cosine"]
    expected = CLIPSCORE_WEIGHT * cosine.clip(lower=0)
    # of all frames within SPREAD, those at both ends of an interval that 0 halves as the mean does raise it most
    highest = expected + CLIPSCORE_WEIGHT * (SPREAD - cosine.abs()).clip(lower=0) ** 2 / (4 * SPREAD)
    formula = f"{CLIPSCORE_WEIGHT} max(clip_cosine, 0)"
    yield from _differing("clipscore", own, own.clip(expected, highest), ROUNDING * (1 + expected), formula)


def _pickscore(scores: Mapping[str, Column]) -> Iterator[str]:
    if not {"pickscore", "pickscore_cosine"} <= scores.keys():
        return
    own, cosine = scores["pickscore"], scores["pickscore_cosine"]
    scale = pickscore_scale(own, cosine)
    slack = ROUNDING * (own.abs() + abs(scale))
    yield from _differing("pickscore", own, scale * cosine, slack, f"{scale:.6g} pickscore_cosine")
    if "pickscore_div26" in scores:
        formula = f"pickscore / {PICKSCORE_DIVISOR:g}"
        yield from _differing("pickscore_div26", scores["pickscore_div26"], own / PICKSCORE_DIVISOR, slack, formula)


def pickscore_scale(pickscore: Column, cosine: Column) -> float:
    """The logit scale, one constant of the model: from the video whose cosine is largest in size."""
    largest = int(np.argmax(cosine.abs().to_numpy()))
    return float(pickscore.iloc[largest] / cosine.iloc[largest]) if cosine.iloc[largest] else 0.0


def _differing(metric: str, own: Column, expected: Column, slack: Column, formula: str) -> Iterator[str]:
    gap = np.abs(own.to_numpy() - expected.to_numpy())
    off = gap > slack.to_numpy()
    if off.any():
        yield f"{metric} of {int(off.sum())} of {len(own)} videos is not {formula}, by up to {gap.max():.3g}"
