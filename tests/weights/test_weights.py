"""What has to hold before a day of GPU is spent: folders, golden scores, a short video, and what the judge prefers.

Each test runs in miniature on the nano suite, so that it cannot rot, and with the marker `weights` on the released
checkpoints: `make test-weights CHECKPOINTS=FOLDER`, where the folder has those that hunyuanvideo15_single_gpu names.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.algorithm.sampling import sample_held_out
from bench.api import Backbone, Evaluator
from bench.checks.golden import check_golden, golden_path, write_golden
from bench.cli import main
from bench.core.provenance import ROOT
from bench.suite.load import load_suite
from bench.suite.paths import resolve_parameters
from bench.suite.prepared import PreparedSuite, make_backbone, make_evaluator, prepare
from bench.train.evaluate import held_out_config

SUITES = ROOT / "bench" / "configs"
CHECKPOINTS = Path(os.environ.get("CHECKPOINTS", "checkpoints"))
MINIATURE = ["reward={gold: {gold_VQ: 1.0}}", "evaluation.evaluators=[gold, clipscore]"]
"""Overrides of nano: the golden scores of its larger judges are compared by the tests of these judges."""
SHORT = 2
"""Steps of a video that has to be finite and no more."""
NOISE = 0.35
"""Standard deviation of the noise that breaks a clip, of pixels from 0 to 1."""


def released() -> list[str]:
    """Overrides that look for every checkpoint of the full-size suite in CHECKPOINTS."""
    suite = load_suite(SUITES / "hunyuanvideo15_single_gpu.yaml")
    moved = [f"backbone.checkpoint={CHECKPOINTS / Path(suite.backbone.checkpoint or '').name}"]
    for name, params in suite.evaluator_params.items():
        paths = {key: value for key, value in params.items() if str(value).startswith("checkpoints/")}
        moved += [f"evaluator_params.{name}.{key}={CHECKPOINTS / Path(value).name}" for key, value in paths.items()]
    return moved


@pytest.fixture(
    scope="module",
    params=["nano", pytest.param("hunyuanvideo15_single_gpu", marks=pytest.mark.weights)],
)
def case(request: pytest.FixtureRequest) -> tuple[str, list[str]]:
    """A suite and its overrides."""
    return request.param, MINIATURE if request.param == "nano" else released()


@pytest.fixture(scope="module")
def prepared(case: tuple[str, list[str]]) -> PreparedSuite:
    name, overrides = case
    return prepare(load_suite(SUITES / f"{name}.yaml", overrides))


@pytest.fixture(scope="module")
def backbone(prepared: PreparedSuite) -> Backbone:
    made = make_backbone(prepared, prompts=prepared.all_prompts)
    made.reset(torch.Generator().manual_seed(0))
    return made


def sampled(prepared: PreparedSuite, backbone: Backbone, steps: int) -> Tensor:
    """The first video of the first held-out prompt, [1, 3, F, H, W]."""
    config = dataclasses.replace(held_out_config(prepared.suite), steps=steps, videos_per_prompt=1)
    (batch,) = sample_held_out(backbone, backbone.encode(prepared.scored_prompts[:1]), config)
    return batch.pixels


def test_the_folders_have_the_released_files(case: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    name, overrides = case
    assert main(["assets", name, *overrides, "--verify"]) == 0, capsys.readouterr().out


def test_golden_scores_hold(prepared: PreparedSuite) -> None:
    """Stored golden scores are compared; where none are stored, as beside fresh weights, they are written."""
    compared = 0
    for name in prepared.suite.evaluation.evaluators:
        evaluator = make_evaluator(prepared, name)
        path = golden_path(evaluator, resolve_parameters(prepared.suite.evaluator_params.get(name, {})))
        if path is None:
            continue
        if not path.exists():
            write_golden(evaluator, path)
        assert check_golden(name, evaluator, path)["passed"], name
        compared += 1
    assert compared, "no evaluator of the suite has golden scores"


def test_a_video_of_two_steps_is_finite(prepared: PreparedSuite, backbone: Backbone) -> None:
    video = sampled(prepared, backbone, SHORT)
    assert video.isfinite().all()
    assert video.min() >= 0
    assert video.max() <= 1
    assert video.std() > 0.01, "a picture, not a grey field"


def test_the_judge_prefers_a_clean_clip_over_a_broken_one(prepared: PreparedSuite, backbone: Backbone) -> None:
    clean = sampled(prepared, backbone, prepared.suite.evaluation.steps)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    broken = (clean + NOISE * noise).clamp(0, 1)
    judge: Evaluator = make_evaluator(prepared, "videoalign")
    scores = judge.score(torch.cat([clean, broken]), prepared.scored_prompts[:1] * 2, backbone.fps)
    assert scores["VQ"][0] > scores["VQ"][1]
