"""A row's method under the suite's settings: noise policy, clip range, recorded parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from bench import plugins
from bench.algorithm.rollout import RolloutConfig, injected_variance, noisy_steps, trained_steps
from bench.api import Method
from bench.core.errors import BenchError
from bench.core.world import SINGLE_PROCESS, World
from bench.flow import sigma_schedule
from bench.suite.schema import CommonEta, MatchedRSS, Native, RowSpec, Suite


def rollout_config(suite: Suite, seed: int, world: World = SINGLE_PROCESS) -> RolloutConfig:
    """The settings of the suite's rollouts."""
    return RolloutConfig(
        budget=suite.budget,
        decode=suite.decode,
        group_noise=suite.group_noise,
        seed=seed,
        train_last=suite.last_step != "untrained",
        world=world,
    )


def make_method(suite: Suite, row: RowSpec) -> Method:
    """The row's method under the suite's noise policy.

    Raises `BenchError` where the first rollout would: too few noisy steps, or a schedule that the method refuses.
    """
    method = plugins.method(row.method, **row.params)
    sigmas = sigma_schedule(suite.budget.steps, suite.budget.shift)
    config = rollout_config(suite, 0)
    noisy = noisy_steps(method, sigmas, config, 0)
    trained_steps(method, sigmas, noisy, config, 0)  # for its errors
    return apply_noise_policy(method, suite.noise_policy, sigmas, noisy)


def recorded_params(method: Method) -> dict[str, Any]:
    """The method's parameters for a record; those marked `bench.api.LATE` only if they are not at their default."""
    values = dataclasses.asdict(method)
    for field in dataclasses.fields(method):
        if field.metadata.get("late") and values[field.name] == field.default:
            del values[field.name]
    return values


def with_eta(method: Method, eta: float) -> Method:
    """The method with another noise scale; a method without a field `eta` is a `BenchError`."""
    if not hasattr(method, "eta"):
        raise BenchError(f"{type(method).__name__} has no field 'eta', so its noise cannot be set.")
    changes: dict[str, Any] = {"eta": eta}
    return dataclasses.replace(method, **changes)


def apply_noise_policy(
    method: Method, policy: Native | CommonEta | MatchedRSS, sigmas: Float[Tensor, "t1"], noisy: Bool[Tensor, "t"]
) -> Method:
    """The method with the eta of the suite's noise policy; matched_rss sums the variance of the `noisy` steps.

    Eta is solved by 60 bisections of [0, 1]. Raises `BenchError` for a method without eta, or an rss out of reach.
    """
    if isinstance(policy, Native):
        return method
    if not hasattr(method, "eta"):
        raise BenchError(
            f"{type(method).__name__} has no field 'eta', so noise_policy {policy.kind} cannot set it: "
            "use kind native."
        )
    if isinstance(policy, CommonEta):
        return with_eta(method, policy.eta)

    def rss(eta: float) -> float:
        return float(injected_variance(with_eta(method, eta), sigmas)[noisy].sum().sqrt())

    low, high = 0.0, 1.0
    if rss(high) < policy.rss:
        raise BenchError(
            f"{type(method).__name__} injects at most {rss(high):.3f} at eta 1, "
            f"below noise_policy.rss {policy.rss}: lower rss."
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rss(middle) < policy.rss else (low, middle)
    return with_eta(method, high)
