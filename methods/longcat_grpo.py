"""LongCat-Video's GRPO: Flow-GRPO's noise with a ceiling on the std of a step, and weights that undo its decline."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import OPEN, BenchError, Gaussian, Method, Rewards
from bench.flow import sde_step


@dataclass(frozen=True, kw_only=True)
class LongCatGRPO(Method):
    """LongCat's transition: the noise rate sqrt(sigma / (1 - sigma)), at most `ceiling` / sqrt(step), times eta.

    Reference code: the GenRL repository, config/longcat.yaml.
    Departs: its KL term has the square of the step weight; a KL policy here weighs all steps equally.
    Departs: it trains one noisy step of the first 6 of 16 from one initial latent per group; here the suite says how
      many steps train and whether a group shares its noise.
    """

    paper: ClassVar[str] = 'arXiv:2510.22200, "LongCat-Video Technical Report"'

    eta: float = 1.0
    """Noise scale, at least 0."""
    ceiling: float = 0.45
    """Largest std of a step at eta 1, above 0."""
    clip_range: float = 1e-3
    """PPO clip range of the released configuration."""
    weighting: Literal["off", "equal", "guard", "std", "longcat"] = "longcat"
    """Weights of the steps; the released ones do not depend on the ceiling."""
    largest_std: bool = field(default=False, metadata=OPEN)
    """Whether each reward has an advantage of its own, over the largest std of all groups (open division)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ceiling < math.inf:
            raise BenchError(f"LongCatGRPO: ceiling is {self.ceiling}; set it to a finite value above 0.")

    def transition(
        self,
        x: Float[Tensor, "b ..."],
        v: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Gaussian:
        """One step with variance eta^2 min((sigma - sigma_next) sigma / (1 - sigma), ceiling^2)."""
        now, after = sigma.double(), sigma_next.double()
        uncut = torch.where(now < 1, (now - after) * now / (1 - now), torch.inf)
        return sde_step(x, v, sigma, sigma_next, self.eta**2 * uncut.clamp_max(self.ceiling**2))

    def advantages(self, rewards: Rewards) -> Float[Tensor, "k p g"]:
        """Those of the suite's rule, or with `largest_std` one per reward over the largest std of all groups."""
        if not self.largest_std:
            return super().advantages(rewards)
        rewards.check()
        parts = []
        for values in rewards.separate():
            tied = (values.amax(1) == values.amin(1))[:, None]
            centred = torch.where(tied, torch.zeros_like(values), values - values.mean(1, keepdim=True))
            parts.append(centred if tied.all() else centred / values.std(1, correction=0).max())
        return torch.stack(parts)
