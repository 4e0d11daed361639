"""What a suite is refused for before anything is trained, and what a run checks after its evaluators are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import plugins, store
from bench.api import BenchError, Evaluator, Metric
from bench.checks.evaluators import check_reward_metrics, evaluator_gate
from bench.cli import main
from bench.core.world import SINGLE_PROCESS
from bench.suite.prepared import prepare
from bench.train.preflight import check_suite
from tests.helpers.nano_suite import NANO, tiny
from tests.helpers.toy import Brightness
from tests.helpers.toy_suite import run_alone, scored_by, toy_suite, training_job

HERE = "tests.unit.train.test_preflight"


class TakesNaN(Brightness):
    """Scores a video with a NaN pixel."""

    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        return super().score(torch.nan_to_num(videos), prompts, fps)


class OneSize(Brightness):
    only_size = (7, 8, 8)


def test_a_misspelt_reward_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(NANO), "reward={videoalign: {VQ: 0.5, MQQ: 0.5}}", "--results", str(tmp_path / "results")]
    for more in ([], ["--dry-run"]):
        assert main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert (
            "reward videoalign.MQQ: the evaluator gives VQ, MQ, TA, VQ_raw, MQ_raw, TA_raw; did you mean 'MQ'?"
            in error
        )
    assert not (tmp_path / "results").exists()


def test_metrics_that_are_not_known_yet_pass() -> None:
    check_reward_metrics({"a": {"x": 1.0}, "b": {"y": 1.0}}, {"a": ["x"]})
    with pytest.raises(BenchError, match=r"reward b\.y: the evaluator gives z; fix 'reward:' in the YAML"):
        check_reward_metrics({"a": {"x": 1.0}, "b": {"y": 1.0}}, {"a": ["x"], "b": ["z"]})


@pytest.mark.parametrize("name", ["videoalign", "clipscore", "pickscore", "hpsv2", "detectors", "gold"])
def test_our_evaluators_declare_their_metrics_in_the_class(name: str) -> None:
    cls = plugins.find("evaluators", name)
    assert issubclass(cls, Evaluator)
    assert all(isinstance(metric, Metric) for metric in cls.metrics.values())


def test_an_evaluator_that_fails_bench_check_is_refused_before_training(tmp_path: Path) -> None:
    message = r"evaluator tests.*:TakesNaN fails the check 'NaN refused': a video with a NaN pixel is scored"
    with pytest.raises(BenchError, match=message):
        check_suite(prepare(tiny(f"evaluation.evaluators=[gold, '{HERE}:TakesNaN']")))
    job = training_job(scored_by(toy_suite(tmp_path), f"{HERE}:TakesNaN", "brightness"), tmp_path)
    with pytest.raises(BenchError, match=message):
        run_alone(job, SINGLE_PROCESS)
    assert not (job.folder / store.TRAIN).exists()


def test_the_gate_of_the_evaluators() -> None:
    gate = evaluator_gate({"toy": Brightness()})
    assert gate == {"passed": True, "evaluators": {"toy": {"passed": True, "checks": 13}}}
    gate = evaluator_gate({"toy": Brightness(), "one": OneSize()})
    assert gate["passed"] is None
    assert gate["evaluators"]["one"] == {"passed": None, "not_available": "no golden clip has the size (7, 8, 8)"}
