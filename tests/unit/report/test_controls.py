"""The controls, shortened: training on gold beats the base on held-out prompts, on shuffled gold it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.core.provenance import ROOT
from bench.report.data.statistics import one_way
from bench.store.record import read_run
from bench.suite.job import BaseRun, TrainingRun
from bench.suite.load import load_suite
from bench.suite.prepared import prepare
from bench.suite.schema import Suite
from bench.train.run import execute
from tests.helpers.nano_suite import first_run

CONFIGS = ROOT / "bench" / "configs"
SHORT = (
    "budget.updates=8",
    "budget.lr=1e-3",
    "evaluation={evaluators: [gold], steps: 10, videos_per_prompt: 2}",
    "monitor=[]",
    "seeds=[0]",
    "rows=[{method: cps, kl: fixed}]",
)
"""8 updates instead of 60, at a learning rate that shows an effect in them; 72 held-out videos."""


def rewards(suite: Suite, job: BaseRun | TrainingRun) -> np.ndarray:
    """Reward after the job, per held-out prompt."""
    execute(job)
    _, scores = read_run(job.folder)
    weighted = scores["value"] * scores["metric"].map(suite.weights)
    return weighted.groupby(scores["prompt_index"]).sum().to_numpy() / suite.evaluation.videos_per_prompt


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Reward of the base, which the two suites evaluate alike."""
    gold, shuffled = (load_suite(CONFIGS / f"nano_control_{name}.yaml", SHORT) for name in ("gold", "shuffled"))
    assert (gold.evaluation, gold.reward) == (shuffled.evaluation, shuffled.reward)
    return rewards(gold, BaseRun(prepare(gold), tmp_path_factory.mktemp("base"), "d"))


@pytest.mark.parametrize("suite", ["nano_control_gold", "nano_control_shuffled"])
def test_the_control_does_what_it_must(suite: str, tmp_path: Path, base: np.ndarray) -> None:
    exp = load_suite(CONFIGS / f"{suite}.yaml", SHORT)
    gain = rewards(exp, first_run(exp, tmp_path)) - base
    found = one_way(gain)
    print(suite, found)
    assert len(gain) == 36
    assert (found.lo > 0) is (suite == "nano_control_gold")
