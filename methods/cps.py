"""CPS: coefficients-preserving sampling, a stochastic sampler for flow matching in the manner of DDIM."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from bench.api import LATE, OPEN, Gaussian, Method, latent_mean
from bench.flow import reverse_step


@dataclass(frozen=True, kw_only=True)
class CPS(Method):
    """CPS's transition: part of the predicted noise is replaced by fresh noise of the same energy.

    The latent after the step is 1 - sigma_next times the predicted x0, plus noise of level sigma_next exactly: with
    pull k and variance S, (sigma_next - k)^2 + S = sigma_next^2. The last step, to sigma 0, is deterministic.
    Reference code: IamCreateAI/FlowCPS, flow_grpo/diffusers_patch/sd3_sde_with_logprob.py, sde_step_with_logprob.
    Departs: std is |sigma_next sin(eta pi / 2)|. The code keeps the sign, which is negative for eta in (2, 4); the
      distribution is the same.
    """

    paper: ClassVar[str] = (
        'arXiv:2509.05952, "Coefficients-Preserving Sampling for Reinforcement Learning with Flow Matching"'
    )

    eta: float = 0.7
    """Angle in quarter turns, at least 0: 0 keeps all of the predicted noise, 1 replaces it. Not monotone above 1 (1.8
    injects as much noise as 0.2). 0.7 is the default noise level of the released configs."""

    drop_zero_advantages: bool = field(default=False, metadata=LATE | OPEN)
    """Whether samples of advantage 0 are left out of the update, as scripts/train_sd3.py does (open division)."""

    def transition(
        self,
        x: Float[Tensor, "b ..."],
        v: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Gaussian:
        """One step with variance (sigma_next sin(eta pi / 2))^2 and pull sigma_next (1 - |cos(eta pi / 2)|)."""
        angle, after = self.eta * math.pi / 2, sigma_next.double()
        pull = after * (1 - abs(math.cos(angle)))
        return reverse_step(x, v, sigma, sigma_next, pull, (after * math.sin(angle)) ** 2)

    def select(self, adv: Float[Tensor, "k p g"]) -> Bool[Tensor, "p g"]:
        """All samples, or those with an advantage.

        Departs: the code pads the remaining samples to a multiple of its batches by drawing some again; here fewer
          samples train.
        """
        return (adv != 0).any(0) if self.drop_zero_advantages else super().select(adv)

    def log_prob(self, step: Gaussian, x_next: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
        """-(x_next - mean)^2, averaged over the latent, without variance and constants, so it is finite at std 0."""
        return latent_mean(-((x_next.detach() - step.mean) ** 2))

    def divergence(
        self, step: Gaussian, ref: Gaussian, sigma: Float[Tensor, "b"], sigma_next: Float[Tensor, "b"]
    ) -> Float[Tensor, "b"]:
        """Squared distance of the means, without the variance (scripts/train_sd3.py of the released code)."""
        return latent_mean((step.mean - ref.mean) ** 2)
