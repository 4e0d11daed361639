"""Identities of the methods of 2025 and 2026: what they are equal to, and what they keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.api import BenchError, Gaussian, Method, ScoredStep
from bench.checks.methods import check_method
from bench.flow import sigma_schedule
from bench.suite.division import open_reasons
from bench.suite.schema import RowSpec
from methods.awm import AWM
from methods.cps import CPS
from methods.diffusion_nft import DiffusionNFT
from methods.flash_grpo import FlashGRPO
from methods.flow_dppo import FlowDPPO
from methods.flow_grpo import FlowGRPO
from methods.flow_grpo_fast import FlowGRPOFast
from methods.grpo_guard import GRPOGuard
from methods.longcat_grpo import LongCatGRPO
from methods.mix_grpo import MixGRPO
from methods.precise import Precise
from methods.rvm import RVM

ALL: list[Any] = [
    *(Precise, LongCatGRPO, MixGRPO, FlowGRPOFast, FlashGRPO, GRPOGuard, FlowDPPO, DiffusionNFT, AWM, RVM)
]


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize(("steps", "shift"), [(10, 5.0), (20, 3.0)])
def test_every_method_passes_its_checks_and_is_closed(cls: Any, steps: int, shift: float) -> None:
    check_method(cls(), sigma_schedule(steps, shift))
    assert open_reasons(cls(), RowSpec(method="m")) == []


@pytest.mark.parametrize("params", [{"process": "dance"}, {"eta": 0.0}, {"eta": 1.0}])
def test_the_options_of_precise_pass_the_checks(params: dict[str, Any]) -> None:
    check_method(Precise(**params))


def test_the_option_of_longcat_opens_the_division() -> None:
    check_method(LongCatGRPO(largest_std=True))
    assert open_reasons(LongCatGRPO(largest_std=True), RowSpec(method="m"))[-1] == "option largest_std is True"


@pytest.mark.parametrize("eta", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("process", ["flow", "dance"])
def test_precise_keeps_the_marginals_of_a_single_video(eta: float, process: Any) -> None:
    """Where all data are one video x0, X and E are exact: x_next ~ N((1 - t) x0, t^2) for every eta."""
    sigmas, method = sigma_schedule(10, 5.0).double(), Precise(eta=eta, process=process)
    mean, variance = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    x0 = 0.7
    for sigma, after in zip(sigmas[:-1, None], sigmas[1:, None], strict=True):
        at = {x: method.transition(x, (x - x0) / sigma, sigma, after) for x in (mean, mean + 1)}
        step, shifted = at.values()
        slope = float(shifted.mean - step.mean)
        mean, variance = step.mean, slope**2 * variance + step.std**2
        assert float(mean) == pytest.approx(float((1 - after) * x0), abs=1e-12)
        assert float(variance) == pytest.approx(float(after**2), abs=1e-12)


def test_precise_has_the_mean_of_cps_with_another_share() -> None:
    sigma, after = torch.tensor([0.9], dtype=torch.float64), torch.tensor([0.8], dtype=torch.float64)
    x, v = torch.randn(2, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    precise = Precise(eta=1.0).transition(x, v, sigma, after)
    angle = torch.asin(precise.std / after) * 2 / torch.pi
    cps = CPS(eta=float(angle)).transition(x, v, sigma, after)
    torch.testing.assert_close(precise.mean, cps.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(precise.std, cps.std, rtol=0, atol=1e-12)


def gradients(method: Method, moved: float) -> tuple[Tensor, Tensor]:
    """The gradient of `policy_loss` and that of PPO's surrogate to the new mean, which has moved by `moved`."""
    adv = torch.linspace(-2, 2, 5, dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    old_mean, direction, noise = torch.randn(3, 5, 6, dtype=torch.float64, generator=rng)
    std = torch.linspace(0.1, 0.6, 5, dtype=torch.float64)
    sigma, after = torch.full((5,), 0.9).double(), torch.full((5,), 0.8).double()
    x_next = old_mean + std[:, None] * noise
    found = []
    for loss in (method.policy_loss, Method.policy_loss.__get__(method)):
        mean = (old_mean + moved * direction).requires_grad_(True)
        new = ScoredStep(mean, std, method.log_prob(Gaussian(mean, std), x_next))
        old = ScoredStep(old_mean, std, method.log_prob(Gaussian(old_mean, std), x_next))
        (grad,) = torch.autograd.grad(loss(new, old, x_next, adv, sigma, after).sum(), mean)
        found.append(grad)
    return found[0], found[1]


@pytest.mark.parametrize("method", [GRPOGuard(), FlowDPPO()])
def test_with_one_optimizer_step_the_losses_on_two_gaussians_are_ppos(method: Method) -> None:
    """At ratio 1; GRPO-Guard's factor std / d is its step weight, which another test looks at."""
    own, ppo = gradients(method, 0.0)
    assert ppo.abs().max() > 0.1
    torch.testing.assert_close(own, ppo, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", [GRPOGuard(), FlowDPPO(threshold=1.0)])
def test_with_more_steps_they_are_not(method: Method) -> None:
    own, ppo = gradients(method, 0.05)
    assert not torch.allclose(own, ppo, rtol=1e-2)


def test_guards_weight_is_std_over_length_and_equal_is_proportional_below_one() -> None:
    sigmas = sigma_schedule(10, 3.0)
    guard, equal = GRPOGuard().step_weights(sigmas), FlowGRPO(weighting="equal").step_weights(sigmas)
    ratio = (guard / equal)[1:]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1 + 0.7**2 / 2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("cls", [FlowGRPO, Precise, LongCatGRPO, FlashGRPO])
def test_equal_weights_are_those_of_the_released_equalizer(cls: Any) -> None:
    """Up to their scale, which the harness sets."""
    sigmas = sigma_schedule(12, 5.0)
    equal = cls(weighting="equal").step_weights(sigmas)[:-1]
    released = cls(weighting="off", equalizer="released").step_weights(sigmas)[:-1]
    torch.testing.assert_close(equal / equal.sum(), released / released.sum(), rtol=1e-5, atol=0)


def test_windows_are_pure_functions_of_the_update() -> None:
    sigmas = sigma_schedule(10, 5.0)
    for pace in ("progressive", "decay", "exp_decay"):
        method = MixGRPO(pace=pace, window=3)
        masks = [method.stochastic(sigmas, update, torch.Generator().manual_seed(update)) for update in range(200)]
        again = [method.stochastic(sigmas, update, torch.Generator()) for update in reversed(range(200))][::-1]
        assert all(torch.equal(a, b) for a, b in zip(masks, again, strict=True))
        assert {int(mask.sum()) for mask in masks} == {3}
        assert not any(mask[-2:].any() for mask in masks)
        firsts = [int(mask.nonzero()[0]) for mask in masks]
        assert set(firsts) == set(range(6))
    for method in (MixGRPO(pace="random"), FlowGRPOFast(), FlashGRPO()):
        drawn = {
            int(method.stochastic(sigmas, 0, torch.Generator().manual_seed(seed)).nonzero()[0]) for seed in range(60)
        }
        assert drawn == set(range(5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowGRPO(weighting="best"), "weighting is 'best'; choose one of 'off', 'equal'"),
        (lambda: FlowGRPO(weighting="std", equalizer="derived"), "weighting is 'std'"),
        (lambda: MixGRPO(window=0), "window is 0"),
        (lambda: MixGRPO(pace="fast"), "pace is 'fast'"),
        (lambda: FlowGRPOFast(window=0), "window is 0"),
        (lambda: Precise(process="x"), "process is 'x'"),
        (lambda: LongCatGRPO(ceiling=0.0), "ceiling is 0.0"),
        (lambda: FlowDPPO(threshold=0.0), "threshold is 0.0"),
        (lambda: DiffusionNFT(beta=0.0), "beta is 0.0"),
        (lambda: DiffusionNFT(decay="never"), "decay is 'never'"),
        (lambda: AWM(power=0.0), "power is 0.0"),
        (lambda: RVM(scale=-1.0), "scale is -1.0"),
    ],
)
def test_a_wrong_parameter_is_refused(make: Any, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        make()
