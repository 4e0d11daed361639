"""Stored transitions scored again under the current policy: log-ratios, and how far the ratio is from 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.algorithm.rollout import Rollout
from bench.api import Conditioning, Gaussian, Method


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
        i, positions = int(rollout.view.steps[n]), rollout.local_positions(rows)
        x = rollout.x[n][positions]
        sigma, sigma_next = rollout.sigmas[i].expand(len(rows)), rollout.sigmas[i + 1].expand(len(rows))
        v = self.backbone.velocity(x, sigma, rollout.cond.take(rows.tolist()), self.guidance, self.uncond_grad)
        step = self.method.transition(x, v, sigma, sigma_next)
        new = self.method.log_prob(step, rollout.x_next[n][positions])
        old = rollout.logp_old[n][positions]
        return Rescored(x=x, sigma=sigma, sigma_next=sigma_next, step=step, new=new, old=old)


def ratio_error(log_ratio: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """|ratio - 1| of each transition."""
    return (torch.exp(log_ratio) - 1).abs()
