"""GRPO-Guard: an importance ratio that is centred and scaled per step, so that the clip acts on all steps alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import Gaussian, Method, ScoredStep, latent_mean
from bench.flow import flow_sde_step


@dataclass(frozen=True, kw_only=True)
class GRPOGuard(Method):
    """Flow-GRPO's transition with PPO's loss of the ratio exp(std (log ratio + b)), b the Gaussians' squared distance.

    b = mean((m1 - m0)^2) / (2 std^2), of the old mean m0 and the new one m1, cancels the bias of the log-ratio, and
    the factor std its dependence on the noise of the step. With one optimizer step per rollout the ratio is 1 and the
    method is Flow-GRPO with the weights std / d.
    Reference code: zhtmike/flow_grpo, scripts/train_sd3_GRPO_Guard.py.
    Departs: the code's loss PPO / d is written as PPO / std times the step weight std / d, which the harness scales to
      mean 1: the gradient at ratio 1 is that of all closed rows.
    Departs: `clipped_share` in the log counts plain ratios beyond the clip range, not the scaled ones.
    Departs: where a suite scales clip ranges, it does so from one reference size for all methods. 2e-6 is stated for
      SD3.5's 65,536 latent elements, so on nano the range is four times as wide as by its own size.
    """

    paper: ClassVar[str] = (
        'arXiv:2510.22319, "GRPO-Guard: Mitigating Implicit Over-Optimization in Flow Matching via Regulated Clipping"'
    )

    eta: float = 0.7
    """Noise scale, at least 0."""
    clip_range: float = 2e-6
    """Clip range of the scaled ratio; 4e-6 for the PickScore reward."""
    weighting: Literal["off", "equal", "guard", "std", "longcat"] = "guard"
    """Weights of the steps, a part of the method."""

    def transition(
        self,
        x: Float[Tensor, "b ..."],
        v: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Gaussian:
        """One step of Flow-GRPO's kernel."""
        return flow_sde_step("GRPOGuard", x, v, sigma, sigma_next, self.eta)

    def policy_loss(
        self,
        new: ScoredStep,
        old: ScoredStep,
        x_next: Float[Tensor, "b ..."],
        adv: Float[Tensor, "b"],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Float[Tensor, "b"]:
        """PPO's clipped loss of the scaled ratio, over std."""
        bias = latent_mean((new.mean - old.mean) ** 2) / (2 * new.std**2)
        return self.surrogate(new.std * (new.logp - old.logp + bias), torch.zeros_like(old.logp), adv) / new.std
