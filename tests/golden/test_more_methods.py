"""Golden values of the methods of 2025 and 2026, computed from their published formulas in double precision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.api import ForwardPoint, Gaussian, Method, Rewards, ScoredStep
from bench.checks.rules import check_rule
from bench.core.rewards import AdvantageSettings, WhitenedAdvantages, standardized
from bench.flow import sigma_schedule
from methods.awm import AWM
from methods.cps import CPS
from methods.dance_grpo import DanceGRPO
from methods.diffusion_nft import DiffusionNFT
from methods.flash_grpo import FlashGRPO
from methods.flow_dppo import FlowDPPO
from methods.flow_grpo import FlowGRPO
from methods.grpo_guard import GRPOGuard
from methods.longcat_grpo import LongCatGRPO
from methods.mix_grpo import MixGRPO
from methods.precise import Precise
from methods.rvm import RVM
from tests.helpers.parity import within

DIGITS = 2e-8
"""The values are given with eight digits; some are sums of two."""


def close(name: str, actual: float | Tensor, expected: float, tolerance: float = DIGITS) -> None:
    """Compare one number, relative to its size above 1."""
    within(f"methods: {name}", float(actual) / max(1.0, abs(expected)), expected / max(1.0, abs(expected)), tolerance)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def step(method: Method, sigma: float, after: float, x: float = 0.0, v: float = 1.0) -> tuple[float, float]:
    """Mean and std of one step of a scalar latent."""
    mean, std = method.transition(one(x)[:, None], one(v)[:, None], one(sigma), one(after))
    return float(mean), float(std)


def weights(method: Method, *sigmas: float) -> Tensor:
    return method.step_weights(torch.tensor(sigmas, dtype=torch.float64)).double()


@pytest.mark.parametrize(
    ("sigma", "after", "eta", "std", "noise", "slope"),
    [
        (0.9, 0.8, 1.0, 0.59628479, 0.53333333, -0.12666667),
        (0.9, 0.8, 1.5, 0.73265183, 0.32128071, -0.14787193),
        (0.6, 0.45, 1.0, 0.30338994, 0.33234703, -0.19706119),
        (0.6, 0.45, 1.5, 0.38823138, 0.22754427, -0.23898229),
        (0.2, 0.1, 1.5, 0.09158148, 0.04016009, -0.14787193),
    ],
)
def test_precise(sigma: float, after: float, eta: float, std: float, noise: float, slope: float) -> None:
    method = Precise(eta=eta)
    mean, own_std = step(method, sigma, after)
    close("precise, std", own_std, std)
    close("precise, slope", mean, slope)
    close("precise, noise", step(method, sigma, after, x=sigma, v=1.0)[0], noise)  # X = 0 and E = 1


def test_precise_at_the_eta_of_sde_dpm_solver_and_in_the_form_of_dance() -> None:
    solver = Precise(eta=math.sqrt(2))
    for sigma, after, of_x, of_clean, std in (
        (0.9, 0.8, 0.39506173, 0.16049383, 0.71664513),
        (0.6, 0.45, 0.40909091, 0.38636364, 0.37716318),
    ):
        close("precise, solver", step(solver, sigma, after)[1], std)
        mean, _ = step(solver, sigma, after, x=1.0, v=0.0)
        close("precise, solver", mean, of_x + of_clean)  # X = x where v is 0
        mean, _ = step(solver, sigma, after, x=1.0, v=1 / sigma)
        close("precise, solver", mean, of_x)  # X = 0
    close("precise, mean", step(Precise(), 0.9, 0.8, 1.0, 0.5)[0], 0.44734475)
    close("precise, mean", step(Precise(eta=1.0), 0.6, 0.45, 1.0, 0.5)[0], 0.78381643)
    dance = Precise(eta=0.3, process="dance")
    close("precise, dance", step(dance, 0.9, 0.8)[1], 0.08916394)
    close("precise, dance", step(dance, 0.2, 0.1)[1], 0.06019733)


@pytest.mark.parametrize(
    ("method", "first", "second"),
    [
        (FlowGRPO(eta=0.7), 5.333962, 1.777987),
        (DanceGRPO(eta=0.3), 0.943963, 0.752036),
        (CPS(eta=0.7), 4.961035, 1.614911),
        (Precise(eta=1.0), 4.70751153, 1.53957224),
        (Precise(eta=1.5), 4.95463768, 1.62451945),
    ],
)
def test_the_weight_std_over_slope(method: Any, first: float, second: float) -> None:
    equal = method if isinstance(method, Precise) else type(method)(eta=method.eta, weighting="equal")
    # weights are float32, and six digits are given
    close("weights, equal", weights(equal, 0.9, 0.8)[0], first, 6e-7)
    close("weights, equal", weights(equal, 0.6, 0.45)[0], second, 6e-7)


def test_the_weight_of_precise_depends_on_the_log_odds_and_the_std() -> None:
    close("weights, equal", weights(Precise(eta=1.5), 0.2, 0.1)[0], 0.61932971, 6e-7)


def test_the_named_weights_on_a_schedule() -> None:
    sigmas = sigma_schedule(10, 3.0)
    equal = FlowGRPO(weighting="equal").step_weights(sigmas)
    for i, weight in {0: 19.6, 1: 14.391817, 2: 8.882822, 3: None, 5: 3.373494, 8: 1.152268}.items():
        if weight is not None:
            close("weights, schedule", equal[i], weight, 2e-6)  # the schedule is float32
    std = FlowGRPO(weighting="std").step_weights(sigmas)[:9].double()
    listed = [0.7, 0.738371, 0.531688, 0.441459, 0.387738, 0.35, 0.319505, 0.290474, 0.256174]
    for own, expected in zip(std, listed, strict=True):
        close("weights, std", own, expected, 1e-6)
    close("weights, std", 1 / std.mean(), 2.24136545, 1e-6)
    for sigma, after, weight in ((0.9, 0.8, 9.48683298), (0.6, 0.45, 3.16227766)):
        close("weights, longcat", weights(LongCatGRPO(), sigma, after)[0], weight, 2e-7)
        guard = FlowGRPO(weighting="guard")
        close("weights, guard", weights(guard, sigma, after)[0], step(guard, sigma, after)[1] / (sigma - after), 2e-7)


def test_longcats_noise_has_a_ceiling() -> None:
    close("longcat_grpo, std", step(LongCatGRPO(), 0.9, 0.8)[1], 0.45)
    close("longcat_grpo, std", step(LongCatGRPO(), 0.6, 0.45)[1], 0.45)
    close("longcat_grpo, std", step(LongCatGRPO(), 0.2, 0.1)[1], math.sqrt(0.25 * 0.1))


def test_mix_grpos_window() -> None:
    quotas = {pace: MixGRPO(pace=pace) for pace in ("decay", "exp_decay")}
    assert [quotas["decay"].updates_at(first, 25) for first in (0, 5, 11, 22)] == [10, 8, 5, 1]
    assert [quotas["exp_decay"].updates_at(first, 25) for first in (0, 13, 15, 20)] == [25, 25, 21, 13]
    sigmas, rng = sigma_schedule(25, 3.0), torch.Generator()
    method = MixGRPO()
    marked = [method.stochastic(sigmas, update, rng).nonzero()[:, 0].tolist() for update in (0, 24, 25, 499, 500)]
    assert marked == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3, 4], [19, 20, 21, 22], [0, 1, 2, 3]]


def test_flash_grpos_weights() -> None:
    sigmas = sigma_schedule(20, 3.0)
    own = FlashGRPO(eta=float(sigmas[1])).step_weights(sigmas)[:10].double()
    listed = [7.4845, 7.0483, 6.6177, 6.1927, 5.7737, 5.3610, 4.9548, 4.5555, 4.1634, 3.7787]
    for weight, expected in zip(own, listed, strict=True):
        close("flash_grpo, weights", weight, expected, 2e-5)  # five digits are given
    close("flash_grpo, weights", own.mean(), 5.5930, 2e-5)
    close("flash_grpo, weights", own[0] / own.mean(), 1.33818, 2e-5)
    close("flash_grpo, weights", own[-1] / own.mean(), 0.67561, 2e-5)


def scored(method: Method, mean: float, x_next: float, std: float) -> ScoredStep:
    """A step of a scalar latent with std `std`."""
    gaussian = Gaussian(one(mean)[:, None], one(std))
    return ScoredStep(*gaussian, method.log_prob(gaussian, one(x_next)[:, None]))


def loss_of(method: Method, adv: float) -> float:
    """The loss of the step with std .3 and length .1 whose mean moved from .5 to .52, at .8."""
    new, old = (scored(method, mean, 0.8, 0.3) for mean in (0.52, 0.5))
    return float(method.policy_loss(new, old, one(0.8)[:, None], one(adv), one(0.9), one(0.8)))


def test_the_losses_on_two_gaussians() -> None:
    guard, dppo = GRPOGuard(clip_range=2e-6), FlowDPPO()
    new, old = (scored(guard, mean, 0.8, 0.3) for mean in (0.52, 0.5))
    close("grpo_guard, log-ratio", float(new.logp - old.logp), 0.06444444)
    for adv, expected in ((1.0, -10.00002), (-1.0, 10.20201340)):
        close("grpo_guard, loss", loss_of(guard, adv) * 0.3 / 0.1, expected)  # times the step weight std / d
    assert loss_of(dppo, 1.0) == 0
    close("flow_dppo, loss", loss_of(dppo, -1.0), 1.06656632)
    close("flow_dppo, loss", loss_of(FlowDPPO(threshold=1.0), 1.0), -1.06656632)


def point(v: float = -0.8) -> ForwardPoint:
    """A scalar video .3 with the noise -.7 at level .4, old velocity -.9, that of the base model -1."""
    values = (v, -0.9, -1.0, 0.3, -0.7, 0.6 * 0.3 - 0.4 * 0.7)
    return ForwardPoint(*(one(value)[:, None] for value in values), one(0.4))


def test_diffusion_nft() -> None:
    close("diffusion_nft, x", point().x, -0.1)
    for beta, expected in ((1.0, 0.260004), (0.1, 2.060004)):
        close("diffusion_nft, loss", DiffusionNFT(beta=beta).loss(point(), one(1.5)), expected)
    early, late = DiffusionNFT(), DiffusionNFT(decay="late")
    assert [early.old_decay(update) for update in (10, 500, 1000)] == pytest.approx([0.01, 0.5, 0.5])
    assert [late.old_decay(update) for update in (74, 75, 100, 300)] == pytest.approx([0, 0, 0.1875, 0.999])


def test_awm() -> None:
    free = {"base_weight": 0.0, "old_weight": 0.0, "clip_range": 0.5}
    for likelihood, new, old, ratio in (
        ("ghuber", -0.71048211, -0.50090478, 0.81092693),
        ("huber", -0.07999600, -0.03999600, 0.96078944),
    ):
        method: Any = AWM(likelihood=likelihood, **free)
        close("awm, likelihood", method.log_likelihood(point(), point().v), new)
        close("awm, likelihood", method.log_likelihood(point(), one(-0.9)[:, None]), old)
        close("awm, loss", method.loss(point(), one(2.0)), -0.4 * ratio)
    near = AWM(base_weight=1.0, old_weight=1.0, clip_range=0.5)
    close("awm, distances", near.loss(point(), one(0.0)), 0.2**2 + 0.1**2)


def test_rvm() -> None:
    for beta, expected in ((0.0, 0.02), (0.5, 0.12)):
        at = point()._replace(v=one(-0.8)[:, None].requires_grad_(True))
        RVM(beta=beta).loss(at, one(1.0)).backward()
        assert at.v.grad is not None
        close("rvm, gradient", at.v.grad, expected)


def test_gdpos_credit() -> None:
    rewards = Rewards(
        {"a": torch.tensor([[0.0, 0.0, 1.0, 1.0]]).double(), "b": torch.tensor([[0.1, 0.2, 0.2, 0.3]]).double()},
        {"a": 1.0, "b": 1.0},
        WhitenedAdvantages(),
    )
    each = AdvantageSettings()  # eps 1e-4
    summed = sum(standardized(rewards[name], each)[0] for name in rewards)
    for before, expected in zip(torch.as_tensor(summed), (-2.412, -0.9998, 0.9998, 2.412), strict=True):
        close("advantage rule whitened, before", float(before), expected, 5e-4)  # four digits are given
    own = rewards.rule.advantages(rewards)[0, 0]
    for adv, expected in zip(own, (-1.3064, -0.5415, 0.5415, 1.3064), strict=True):
        close("advantage rule whitened", float(adv), expected, 1e-4)  # four digits are given
    check_rule("advantage_rules", WhitenedAdvantages())
