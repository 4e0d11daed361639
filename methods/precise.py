"""Precise: the linear SDE of flow matching solved exactly over a step, with the predicted clean latent held fixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Gaussian, Method
from bench.flow import reverse_step


@dataclass(frozen=True, kw_only=True)
class Precise(Method):
    """Precise's transition: the share `kept` of the predicted noise stays, and fresh noise fills up to sigma_next.

    With X the predicted clean latent and E the predicted noise, mean = (1 - sigma_next) X + sigma_next kept E and
    std = sigma_next sqrt(1 - kept^2): where X and E are exact, the marginal at sigma_next is kept for every eta. CPS
    has the same mean with a share that does not depend on the step. eta = sqrt 2 is SDE-DPM-Solver++ of first order.
    Reference code: Tencent-Hunyuan/Precise, precise_sde/diffusers_patch/sde_with_logprob.py.
    Departs: std has no lower limit; the code has 1e-6, which a deterministic step may not have here.
    Departs: the weight std / |J| multiplies the loss; the code raises the ratio to the power of std and divides by
      |J|, so its clip range of 4e-6 is one of another ratio. At ratio 1 both are equal.
    """

    paper: ClassVar[str] = (
        'arXiv:2605.23522, "Precise: SDE-Consistent Stochastic Sampling for RL Post-Training of Flow-Matching Models"'
    )

    eta: float = 1.5
    """Noise scale, at least 0. It does not mean what it does in Flow-GRPO or CPS."""
    process: Literal["flow", "dance"] = "flow"
    """The SDE: of the noise rate eta sqrt(sigma / (1 - sigma)), or DanceGRPO's of the constant rate eta."""
    weighting: Literal["off", "equal", "guard", "std", "longcat"] = "equal"
    """Weights of the steps; the released trainer has std / |J|."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.process not in ("flow", "dance"):
            raise BenchError(f"Precise: process is {self.process!r}; choose one of 'flow', 'dance'.")

    def transition(
        self,
        x: Float[Tensor, "b ..."],
        v: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Gaussian:
        """One step; deterministic with eta = 0 and at sigma_next = 0."""
        now, after = sigma.double(), sigma_next.double()
        if self.process == "flow":
            kept = (after * (1 - now) / (now * (1 - after))) ** (self.eta**2 / 2)
        else:
            end = after.clamp_min(torch.finfo(torch.float64).tiny)
            kept = torch.exp(-(self.eta**2) * (1 / end - 1 / now) / 2)
        return reverse_step(x, v, sigma, sigma_next, after * (1 - kept), after**2 * (1 - kept**2))
