"""Scores of one video that contradict each other are found; rounding, and frames on both sides of 0, are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from bench.audit.findings import StoredRun
from bench.audit.verify_scores import CLIPSCORE_WEIGHT, SPREAD, check_scores
from bench.suite.schema import Suite
from tests.helpers.records import make_record, make_scores
from tests.helpers.toy_records import CONFIG


def problems(values: dict[str, float], fingerprint: dict[str, Any] | None = None) -> list[str]:
    """What is found in a run whose videos all have these scores, by metric, of one evaluator."""
    suite = Suite.model_validate(CONFIG)
    record = make_record(suite.model_dump(mode="json"), "cps-fixed", 0, evaluators={"judge": fingerprint or {}})
    scores: pd.DataFrame = make_scores(["a", "b"], 1, lambda p, k, metric: values[metric], {"judge": list(values)})
    return list(check_scores(StoredRun(Path(), record, suite, scores, [])))


def clipscore(frames: torch.Tensor) -> dict[str, float]:
    """Both metrics of a video whose frames have these cosines."""
    cosine, score = frames.mean(), (CLIPSCORE_WEIGHT * frames.clamp(min=0)).mean()
    return {"clip_cosine": float(cosine), "clipscore": float(score)}


def frames_of(mean: float) -> torch.Tensor:
    """Frames within `SPREAD` whose clipscore is as large as this mean allows: one half of the interval lies at each
    side of the point that 0 halves."""
    low, high = (mean - SPREAD) / 2, (mean + SPREAD) / 2
    share = (mean - low) / SPREAD
    return torch.tensor([high] * round(1000 * share) + [low] * round(1000 * (1 - share)), dtype=torch.float64)


@pytest.mark.parametrize("mean", [-0.4, -0.1, 0.0, 0.1, 0.3, 0.45])
def test_the_bound_of_clipscore_is_exact(mean: float) -> None:
    largest = clipscore(frames_of(mean))
    assert largest["clip_cosine"] == pytest.approx(mean, abs=1e-3)
    assert problems(largest) == []
    (found,) = problems({**largest, "clipscore": largest["clipscore"] + 1e-3})
    assert "clipscore of 2 of 2 videos is not 2.5 max(clip_cosine, 0)" in found


def test_clipscore_of_frames_on_one_side_of_0_has_no_slack() -> None:
    assert problems({"clip_cosine": 0.6, "clipscore": 1.5}) == []
    assert len(problems({"clip_cosine": 0.6, "clipscore": 1.501})) == 1
    assert len(problems({"clip_cosine": 0.3, "clipscore": 0.75 + 0.06})) == 1, "a raise that a wider bound would pass"


@pytest.mark.parametrize("fingerprint", [{}, {"normalised": "False"}, {"normalised": "{'MQ': (0.0, 2.0)}"}])
def test_a_score_without_constants_is_its_raw_score(fingerprint: dict[str, Any]) -> None:
    assert problems({"VQ": 0.7, "VQ_raw": 0.7}, fingerprint) == []
    (found,) = problems({"VQ": 1.1, "VQ_raw": 0.7}, fingerprint)
    assert "VQ of 2 of 2 videos is not (VQ_raw - 0.0) / 1.0, by up to 0.4" in found
