"""A row's method under the suite's settings: noise policy, clip range, recorded parameters."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from bench import plugins
from bench.algorithm.rollout import RolloutConfig, injected_variance, noisy_steps, trained_steps
from bench.api import BenchError, Method
from bench.checks.methods import check_method
from bench.core.world import SINGLE_PROCESS, World
from bench.flow import sigma_schedule
from bench.suite.schema import CommonEta, Experiment, MatchedRSS, Native, RowSpec


def rollout_config(exp: Experiment, seed: int, world: World = SINGLE_PROCESS) -> RolloutConfig:
    """What a rollout needs to know of the suite."""
    return RolloutConfig(exp.budget, exp.decode, exp.group_noise, seed, exp.last_step != "untrained", world)


def make_method(exp: Experiment, row: RowSpec, latent_elements: int) -> Method:
    """The row's method under the suite's noise policy, clip range scaled to the latent's size, conformance checked."""
    method = plugins.method(row.method, **row.params)
    sigmas = sigma_schedule(exp.budget.steps, exp.budget.shift)
    settings = rollout_config(exp, 0)
    noisy = noisy_steps(method, sigmas, settings, 0)
    trained_steps(method, sigmas, noisy, settings, 0)  # refuses what the first rollout would refuse
    method = apply_noise_policy(method, exp.noise_policy, sigmas, noisy)
    if exp.clip_reference_size is not None:
        scale = math.sqrt(exp.clip_reference_size / latent_elements)
        method = dataclasses.replace(method, clip_range=method.clip_range * scale)
    check_method(method, sigmas)
    return method


def recorded_params(method: Method) -> dict[str, Any]:
    """The method's parameters as a record names them; those marked `LATE` only where they are not at their default."""
    values = dataclasses.asdict(method)
    late = [field for field in dataclasses.fields(method) if field.metadata.get("late")]
    for field in late:
        if values[field.name] == field.default:
            del values[field.name]
    return values


def apply_noise_policy(
    method: Method, policy: Native | CommonEta | MatchedRSS, sigmas: Float[Tensor, "t1"], noisy: Bool[Tensor, "t"]
) -> Method:
    """The method with the eta of the suite's noise policy; `noisy` marks the steps that count for matched_rss."""
    if isinstance(policy, Native):
        return method
    if not hasattr(method, "eta"):
        raise BenchError(
            f"{type(method).__name__} has no field 'eta', so noise_policy {policy.kind} cannot set it: "
            "use kind native."
        )
    if isinstance(policy, CommonEta):
        return dataclasses.replace(method, eta=policy.eta)  # type: ignore[call-arg]

    def rss(eta: float) -> float:
        changed = dataclasses.replace(method, eta=eta)  # type: ignore[call-arg]
        return float(injected_variance(changed, sigmas)[noisy].sum().sqrt())

    low, high = 0.0, 1.0
    if rss(high) < policy.rss:
        raise BenchError(
            f"{type(method).__name__} injects at most {rss(high):.3f} at eta 1, "
            f"below noise_policy.rss {policy.rss}: lower rss."
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rss(middle) < policy.rss else (low, middle)
    return dataclasses.replace(method, eta=high)  # type: ignore[call-arg]
