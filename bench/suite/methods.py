"""A row's method under the suite's settings: noise policy, clip range, recorded parameters."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from bench import plugins
from bench.algorithm.sampling import RolloutConfig
from bench.algorithm.steps import injected_variance, noisy_steps, trained_steps
from bench.api import AnyMethod, Method, NoisePolicy
from bench.core.errors import BenchError
from bench.core.world import SINGLE_PROCESS, World
from bench.flow import sigma_schedule
from bench.suite.noise import largest_eta
from bench.suite.schema import CommonEta, MatchedRSS, PluginSpec, RowSpec, Suite
from bench.suite.search import Absent

MethodT = TypeVar("MethodT", bound=AnyMethod)


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


def make_method(suite: Suite, row: RowSpec) -> AnyMethod:
    """The row's method under the suite's noise policy, which a forward method does not need: it adds no noise.

    Raises `BenchError` where the first rollout would: too few noisy steps, or a schedule that the method refuses; and
    for an `eta_factor` without effect, and for a search over settings other than the method's.
    """
    _check_lacks(suite, row)
    method = _with_eta_factor(plugins.method(row.method, **row.params), suite, row)
    if not isinstance(method, Method):
        return method
    sigmas = sigma_schedule(suite.budget.steps, suite.budget.shift)
    config = rollout_config(suite, 0)
    trained_steps(method, sigmas, noisy_steps(method, sigmas, config, 0), config, 0)  # for its errors
    return apply_noise_policy(method, suite_noise_policy(suite), sigmas, noisy_share(method, sigmas, config))


def _check_lacks(suite: Suite, row: RowSpec) -> None:
    """Refuse a row of a search that draws what its method does not have, or that leaves out what it has."""
    if suite.search is None:
        return
    fields = inspect.signature(plugins.find("methods", row.method)).parameters
    lacks = [name for name in get_args(Absent) if name not in fields]
    if sorted(row.lacks) != sorted(lacks):
        raise BenchError(
            f"row {row.name!r} has lacks: [{', '.join(row.lacks)}], but of the search's settings its method "
            f"{row.method} lacks {' and '.join(lacks) or 'none'}: write lacks: [{', '.join(lacks)}]."
        )


def _with_eta_factor(method: AnyMethod, suite: Suite, row: RowSpec) -> AnyMethod:
    """The method with its own eta times the row's `eta_factor`, at most `largest_eta`."""
    if row.eta_factor is None:
        return method
    if isinstance(suite.noise_policy, CommonEta | MatchedRSS):
        raise BenchError(
            f"row {row.name!r} sets eta_factor, but noise_policy {suite.noise_policy.kind} sets the eta of every "
            "method: use kind native, or leave out eta_factor."
        )
    own = getattr(method, "eta", 0.0)
    return with_eta(method, min(own * row.eta_factor, largest_eta(own)))


def recorded_params(method: AnyMethod) -> dict[str, Any]:
    """The method's parameters for a record; those marked `bench.api.LATE` only if they are not at their default."""
    values = dataclasses.asdict(method)
    for field in dataclasses.fields(method):
        if field.metadata.get("late") and values[field.name] == field.default:
            del values[field.name]
    return values


def with_eta(method: MethodT, eta: float) -> MethodT:
    """The method with another noise scale; a method without a field `eta` is a `BenchError`."""
    if not hasattr(method, "eta"):
        raise BenchError(f"{type(method).__name__} has no field 'eta', so its noise cannot be set: use kind native.")
    changes: dict[str, Any] = {"eta": eta}
    return dataclasses.replace(method, **changes)


def suite_noise_policy(suite: Suite) -> NoisePolicy:
    """The suite's noise policy."""
    spec = suite.noise_policy
    params = spec.params if isinstance(spec, PluginSpec) else spec.model_dump(exclude={"kind"})
    return plugins.noise_policy(spec.kind, **params)


def noisy_share(method: Method, sigmas: Float[Tensor, "t1"], config: RolloutConfig) -> Float[Tensor, "t"]:
    """Share of the rollouts of the budget in which each step is noisy, float64; exactly 1 for one that always is."""
    constant = type(method).stochastic is Method.stochastic
    updates = range(1 if constant else config.budget.updates)
    masks = torch.stack([noisy_steps(method, sigmas, config, update) for update in updates])
    return masks.double().flatten(0, -2).mean(0)


def apply_noise_policy(
    method: Method, policy: NoisePolicy, sigmas: Float[Tensor, "t1"], share: Float[Tensor, "t"]
) -> Method:
    """The method with the eta of the suite's noise policy, which may ask for the variance of the noisy steps.

    `share`: the share of the rollouts in which each step is noisy.

    Raises `BenchError` for a method without eta, and where no eta fits.
    """
    name, policy_name = type(method).__name__, type(policy).__name__

    def variance(eta: float) -> Float[Tensor, "n"]:
        return (injected_variance(with_eta(method, eta), sigmas) * share)[share > 0]

    try:
        eta = policy.choose_eta(getattr(method, "eta", None), variance)
        return method if eta is None else with_eta(method, eta)
    except BenchError as cause:
        raise BenchError(f"noise policy {policy_name}, method {name}: {cause}") from cause
