"""RVM, reward-based velocity matching: the flow-matching error of each video, weighted by its advantage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, ForwardMethod, ForwardPoint, latent_mean

LARGEST = 5.0
"""Largest absolute advantage."""


@dataclass(frozen=True, kw_only=True)
class RVM(ForwardMethod):
    """The gradient to v is scale A (v - (noise - x0)) + beta (v - base), per latent element.

    Reference code: FastVideo, pull request 1806, fastvideo/train/methods/rl/rvm_faithful.py.
    Departs: advantages are those of the suite's rule; the code divides by the std of all samples, so that a prompt of
      widely spread rewards has most of the credit.
    Departs: without the optional warm-up on videos of positive advantage.
    """

    paper: ClassVar[str] = (
        'arXiv:2608.23664, "Scaling Reinforcement Learning for Diffusion Models via Velocity Matching"'
    )
    references: ClassVar[frozenset[str]] = frozenset({"base"})

    scale: float = 0.1
    """Factor of the advantages, above 0."""
    beta: float = 1e-3
    """Weight of the distance to the base model's velocity, at least 0. Without it a negative advantage pushes the
    velocity away without bound. The released configurations have 0 or 0.001."""

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise BenchError(f"RVM: scale is {self.scale}; set it to a finite value above 0.")
        if not 0 <= self.beta < math.inf:
            raise BenchError(f"RVM: beta is {self.beta}; set it to a finite value of at least 0.")

    def loss(self, point: ForwardPoint, adv: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Half the weighted squared errors."""
        assert point.v_ref is not None
        matching = latent_mean((point.v - (point.noise - point.x0)) ** 2)
        near_base = latent_mean((point.v - point.v_ref) ** 2)
        return (self.scale * adv.clamp(-LARGEST, LARGEST) * matching + self.beta * near_base) / 2
