"""Flow-DPPO: no clip of the ratio; a step is left out once its Gaussian is too far from that of the rollout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Gaussian, Method, ScoredStep, latent_mean
from bench.flow import flow_sde_step


@dataclass(frozen=True, kw_only=True)
class FlowDPPO(Method):
    """Flow-GRPO's transition with the loss -A ratio, masked by the divergence of the step's two Gaussians.

    A sample's step is left out if mean((m1 - m0)^2) / (2 std^2) is at least `threshold` and the gradient would move
    the policy further away: a ratio above 1 of a good sample, or below 1 of a bad one. With one optimizer step per
    rollout the gradient is Flow-GRPO's.
    Reference code: UniRL, flowdppo.py.
    Departs: the code adds noise at 3 steps of the first half of 10; here the suite says how many noisy steps train.
    """

    paper: ClassVar[str] = (
        'arXiv:2606.11025, "Flow-DPPO: Divergence Proximal Policy Optimization for Flow Matching Models"'
    )

    eta: float = 0.7
    """Noise scale, at least 0."""
    threshold: float = 1e-5
    """Divergence per latent element from which on steps are left out, above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold < math.inf:
            raise BenchError(f"FlowDPPO: threshold is {self.threshold}; set it to a finite value above 0.")

    def transition(
        self,
        x: Float[Tensor, "b ..."],
        v: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Gaussian:
        """One step of Flow-GRPO's kernel."""
        return flow_sde_step("FlowDPPO", x, v, sigma, sigma_next, self.eta)

    def policy_loss(
        self,
        new: ScoredStep,
        old: ScoredStep,
        x_next: Float[Tensor, "b ..."],
        adv: Float[Tensor, "b"],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Float[Tensor, "b"]:
        """-A ratio, or 0 for a step that is too far away and would go further."""
        ratio = torch.exp(new.logp - old.logp)
        distance = latent_mean((new.mean.detach() - old.mean) ** 2) / (2 * new.std**2)
        away = (ratio.detach() - 1) * adv > 0
        return torch.where((distance >= self.threshold) & away, 0.0, -adv * ratio)
