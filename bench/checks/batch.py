"""A made-up batch on which a method's promises are checked, and every hook as a call that can be repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import Gaussian, Method, Rewards

#: Prompts and samples per prompt of the made-up rewards.
PROMPTS, GROUP = 2, 4

#: What `advantages` must survive: a group whose rewards are all equal, at a value that float32 rounds.
TIE = 0.1


#: Relative error allowed between two ways to one number: a hundred roundings of a method that computes in float32.
TOLERANCE = 1e-5


class CheckError(Exception):
    """What a check found."""


def require(condition: bool | Tensor, found: str) -> None:
    if not bool(condition):
        raise CheckError(found)


def finite(values: Tensor, what: str) -> None:
    require(torch.isfinite(values).all(), f"{what} is not finite: {values.flatten()[:4].tolist()}")


def shape(values: Tensor, shape: tuple[int, ...], what: str) -> None:
    require(tuple(values.shape) == shape, f"{what} has shape {list(values.shape)}, expected {list(shape)}")


def close(left: Tensor, right: Tensor, found: str) -> None:
    shape(left, tuple(right.shape), found)
    if right.numel():
        gap, size = (left - right).abs().max().item(), max(1.0, right.abs().max().item())
        require(gap <= TOLERANCE * size, f"{found} (largest difference {gap:.3g})")


class Probe(NamedTuple):
    """One made-up batch with one sample per step of the schedule, and the method's step on it."""

    x: Tensor
    """[t, 2, 1, 2, 2], float64."""
    v: Tensor
    other_v: Tensor
    noise: Tensor
    sigmas: Tensor
    """[t + 1]."""
    step: Gaussian

    @classmethod
    def of(cls, m: Method, sigmas: Float[Tensor, "t1"]) -> Probe:
        """Latents, velocities and noise that are the same on every call, and the step that `m` takes on them."""
        shape = (4, len(sigmas) - 1, 2, 1, 2, 2)
        x, v, other_v, noise = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return cls(x, v, other_v, noise, sigmas, taken(m, x, v, sigmas[:-1], sigmas[1:]))

    @property
    def sigma(self) -> Float[Tensor, "t"]:
        return self.sigmas[:-1]

    @property
    def sigma_next(self) -> Float[Tensor, "t"]:
        return self.sigmas[1:]

    def noisy(self) -> tuple[Gaussian, Float[Tensor, "n ..."], Float[Tensor, "n"], Float[Tensor, "n"]]:
        """The noisy steps alone, as (step, a sample after it, sigma, sigma_next)."""
        rows = self.step.std > 0
        step = Gaussian(self.step.mean[rows], self.step.std[rows])
        return (
            step,
            step.mean + step.std.reshape(-1, 1, 1, 1, 1) * self.noise[rows],
            self.sigma[rows],
            self.sigma_next[rows],
        )


def taken(m: Method, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
    """`m.transition` on copies, so that a method which changes its inputs spoils no other check."""
    return m.transition(x.clone(), v.clone(), sigma.clone(), sigma_next.clone())


def made_up_rewards() -> Rewards:
    """Two metrics, [p, g] each, drawn once and for all."""
    draws = torch.randn(2, PROMPTS, GROUP, generator=torch.Generator().manual_seed(1))
    return Rewards({"a": draws[0], "b": draws[1]}, {"a": 0.5, "b": 1.0})


@dataclass(frozen=True)
class Call:
    """One hook of a method with inputs of its own."""

    hook: str
    run: Callable[..., Any]
    inputs: tuple[Any, ...]

    def fresh(self) -> tuple[Any, ...]:
        """The inputs, copied; a generator starts anew."""
        return tuple(_copy(value) for value in self.inputs)


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Gaussian):
        return Gaussian(value.mean.clone(), value.std.clone())
    if isinstance(value, Rewards):
        return Rewards({name: part.clone() for name, part in value.items()}, value.weights, value.rule)
    if isinstance(value, torch.Generator):
        return torch.Generator().manual_seed(0)
    return value


def parts(value: Any) -> list[Tensor]:
    """All tensors of a hook's inputs or of what it returns."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [part for inner in value.values() for part in parts(inner)]
    if isinstance(value, tuple):
        return [part for inner in value for part in parts(inner)]
    return []


def same(left: Any, right: Any) -> bool:
    """Whether two values hold the same tensors, bit by bit; what is not a number equals itself."""
    pairs = list(zip(parts(left), parts(right), strict=True))
    return all(a.shape == b.shape and bool(torch.eq(a, b).logical_or(a.isnan() & b.isnan()).all()) for a, b in pairs)


def calls(m: Method, p: Probe) -> list[Call]:
    """Every hook on the made-up batch."""
    step, x_next, sigma, sigma_next = p.noisy()
    logp, adv = torch.tensor([-1.0, 0.3, 2.0]), torch.tensor([1.0, -1.0, 0.5])
    found = [
        Call("transition", m.transition, (p.x, p.v, p.sigma, p.sigma_next)),
        Call("advantages", m.advantages, (made_up_rewards(),)),
        Call("select", m.select, (torch.linspace(-1, 1, PROMPTS * GROUP).reshape(1, PROMPTS, GROUP),)),
        Call("stochastic", m.stochastic, (p.sigmas, 0, torch.Generator())),
        Call("step_weights", m.step_weights, (p.sigmas,)),
        Call("surrogate", m.surrogate, (logp, logp - 0.1, adv)),
    ]
    if len(p.x) > 1:
        found.append(Call("train_steps", m.train_steps, (p.sigmas, 1, torch.Generator())))
    if len(sigma):  # eta 0 leaves no density
        ref = Gaussian(step.mean + 0.1, step.std)
        found += [
            Call("log_prob", m.log_prob, (step, x_next)),
            Call("divergence", m.divergence, (step, ref, sigma, sigma_next)),
        ]
    return found
