"""Flow-GRPO: online policy gradients for flow matching through a marginal-preserving SDE."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from bench.api import LATE, OPEN, Gaussian, Method
from bench.flow import flow_sde_step


@dataclass(frozen=True, kw_only=True)
class FlowGRPO(Method):
    """Flow-GRPO's transition: the noise rate eta sqrt(sigma / (1 - sigma)), constant over the step at its first value.

    Reference code: yifan123/flow_grpo, flow_grpo/diffusers_patch/sd3_sde_with_logprob.py, sde_step_with_logprob.
    Departs: sigma_max, which replaces sigma = 1 in the noise rate, is the step's own `sigma_next` and not the
      schedule's second entry; the two are equal on every rollout that starts at 1.
    Departs: std is that of the step, with the factor sqrt(sigma - sigma_next); the code returns the rate without it.
    Departs: the score is -predicted_noise / sigma directly, which loses fewer digits than a computation through x0.
    """

    paper: ClassVar[str] = 'arXiv:2505.05470, "Flow-GRPO: Training Flow Matching Models via Online RL"'

    eta: float = 0.7
    """Noise scale `a` of the paper, at least 0; 0.7 is `sample.noise_level` of the released config/base.py."""

    drop_zero_advantages: bool = field(default=False, metadata=LATE | OPEN)
    """Whether samples of advantage 0 are left out of the update, as scripts/train_sd3.py does (open division)."""

    def transition(
        self,
        x: Float[Tensor, "b ..."],
        v: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Gaussian:
        """One step with variance eta^2 (sigma - sigma_next) sigma / (1 - sigma); eta^2 exactly at sigma = 1."""
        return flow_sde_step("FlowGRPO", x, v, sigma, sigma_next, self.eta)

    def select(self, adv: Float[Tensor, "k p g"]) -> Bool[Tensor, "p g"]:
        """All samples, or those with an advantage.

        Departs: the code pads the remaining samples to a multiple of its batches by drawing some again; here fewer
          samples train.
        """
        return (adv != 0).any(0) if self.drop_zero_advantages else super().select(adv)

    def divergence(
        self, step: Gaussian, ref: Gaussian, sigma: Float[Tensor, "b"], sigma_next: Float[Tensor, "b"]
    ) -> Float[Tensor, "b"]:
        """Squared distance of the means over twice the squared noise rate, as scripts/train_sd3.py computes its KL.

        The rate does not include the step's length, so this is (sigma - sigma_next) times the Gaussian KL.
        """
        length = (sigma.double() - sigma_next.double()).to(step.std)
        return super().divergence(step, ref, sigma, sigma_next) * length
