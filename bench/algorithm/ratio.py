"""Stored transitions scored again under the current policy: log-ratios, and how far the ratio is from 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.algorithm.rollout import Rollout
from bench.api import AnyMethod, Conditioning, Gaussian, Method, ScoredStep
from bench.core.errors import BenchError


class Predictor(Protocol):
    """The part of a backbone that scoring a transition needs."""

    def velocity(
        self,
        x: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        cond: Conditioning,
        guidance: float,
        uncond_grad: bool = True,
    ) -> Float[Tensor, "b ..."]: ...


class Rescored(NamedTuple):
    """Stored transitions of one trained step under the current policy; gradients flow into `step` and `new`."""

    x: Float[Tensor, "m ..."]
    sigma: Float[Tensor, "m"]
    sigma_next: Float[Tensor, "m"]
    step: Gaussian
    new: Float[Tensor, "m"]
    """Log-probability of the stored next latent under the current policy."""
    old: Float[Tensor, "m"]
    """Its log-probability under the policy of the rollout."""
    x_next: Float[Tensor, "m ..."]
    mean_old: Float[Tensor, "m ..."] | None
    """Mean of the step under that policy; None where the method's loss does not need it."""

    @property
    def log_ratio(self) -> Float[Tensor, "m"]:
        """Log of the importance ratio, detached."""
        return self.new.detach() - self.old


@dataclass(frozen=True)
class Rescorer:
    """Scores stored transitions under the current policy, with one call of the backbone per micro-batch."""

    backbone: Predictor
    method: Method
    guidance: float
    uncond_grad: bool = True
    """Whether gradients flow through the unconditional branch of guidance too."""

    def __call__(self, rollout: Rollout, n: int, rows: Int[Tensor, "m"]) -> Rescored:
        """The transitions of trained step n of these samples."""
        positions, (sigma, sigma_next) = rollout.local_positions(rows), rollout.levels(n, rows)
        x = rollout.x[n][positions]
        v = self.backbone.velocity(x, sigma, rollout.cond.take(rows.tolist()), self.guidance, self.uncond_grad)
        step = self.method.transition(x, v, sigma, sigma_next)
        x_next = rollout.x_next[n][positions]
        return Rescored(
            x=x,
            sigma=sigma,
            sigma_next=sigma_next,
            step=step,
            new=self.method.log_prob(step, x_next),
            old=rollout.logp_old[n][positions],
            x_next=x_next,
            mean_old=None if rollout.mean_old is None else rollout.mean_old[n][positions],
        )


def policy_loss(method: Method, rescored: Rescored, adv: Float[Tensor, "m"]) -> Float[Tensor, "m"]:
    """The method's loss of stored transitions for one advantage per sample, checked."""
    if rescored.mean_old is None:
        loss = method.surrogate(rescored.new, rescored.old, adv)
    else:
        new = ScoredStep(*rescored.step, rescored.new)
        old = ScoredStep(rescored.mean_old, rescored.step.std.detach(), rescored.old)
        loss = method.policy_loss(new, old, rescored.x_next, adv, rescored.sigma, rescored.sigma_next)
    return checked_loss(method, loss, adv)


def checked_loss(method: AnyMethod, loss: Float[Tensor, "m"], adv: Float[Tensor, "m"]) -> Float[Tensor, "m"]:
    """The loss, if it has one value per sample; whether it is finite is checked on all processes together."""
    name = type(method).__name__
    if loss.shape != adv.shape:
        raise BenchError(f"{name}'s loss has the shape {list(loss.shape)}: return one value per sample, {[len(adv)]}.")
    return loss


def ratio_error(log_ratio: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """|ratio - 1| of each transition."""
    return (torch.exp(log_ratio) - 1).abs()
