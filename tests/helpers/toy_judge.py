"""A stand-in for VideoAlign: normalised scores and the raw ones that they are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from bench.api import BenchError, Evaluator, Metric

NORM = {"VQ": (0.5, 2.0), "MQ": (0.25, 4.0), "TA": (-0.5, 0.5)}
"""Axis to mean and standard deviation of its raw scores."""


class ToyJudge(Evaluator):
    """Three moments of the pixels as VQ, MQ and TA."""

    metrics: Mapping[str, Metric] = {
        name: Metric(True, "score", "of the toy") for axis in NORM for name in (axis, f"{axis}_raw")
    }
    prompt_free = frozenset(metrics)

    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        if not videos.isfinite().all():
            raise BenchError("a pixel is not finite: fix the generator.")
        pixels = videos.flatten(1).float()
        raw = {"VQ": pixels.mean(1), "MQ": pixels.square().mean(1), "TA": pixels.amax(1)}
        scores = {axis: (raw[axis] - mean) / std for axis, (mean, std) in NORM.items()}
        return scores | {f"{axis}_raw": values for axis, values in raw.items()}

    def fingerprint(self) -> dict[str, str]:
        return {"kind": "toy", "normalised": str(NORM)}
