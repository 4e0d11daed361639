"""Detectors of reward hacking: pictures whose numbers are known, and what each of them moves for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bench.api import BenchError
from bench.checks.evaluators import check_evaluator
from bench.plugins import evaluator
from bench.report.data.metrics import DETECTORS, LESS_IS_BETTER
from evaluators.detectors import BINS, Detectors, entropy, slope


def one(video: Tensor, fps: float = 8.0) -> dict[str, float]:
    return {name: float(value) for name, value in Detectors().score(video[None], [""], fps).items()}


def still(frame: Tensor, frames: int = 4) -> Tensor:
    return frame[:, None].repeat(1, frames, 1, 1)


def test_older_records_have_the_directions_that_the_detectors_declare() -> None:
    declared = Detectors().metrics
    assert set(declared) == set(DETECTORS)
    assert {name for name, metric in declared.items() if not metric.higher_is_better} == set(LESS_IS_BETTER)


def test_it_keeps_the_promises_of_an_evaluator() -> None:
    check_evaluator(evaluator("detectors"))


def test_black_video() -> None:
    assert one(torch.zeros(3, 4, 8, 8)) == {
        "dark_fraction": 1.0,
        "edge_density": 0.0,
        "colour_entropy": 0.0,
        "motion_energy": 0.0,
    }


def test_dark_half() -> None:
    frame = torch.full((3, 8, 8), 0.5)
    frame[:, :2] = 0.05
    assert one(still(frame))["dark_fraction"] == 0.25


def test_a_ramp_has_its_slope_everywhere() -> None:
    ramp = 0.02 * torch.arange(16.0).expand(1, 8, 16)
    assert slope(ramp) == pytest.approx(torch.full((1, 6, 14), 0.02), abs=1e-6)
    assert slope(3 * ramp + 4 * 0.02 * torch.arange(8.0)[None, :, None]) == pytest.approx(
        torch.full((1, 6, 14), 0.1), abs=1e-6
    )


def test_edges_of_a_square() -> None:
    frame = torch.zeros(3, 12, 12)
    frame[:, 4:8, 4:8] = 1  # 6 * 6 - 2 * 2 pixels of the inner 10 x 10 have a step in reach
    assert one(still(frame))["edge_density"] == pytest.approx(32 / 100)


def test_entropy_counts_colours() -> None:
    colours = torch.rand(3, 1, 1, BINS, generator=torch.Generator().manual_seed(0))
    colours[0, 0, 0] = (torch.arange(BINS) + 0.5) / BINS
    assert float(entropy(colours)) == pytest.approx(math.log2(BINS))
    assert float(entropy(torch.ones(3, 2, 4, 4))) == 0


def test_motion_is_per_second() -> None:
    video = torch.zeros(3, 3, 8, 8)
    video[:, 1] = 0.1
    video[:, 2] = 0.3
    assert one(video, fps=8.0)["motion_energy"] == pytest.approx(0.15 * 8)
    assert one(video, fps=24.0)["motion_energy"] == pytest.approx(0.15 * 24)
    assert one(video.flip(1), fps=8.0)["motion_energy"] == pytest.approx(0.15 * 8)


def test_details_say_which_frames_are_dark() -> None:
    video = torch.ones(3, 3, 8, 8)
    video[:, 1] = 0
    detectors = Detectors()
    detectors.score(torch.stack([video, video.flip(1)]), ["", ""], 8.0)
    assert detectors.details()["dark_fraction"].tolist() == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (3, 2, 2, 8)])
def test_what_has_no_motion_or_no_edges_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BenchError, match=r"give 2 frames of 3 x 3 pixels or more"):
        Detectors().score(torch.zeros(1, *shape), [""], 8.0)
