"""Flow-GRPO-Fast: Flow-GRPO with noise on a short window of early steps, drawn anew for every rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bench.api import BenchError, Gaussian, Method
from bench.flow import flow_sde_step


@dataclass(frozen=True, kw_only=True)
class FlowGRPOFast(Method):
    """Flow-GRPO's transition on a window that begins in the first half of the schedule; Euler steps elsewhere.

    Reference code: yifan123/flow_grpo, the fast scripts at commit 74db691.
    Departs: one window per update; the code draws one per call of its pipeline, so that samples of one group may have
      different windows.
    Departs: a window may reach past the first half; the code keeps it inside, so its last start is the half less the
      width, and a window as wide as the half always begins at the first step.
    Departs: samples of advantage 0 train, too; the code leaves them out.
    """

    paper: ClassVar[str] = 'arXiv:2505.05470, "Flow-GRPO: Training Flow Matching Models via Online RL" (fast variant)'

    eta: float = 0.8
    """Noise scale, at least 0."""
    clip_range: float = 1e-5
    """PPO clip range of the released configuration."""
    window: int = 3
    """Noisy steps of a rollout, at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise BenchError(f"FlowGRPOFast: window is {self.window}; set it to at least 1.")

    def transition(
        self,
        x: Float[Tensor, "b ..."],
        v: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Gaussian:
        """One step of Flow-GRPO's kernel."""
        return flow_sde_step("FlowGRPOFast", x, v, sigma, sigma_next, self.eta)

    def stochastic(self, sigmas: Float[Tensor, "t1"], update: int, rng: torch.Generator) -> Bool[Tensor, "t"]:
        """`window` steps from one that is drawn among the first half."""
        step = torch.arange(len(sigmas) - 1)
        first = int(torch.randint(max(1, len(step) // 2), (1,), generator=rng))
        return (step >= first) & (step < first + self.window)
