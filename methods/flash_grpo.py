"""Flash-GRPO: one noisy step per prompt, drawn among the early ones, with its gradient freed of the step's noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bench.api import Gaussian, Method
from bench.flow import sde_step


@dataclass(frozen=True, kw_only=True)
class FlashGRPO(Method):
    """One noisy step per prompt, equal for its whole group, so that the rewards of a group compare at the same step.

    `budget.train_steps` is 1. The noise rate is eta sigma.
    Reference code: Shredded-Pork/Flash-GRPO at commit 4211013.
    Departs: the weights are computed; the code has ten numbers, up to 0.1 % below its own formula.
    Departs: eta replaces the schedule's second noise level, by which the code multiplies sigma (0.983 for 20 steps
      with shift 3): a kernel sees its own step only.
    """

    paper: ClassVar[str] = (
        'arXiv:2605.15980, "Flash-GRPO: Efficient Alignment for Video Diffusion via One-Step Policy Optimization"'
    )
    per_prompt: ClassVar[bool] = True

    eta: float = 1.0
    """Noise scale, at least 0."""
    clip_range: float = 1e-3
    """PPO clip range of the released configuration."""
    weighting: Literal["off", "equal", "guard", "std", "longcat"] = "equal"
    """Weights of the steps; the paper divides std / |J| by its mean over the batch."""

    def transition(
        self,
        x: Float[Tensor, "b ..."],
        v: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Gaussian:
        """One step with variance (eta sigma)^2 (sigma - sigma_next)."""
        now, after = sigma.double(), sigma_next.double()
        return sde_step(x, v, sigma, sigma_next, (self.eta * now) ** 2 * (now - after))

    def stochastic(self, sigmas: Float[Tensor, "t1"], update: int, rng: torch.Generator) -> Bool[Tensor, "t"]:
        """One step among the first half of the schedule."""
        steps = len(sigmas) - 1
        return torch.arange(steps) == int(torch.randint(max(1, steps // 2), (1,), generator=rng))
