"""Settings that would give wrong numbers are refused, with one sentence: what, where and how to fix it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import yaml

from bench.algorithm.advantages import Advantages
from bench.algorithm.steps import injected_variance
from bench.api import AdvantageRule, BenchError, Budget, DivergedError, Method, Rewards, StandardizedAdvantages
from bench.cli import main
from bench.flow import sigma_schedule
from bench.suite.load import load_suite
from bench.suite.methods import make_method, recorded_params
from bench.suite.schema import RowSpec
from methods.cps import CPS
from methods.dance_grpo import DanceGRPO
from methods.flow_grpo import FlowGRPO
from methods.sage_grpo import LEAST_REST, SAGEGRPO, SIGNAL_FLOOR
from tests.helpers.nano_suite import NANO

OURS: list[Any] = [FlowGRPO, DanceGRPO, CPS, SAGEGRPO]
LIMITS = [(1.0, 332), (3.0, 111), (5.0, 67), (7.0, 48), (9.0, 37), (12.0, 28)]


def test_the_least_rest_solves_its_equation() -> None:
    assert SIGNAL_FLOOR * math.exp(LEAST_REST) == pytest.approx(LEAST_REST, rel=2e-5)
    assert math.log(LEAST_REST / SIGNAL_FLOOR) - LEAST_REST > 0


@pytest.mark.parametrize(("shift", "most"), LIMITS)
def test_sage_names_the_largest_number_of_steps(shift: float, most: int) -> None:
    rng = torch.Generator()
    assert SAGEGRPO().stochastic(sigma_schedule(most, shift), 0, rng).all()
    assert (injected_variance(SAGEGRPO(), sigma_schedule(most, shift)) > 0).all()
    for steps in (most + 1, 2 * most):
        sigmas = sigma_schedule(steps, shift)
        with pytest.raises(BenchError, match=rf"{steps} steps, shift {shift:.3g}.*budget.steps to at most {most} at"):
            SAGEGRPO().stochastic(sigmas, 0, rng)
        with pytest.raises(BenchError, match=r"fewer steps or a smaller shift.*variance: exact"):
            injected_variance(SAGEGRPO(), sigmas)
        assert SAGEGRPO(eta=0.0).stochastic(sigmas, 0, rng).all()


def test_a_suite_with_the_720p_settings_is_refused_before_it_runs() -> None:
    suite = load_suite(NANO, ["budget.steps=50", "budget.shift=9.0"])
    with pytest.raises(BenchError, match=r"50 steps, shift 9\).*at most 37 at this shift"):
        make_method(suite, RowSpec(method="sage_grpo"))
    method = make_method(suite, RowSpec(method="sage_grpo", params={"variance": "exact"}, label="exact"))
    assert method.step_weights(sigma_schedule(50, 9.0)).isfinite().all()


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (10, 5.0), (50, 9.0), (68, 5.0), (400, 1.0), (1000, 12.0)])
def test_exact_variance_is_positive_on_every_schedule(steps: int, shift: float) -> None:
    sigmas = sigma_schedule(steps, shift)
    variance = injected_variance(SAGEGRPO(eta=0.5, variance="exact"), sigmas)
    sigma, sigma_next = sigmas[1:-1].double(), sigmas[2:].double()
    assert variance[0].item() == pytest.approx(0.25, rel=1e-12)  # FlowGRPO's first step
    assert torch.allclose(
        variance[1:], 0.25 * (torch.log((1 - sigma_next) / (1 - sigma)) - (sigma - sigma_next)), rtol=1e-12
    )
    assert (variance > 0).all()
    if steps > 1:
        assert (variance[1:-1] > 0.99 * variance[2:]).all()  # decreasing, but for the rounding of float32 sigmas
        assert variance[0] > variance[1]


def test_exact_and_released_differ_in_the_first_step_alone_where_the_clamp_acts_there_alone() -> None:
    sigmas = sigma_schedule(20, 5.0)
    released, exact = (injected_variance(SAGEGRPO(eta=1.0, variance=how), sigmas) for how in ("released", "exact"))
    assert torch.equal(released[1:], exact[1:])
    assert released[0].item() == pytest.approx(1.2344, abs=1e-4)
    assert exact[0].item() == 1.0


def test_a_record_names_the_variance_only_where_it_is_not_the_default() -> None:
    assert "variance" not in recorded_params(SAGEGRPO())
    assert recorded_params(SAGEGRPO(variance="exact"))["variance"] == "exact"
    with pytest.raises(BenchError, match="choose one of 'released', 'exact'"):
        SAGEGRPO(variance="paper")  # type: ignore[arg-type]


@pytest.mark.parametrize("first", [0.9999, 0.999, 0.99999994])
@pytest.mark.parametrize("method", [FlowGRPO(), SAGEGRPO(variance="exact")])
def test_a_first_sigma_that_is_almost_one_is_refused(method: Method, first: float) -> None:
    sigmas = sigma_schedule(20, 5.0)
    sigmas[0] = first
    with pytest.raises(BenchError, match=r"start the schedule at sigma = 1 exactly"):
        injected_variance(method, sigmas)


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, 5.0, 9.0, 12.0, 1000.0])
@pytest.mark.parametrize("method", [FlowGRPO(), SAGEGRPO(variance="exact")])
def test_every_schedule_of_the_harness_is_accepted(method: Method, shift: float) -> None:
    for steps in (1, 2, 3, 4, 10, 50, 100, 1000):
        assert injected_variance(method, sigma_schedule(steps, shift)).isfinite().all()


RULES = [
    StandardizedAdvantages(),
    StandardizedAdvantages(std="global"),
    StandardizedAdvantages(ddof=1, eps=1e-8),
    StandardizedAdvantages(eps=0.0),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("cls", OURS)
@pytest.mark.parametrize("value", [0.1, -0.7331, 1e6, 0.0])
def test_a_tied_group_has_advantage_zero_exactly(cls: Any, rule: AdvantageRule, value: float) -> None:
    """As coded by the origins, rounding of the mean over an eps of 1e-8 gives up to 0.96."""
    values = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    values[1] = value
    adv = cls().advantages(Rewards({"a": values}, {"a": 1.0}, rule))
    assert torch.equal(adv[0, 1], torch.zeros(24))
    assert adv.isfinite().all()
    assert (adv[0, [0, 2]].abs().amax(1) > 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_a_round_in_which_all_groups_are_tied_is_finite(rule: AdvantageRule) -> None:
    adv = FlowGRPO().advantages(Rewards({"a": torch.full((2, 4), 0.1)}, {"a": 1.0}, rule))
    assert torch.equal(adv, torch.zeros(1, 2, 4))


@pytest.mark.parametrize("cls", OURS)
def test_a_group_of_one_is_refused(cls: Any) -> None:
    rewards = Rewards({"a": torch.zeros(4, 1)}, {"a": 1.0})
    for call in (lambda: cls().advantages(rewards), lambda: Advantages.compute(cls(), rewards)):
        with pytest.raises(BenchError, match=r"one sample per prompt.*set budget\.group_size to at least 2"):
            call()
    budget = yaml.safe_load(NANO.read_text())["budget"]
    with pytest.raises(BenchError, match=r"budget\.group_size is 1"):
        Budget(**{**budget, "group_size": 1})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("cls", OURS)
def test_a_reward_that_is_not_finite_is_refused_before_any_statistics(cls: Any, bad: float) -> None:
    values = torch.zeros(2, 4)
    values[1, 2] = bad
    rewards = Rewards({"a": torch.zeros(2, 4), "b": values}, {"a": 1.0, "b": 0.0})  # weight 0 hides nothing
    for call in (lambda: cls().advantages(rewards), lambda: Advantages.compute(cls(), rewards)):
        with pytest.raises(DivergedError, match=r"reward b is not finite \(sample 2 of prompt 1\)"):
            call()


@pytest.mark.parametrize("method", ["flow_grpo", "dance_grpo", "sage_grpo", "cps"])
def test_a_row_without_noise_is_refused_before_it_runs(
    method: str, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    rows = f"rows=[{{method: {method}, params: {{eta: 0.0}}, label: quiet}}]"
    assert main(["run", str(NANO), rows, "--results", str(tmp_path), "--dry-run"]) == 2
    assert "has 0 steps to train at update 0, but budget.train_steps is 5" in capsys.readouterr().err
