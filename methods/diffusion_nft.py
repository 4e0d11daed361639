"""DiffusionNFT: videos noised again pull the velocity, good ones towards their noise and bad ones away from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, ForwardMethod, ForwardPoint, latent_mean
from bench.flow import predicted_x0

LARGEST = 5.0
"""Largest absolute advantage; it maps to the shares 0 and 1."""
FLOOR = 1e-5
"""Least divisor of an error."""


@dataclass(frozen=True, kw_only=True)
class DiffusionNFT(ForwardMethod):
    """Two implicit policies around the old one, v+ = old + beta (v - old) and v- = old - beta (v - old).

    The loss is q L+ + (1 - q) L-, with the errors L of the clean latents that they predict, each over its own mean
    absolute error, and q in [0, 1] the advantage from -5 to 5.
    Reference code: NVlabs/DiffusionNFT at commit 24af555, scripts/train_nft_sd3.py and config/nft.py.
    Departs: advantages are those of the suite's rule; the code divides by the std of all samples.
    Departs: the suite's sampler makes the videos; the code has a second-order solver.
    Departs: the old policy's decay counts updates; the code counts optimizer steps, so with several of them per
      rollout its old policy follows more slowly.
    Departs: the noise levels are uniform; the code trains at the first nine of its sampler's ten.
    """

    paper: ClassVar[str] = 'arXiv:2509.16117, "DiffusionNFT: Online Diffusion Reinforcement with Forward Process"'
    references: ClassVar[frozenset[str]] = frozenset({"old", "base"})
    rollout_policy: ClassVar[Literal["policy", "old"]] = "old"

    beta: float = 1.0
    """Distance of the implicit policies from the old one, above 0; 0.1 for the OCR reward and mixed ones."""
    base_weight: float = 1e-4
    """Weight of the squared distance to the base model's velocity, at least 0."""
    decay: Literal["early", "late"] = "early"
    """How the old policy follows: `early` keeps 0.001 update, at most 0.5; `late` nothing before update 75 and then
    0.0075 (update - 75), at most 0.999."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise BenchError(f"DiffusionNFT: beta is {self.beta}; set it to a finite value above 0.")
        if not 0 <= self.base_weight < math.inf:
            raise BenchError(f"DiffusionNFT: base_weight is {self.base_weight}; set it to 0 or a finite value above.")
        if self.decay not in ("early", "late"):
            raise BenchError(f"DiffusionNFT: decay is {self.decay!r}; choose one of 'early', 'late'.")

    def loss(self, point: ForwardPoint, adv: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """The contrast of the two implicit policies, and the distance to the base model."""
        assert point.v_old is not None
        assert point.v_ref is not None
        share = adv.clamp(-LARGEST, LARGEST) / (2 * LARGEST) + 0.5
        step = self.beta * (point.v - point.v_old)
        good, bad = self._error(point, point.v_old + step), self._error(point, point.v_old - step)
        contrast = LARGEST * (share * good + (1 - share) * bad) / self.beta
        return contrast + self.base_weight * latent_mean((point.v - point.v_ref) ** 2)

    def _error(self, point: ForwardPoint, v: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
        """Squared error of the predicted clean latent over its mean absolute error."""
        gap = predicted_x0(point.x, v, point.sigma) - point.x0
        return latent_mean(gap**2) / latent_mean(gap.detach().abs()).clamp_min(FLOOR)

    def old_decay(self, update: int) -> float:
        """The share that the old policy keeps after this update; see `decay`."""
        return min(0.001 * update, 0.5) if self.decay == "early" else min(0.0075 * max(update - 75, 0), 0.999)
