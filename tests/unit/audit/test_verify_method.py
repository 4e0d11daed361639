"""Step weights are checked against the steps that may train in their own update."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from bench.algorithm.steps import noisy_steps, step_weights, trainable_steps, trained_steps
from bench.audit.findings import StoredRun
from bench.audit.verify_method import _schedule, _step_weights, expected_schedule
from bench.flow import sigma_schedule
from bench.suite.methods import rollout_config
from bench.suite.schema import Suite
from methods.cps import CPS
from tests.helpers.records import make_record, make_scores
from tests.helpers.toy_records import CONFIG

BUDGET = CONFIG["budget"] | {"steps": 6}


@dataclass(frozen=True, kw_only=True)
class Sliding(CPS):
    """A window of noisy steps that moves with the update, and weights that grow with the step."""

    paper: ClassVar[str] = "none"

    def stochastic(self, sigmas: Tensor, update: int, rng: torch.Generator) -> Tensor:
        steps = torch.arange(len(sigmas) - 1)
        return (steps >= update) & (steps < update + 3)

    def step_weights(self, sigmas: Tensor) -> Tensor:
        return torch.arange(1.0, len(sigmas))


def lines(suite: Suite, method: Sliding) -> list[dict[str, Any]]:
    """Trained steps and their weights as two updates log them."""
    config, sigmas = rollout_config(suite, 0), sigma_schedule(suite.budget.steps, suite.budget.shift)
    logged = []
    for update in range(2):
        noisy = noisy_steps(method, sigmas, config, update)
        steps = trained_steps(method, sigmas, noisy, config, update)
        weights = step_weights(method, sigmas, trainable_steps(noisy, config))[steps]
        logged.append({"update": update, "trained_steps": steps.tolist(), "step_weights": weights.tolist()})
    return logged


def test_the_scale_of_step_weights_is_that_of_the_update() -> None:
    suite, method = Suite.model_validate({**CONFIG, "budget": BUDGET}), Sliding()
    schedule = expected_schedule(method, suite, 2)
    config = suite.model_dump(mode="json")
    record = make_record(config, "cps-fixed", 0, rules=2, extra={"schedule": schedule})
    scores = make_scores(["a"], 1, lambda p, k, metric: 0.0)
    logged = lines(suite, method)
    first = [schedule["step_weight"][i] for i in logged[1]["trained_steps"]]
    assert logged[1]["step_weights"] != pytest.approx(first), "another scale than that of update 0"
    run = StoredRun(Path(), record, suite, scores, logged)
    assert [*_schedule(run, method), *_step_weights(run, method)] == []
    forged = [logged[0], {**logged[1], "step_weights": first}]
    (found,) = _step_weights(StoredRun(Path(), record, suite, scores, forged), method)
    assert "update 1 of train.jsonl has the step weights" in str(found)
