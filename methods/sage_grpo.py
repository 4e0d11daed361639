"""SAGE-GRPO: a precise manifold-aware SDE and a gradient equalizer over the steps; pairs with the `dual` KL policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Gaussian, Method, latent_mean
from bench.flow import sde_step

#: Floor of 1 - sigma in the variance, whose exact integral diverges at sigma = 1. In the released code only, not in
#: the paper; it decides the variance of the first step.
SIGNAL_FLOOR = 3e-3

#: Added to the variance in the released KL (hyvideo/utils/grpo_utils.py, train_one_step).
KL_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class SAGEGRPO(Method):
    """SAGE-GRPO's transition: the noise rate eta sqrt(sigma / (1 - sigma)), its variance integrated over the step.

    Reference code: Tencent-Hunyuan/SAGE-GRPO, hyvideo/schedulers/scheduling_flow_match_discrete.py,
    sde_step_with_logprob.
    Departs: a step whose variance is not positive raises; the code returns not-a-number and trains on.
    Departs: the score is -predicted_noise / sigma directly; the paper's formula lacks its code's factor 1 - sigma.
    Departs: with eta = 0 the step is the deterministic Euler step with std 0.
    """

    paper: ClassVar[str] = (
        'arXiv:2603.21872, "Manifold-Aware Exploration for Reinforcement Learning in Video Generation"'
    )

    eta: float = 0.5
    """Noise scale, at least 0; 0.5 in the released TrainingConfig (not exposed on its command line)."""
    equalizer: Literal["off", "derived", "released"] = "derived"
    """The paper's temporal gradient equalizer, on by default; both forms are equal for a Gaussian log-probability."""

    def transition(
        self,
        x: Float[Tensor, "b ..."],
        v: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Gaussian:
        """One step with variance eta^2 [ln((1 - sigma_next) / (1 - sigma)) - (sigma - sigma_next)].

        That is the integral of eta^2 s / (1 - s) from sigma_next to sigma, with 1 - sigma at least `SIGNAL_FLOOR` in
        the logarithm. Where the floor makes it zero or negative (sigma_next above about 0.997: many steps or a large
        shift), `BenchError`.
        """
        now, after = sigma.double(), sigma_next.double()
        variance = self.eta**2 * (torch.log((1 - after) / (1 - now).clamp_min(SIGNAL_FLOOR)) - (now - after))
        if self.eta > 0 and not bool((variance > 0).all()):
            i = int((~(variance > 0)).nonzero()[0])
            raise BenchError(
                f"SAGE-GRPO's variance is {variance[i]:.3g}, not positive, for the step from sigma {now[i]:.6f} to "
                f"{after[i]:.6f}: the first step must reach below about 0.997, so use fewer steps or a smaller shift "
                "(at most 67 steps with shift 5, 48 with shift 7, 37 with shift 9)."
            )
        return sde_step(x, v, sigma, sigma_next, variance)

    def divergence(
        self, step: Gaussian, ref: Gaussian, sigma: Float[Tensor, "b"], sigma_next: Float[Tensor, "b"]
    ) -> Float[Tensor, "b"]:
        """Squared distance of the means over 2 (std^2 + 1e-6): the released position term. The paper: 2 Sigma^2."""
        return latent_mean((step.mean - ref.mean) ** 2) / (2 * (step.std**2 + KL_EPSILON))
