"""DanceGRPO: group-relative policy optimization for image and video generators with a constant noise rate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from bench.api import LATE, OPEN, BenchError, Gaussian, Method
from bench.flow import sde_step


@dataclass(frozen=True, kw_only=True)
class DanceGRPO(Method):
    """DanceGRPO's transition: noise of the constant rate eta along the whole trajectory.

    Reference code: XueZeyue/DanceGRPO, fastvideo/train_grpo_hunyuan.py, flux_step. It has no KL term; a row with a KL
    policy uses the Gaussian KL of `Method.divergence`.
    Departs: the score is -predicted_noise / sigma directly, which loses fewer digits than a computation through x0.
    Departs: with eta = 0 the step is the deterministic Euler step; the code raises an error.
    """

    paper: ClassVar[str] = 'arXiv:2505.07818, "DanceGRPO: Unleashing GRPO on Visual Generation"'

    eta: float = 0.25
    """Noise rate epsilon_t of the paper, at least 0; 0.25 in the released HunyuanVideo script."""

    extremes: int = field(default=0, metadata=LATE | OPEN)
    """Best-of-n selection: number of the best and number of the worst samples of each group that train; 0: all.
    The released HunyuanVideo script keeps 4 and 4 of 24 (open division). A group of at most 2 * extremes keeps all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extremes < 0:
            raise BenchError(
                f"DanceGRPO: extremes is {self.extremes}; set it to a number of samples, or to 0 for all."
            )

    def transition(
        self,
        x: Float[Tensor, "b ..."],
        v: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Gaussian:
        """One step with variance eta^2 (sigma - sigma_next)."""
        return sde_step(x, v, sigma, sigma_next, self.eta**2 * (sigma.double() - sigma_next.double()))

    def select(self, adv: Float[Tensor, "k p g"]) -> Bool[Tensor, "p g"]:
        """All samples, or the `extremes` with the highest and with the lowest summed advantage of each group.

        Departs: the code sorts all samples of a device together. It has one group per device, so both are equal.
        """
        if self.extremes == 0:
            return super().select(adv)
        rank: Tensor = adv.sum(0).sort(dim=1, stable=True).indices.sort(dim=1).indices
        keep: Tensor = (rank < self.extremes) | (rank >= adv.shape[2] - self.extremes)
        return keep
