"""Noise policies: what each method injects, one eta for all, and eta solved for equal exploration."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bench import plugins
from bench.algorithm.steps import injected_variance
from bench.core.errors import BenchError
from bench.flow import sigma_schedule
from bench.suite.methods import apply_noise_policy, make_method
from bench.suite.noise import CommonEta, MatchedRSS, Native
from bench.suite.schema import RowSpec
from methods.flow_grpo import FlowGRPO
from methods.precise import Precise
from tests.helpers.nano_suite import tiny

METHODS = ("flow_grpo", "dance_grpo", "cps", "sage_grpo")
SIGMAS = sigma_schedule(20, 5.0)
ALL = torch.ones(20, dtype=torch.bool)


@pytest.mark.parametrize(
    ("name", "rss"), [("cps", 2.44), ("flow_grpo", 1.17), ("sage_grpo", 1.10), ("dance_grpo", 0.50)]
)
def test_the_root_sum_square_at_eta_one_half_is_the_protocols(name: str, rss: float) -> None:
    """sqrt(sum S), printed with two decimals; the sums are 5.927, 1.356, 1.202 and 0.250."""
    rss_at_half = float(injected_variance(plugins.method(name, eta=0.5), SIGMAS).sum().sqrt())
    assert rss_at_half == pytest.approx(rss, abs=0.006)


@pytest.mark.parametrize("name", METHODS)
def test_matched_rss_gives_every_method_the_same_noise(name: str) -> None:
    matched = apply_noise_policy(plugins.method(name), MatchedRSS(rss=0.4), SIGMAS, ALL)
    assert float(injected_variance(matched, SIGMAS).sum().sqrt()) == pytest.approx(0.4, rel=1e-9)


def test_matched_rss_counts_the_noisy_steps_only() -> None:
    noisy = ALL.clone()
    noisy[-5:] = False
    matched = apply_noise_policy(plugins.method("dance_grpo"), MatchedRSS(rss=0.3), SIGMAS, noisy)
    assert float(injected_variance(matched, SIGMAS)[noisy].sum().sqrt()) == pytest.approx(0.3, rel=1e-9)


def test_common_eta_sets_eta_and_native_leaves_it() -> None:
    method = plugins.method("dance_grpo")
    assert apply_noise_policy(method, CommonEta(eta=0.6), SIGMAS, ALL).eta == 0.6  # type: ignore[attr-defined]
    assert apply_noise_policy(method, Native(), SIGMAS, ALL) is method


def test_an_rss_out_of_reach_is_refused_with_the_largest_possible_one() -> None:
    with pytest.raises(BenchError, match=r"DanceGRPO: it injects at most 1\.000 at eta 1.*lower rss"):
        apply_noise_policy(plugins.method("dance_grpo"), MatchedRSS(rss=3.0), SIGMAS, ALL)


def test_an_rss_below_what_a_kernel_injects_at_any_eta_is_refused() -> None:
    """Precise's std at sigma 1 does not depend on eta: a tiny eta that leaves the noise too large is no solution."""
    sigmas = sigma_schedule(10, 5.0)
    with pytest.raises(BenchError, match=r"Precise: it injects at least 0\.978 at any eta above 0.*raise rss"):
        apply_noise_policy(Precise(), MatchedRSS(rss=0.75), sigmas, ALL[:10])
    matched = apply_noise_policy(Precise(), MatchedRSS(rss=1.9), sigmas, ALL[:10])
    assert 1.0 < matched.eta <= Precise().eta, "up to the method's own eta"
    assert float(injected_variance(matched, sigmas).sum().sqrt()) == pytest.approx(1.9, rel=1e-9)


@pytest.mark.parametrize(
    ("method", "factor", "eta"), [("precise", 1.0, 1.5), ("precise", 1.4, 1.5), ("cps", 9.0, 1.0)]
)
def test_a_factor_on_eta_is_cut_at_one_or_the_own_eta(method: str, factor: float, eta: float) -> None:
    row = RowSpec(method=method, kl="fixed", eta_factor=factor, label="mine")
    assert make_method(tiny(), row).eta == eta  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Halves(FlowGRPO):
    """The first two steps are noisy in even updates, the third one in odd ones."""

    def stochastic(self, sigmas: Tensor, update: int, rng: torch.Generator) -> Tensor:
        return torch.tensor([True, True, False, False] if update % 2 == 0 else [False, False, True, False])


def test_matched_rss_is_the_mean_over_all_updates() -> None:
    suite = tiny("budget.updates=4", "budget.train_steps=1", "noise_policy={kind: matched_rss, rss: 0.4}")
    name = f"{Halves.__module__}:Halves"
    method = make_method(suite, RowSpec(method=name, label="halves"))
    variance = injected_variance(method, sigma_schedule(suite.budget.steps, suite.budget.shift))
    assert float(variance[:3].sum() / 2) == pytest.approx(0.16, rel=1e-9)
