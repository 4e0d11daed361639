"""DanceGRPO: group-relative policy optimization for image and video generators with a constant noise rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from bench.api import Gaussian, Method
from bench.flow import sde_step


@dataclass(frozen=True, kw_only=True)
class DanceGRPO(Method):
    """DanceGRPO's transition: noise of the constant rate eta along the whole trajectory.

    Reference code: XueZeyue/DanceGRPO, fastvideo/train_grpo_hunyuan.py, flux_step. The origin has no KL term; where a
    row asks for one, the Gaussian KL of `Method.divergence` is used.
    Departs: the score is -predicted_noise / sigma directly, which loses fewer digits than going through x0.
    Departs: with eta = 0 the step is the deterministic Euler step; the code raises there.
    """

    paper: ClassVar[str] = 'arXiv:2505.07818, "DanceGRPO: Unleashing GRPO on Visual Generation"'

    eta: float = 0.25
    """Noise rate epsilon_t of the paper, at least 0; 0.25 in the released HunyuanVideo script."""

    def transition(
        self,
        x: Float[Tensor, "b ..."],
        v: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Gaussian:
        """One step with variance eta^2 (sigma - sigma_next)."""
        return sde_step(x, v, sigma, sigma_next, self.eta**2 * (sigma.double() - sigma_next.double()))
