"""The synthetic batch on which a method is checked, and every hook of a method as a call that can be repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bench.algorithm.rollout import needs_old_mean
from bench.api import ForwardPoint, Gaussian, Method, ScoredStep
from bench.core.rewards import Rewards

PROMPTS, GROUP = 2, 4
"""Prompts, and samples per prompt, of the synthetic rewards."""


class SyntheticBatch(NamedTuple):
    """One sample per step of the schedule, and the method's step on it; the same numbers on every call."""

    x: Float[Tensor, "t 2 1 2 2"]
    """Latents, float64."""
    v: Float[Tensor, "t 2 1 2 2"]
    """Velocities."""
    other_v: Float[Tensor, "t 2 1 2 2"]
    """Velocities of another model."""
    noise: Float[Tensor, "t 2 1 2 2"]
    sigmas: Float[Tensor, "t1"]
    """The schedule, [t + 1]."""
    step: Gaussian

    @classmethod
    def make(cls, method: Method, sigmas: Float[Tensor, "t1"]) -> SyntheticBatch:
        """Draw the batch for a schedule and take the method's step on it; raises what the method raises."""
        shape = (4, len(sigmas) - 1, 2, 1, 2, 2)
        x, v, other_v, noise = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return cls(x, v, other_v, noise, sigmas, transition(method, x, v, sigmas[:-1], sigmas[1:]))

    @property
    def sigma(self) -> Float[Tensor, "t"]:
        return self.sigmas[:-1]

    @property
    def sigma_next(self) -> Float[Tensor, "t"]:
        return self.sigmas[1:]

    def noisy(self) -> tuple[Gaussian, Float[Tensor, "n ..."], Float[Tensor, "n"], Float[Tensor, "n"]]:
        """The noisy steps only, as (step, a sample after it, sigma, sigma_next)."""
        rows = self.step.std > 0
        step = Gaussian(self.step.mean[rows], self.step.std[rows])
        return (
            step,
            step.mean + step.std.reshape(-1, 1, 1, 1, 1) * self.noise[rows],
            self.sigma[rows],
            self.sigma_next[rows],
        )


def transition(method: Method, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
    """`method.transition` on copies, so that a method which changes its inputs does not affect other checks."""
    return method.transition(x.clone(), v.clone(), sigma.clone(), sigma_next.clone())


def synthetic_rewards() -> Rewards:
    """Two metrics, [p, g] each, with the same numbers on every call."""
    draws = torch.randn(2, PROMPTS, GROUP, generator=torch.Generator().manual_seed(1))
    return Rewards({"a": draws[0], "b": draws[1]}, {"a": 0.5, "b": 1.0})


@dataclass(frozen=True)
class HookCall:
    """One hook of a method with its inputs."""

    hook: str
    function: Callable[..., Any]
    inputs: tuple[Any, ...]

    def copied_inputs(self) -> tuple[Any, ...]:
        """The inputs, copied; a generator is in its initial state."""
        return tuple(copied(value) for value in self.inputs)


def copied(value: Any) -> Any:
    """A copy of a hook's input; a generator in its initial state."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Gaussian | ScoredStep | ForwardPoint):
        return type(value)(*(copied(part) for part in value))
    if isinstance(value, Rewards):
        return Rewards({name: part.clone() for name, part in value.items()}, value.weights, value.rule)
    if isinstance(value, torch.Generator):
        return torch.Generator().manual_seed(0)
    return value


def tensors(value: Any) -> list[Tensor]:
    """All tensors of a hook's inputs or of its result."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors(item)]
    if isinstance(value, tuple):
        return [tensor for item in value for tensor in tensors(item)]
    return []


def equal_bits(left: Any, right: Any) -> bool:
    """Whether two values hold the same tensors, bit by bit; NaN equals NaN."""
    pairs = list(zip(tensors(left), tensors(right), strict=True))
    return all(a.shape == b.shape and bool(torch.eq(a, b).logical_or(a.isnan() & b.isnan()).all()) for a, b in pairs)


def hook_calls(method: Method, batch: SyntheticBatch) -> list[HookCall]:
    """Every hook of the method on the synthetic batch."""
    step, x_next, sigma, sigma_next = batch.noisy()
    logp, adv = torch.tensor([-1.0, 0.3, 2.0]), torch.tensor([1.0, -1.0, 0.5])
    calls = [
        HookCall("transition", method.transition, (batch.x, batch.v, batch.sigma, batch.sigma_next)),
        HookCall("advantages", method.advantages, (synthetic_rewards(),)),
        HookCall("select", method.select, (torch.linspace(-1, 1, PROMPTS * GROUP).reshape(1, PROMPTS, GROUP),)),
        HookCall("stochastic", method.stochastic, (batch.sigmas, 0, torch.Generator())),
        HookCall("step_weights", method.step_weights, (batch.sigmas,)),
        HookCall("surrogate", method.surrogate, (logp, logp - 0.1, adv)),
    ]
    if len(batch.x) > 1:
        calls.append(HookCall("train_steps", method.train_steps, (batch.sigmas, 1, torch.Generator())))
    if len(sigma):  # with eta 0 there is no density
        ref = Gaussian(step.mean + 0.1, step.std)
        calls += [
            HookCall("log_prob", method.log_prob, (step, x_next)),
            HookCall("divergence", method.divergence, (step, ref, sigma, sigma_next)),
        ]
        if needs_old_mean(method):
            scored = [ScoredStep(*each, method.log_prob(each, x_next).detach()) for each in (step, ref)]
            signs = torch.where(torch.arange(len(sigma)) % 2 == 0, 1.0, -1.0)
            calls.append(HookCall("policy_loss", method.policy_loss, (*scored, x_next, signs, sigma, sigma_next)))
    return calls
