"""AWM, advantage weighted matching: a policy gradient whose log-likelihood is the error of flow matching."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, ForwardMethod, ForwardPoint, latent_mean

LARGEST = 5.0
"""Largest absolute advantage, by which advantages are divided."""
LEAST = 1e-10
"""Added to the squared error before a root of it."""
HIGHEST = 0.9
"""Share of the noise levels that train, from 1 down."""


@dataclass(frozen=True, kw_only=True)
class AWM(ForwardMethod):
    """PPO's loss with the log-likelihood l = -error of the velocity at a noised video, sigma-weighted and flattened.

    Reference code: the AWM repository at commit be51372, scripts/train_sd3_awm.py and config/dgx_awm.py.
    Departs: advantages are those of the suite's rule; the code divides by the std of all samples.
    Departs: one old policy, that of the rollout, is in the ratio and in the distance that keeps the policy near; the
      code has an average of past policies in the latter, whose decay is 0.001 per update, at most 0.3.
    Departs: the noise levels are uniform in strata of [0.1, 1]; the code takes those of its sampler's 14 steps.
    """

    paper: ClassVar[str] = (
        'arXiv:2509.25050, "Advantage Weighted Matching: Aligning RL with Pretraining in Diffusion Models"'
    )
    references: ClassVar[frozenset[str]] = frozenset({"old", "base"})

    likelihood: Literal["ghuber", "huber"] = "ghuber"
    """How the squared error e becomes -l: `ghuber` (sigma / power) e^power, `huber` sigma sqrt(e)."""
    power: float = 0.25
    """Exponent of `ghuber`, above 0."""
    clip_range: float = 1.0
    """PPO clip range of the ratio exp(l - old l), above 0; it acts from the second optimizer step of an update on.

    Every released configuration sets 1; the base configuration of the code has 1e-4.
    """
    base_weight: float = 1e-3
    """Weight of the squared distance to the base model's velocity, at least 0; the configurations of the code
    have 0.0001 (PickScore) to 0.003 (GenEval, OCR)."""
    old_weight: float = 1.0
    """Weight of the squared distance to the old policy's velocity, at least 0."""

    def __post_init__(self) -> None:
        for name in ("power", "clip_range"):
            if not 0 < getattr(self, name) < math.inf:
                raise BenchError(f"AWM: {name} is {getattr(self, name)}; set it to a finite value above 0.")
        for name in ("base_weight", "old_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BenchError(f"AWM: {name} is {getattr(self, name)}; set it to a finite value of at least 0.")
        if self.likelihood not in ("ghuber", "huber"):
            raise BenchError(f"AWM: likelihood is {self.likelihood!r}; choose one of 'ghuber', 'huber'.")

    def noise_levels(self, shape: tuple[int, int], rng: torch.Generator) -> Float[Tensor, "b n"]:
        """One level in each of n equal parts of [0.1, 1], the highest first."""
        part = (torch.arange(shape[1]) + torch.rand(shape, generator=rng)) / shape[1]
        return 1 - HIGHEST * part

    def log_likelihood(self, point: ForwardPoint, v: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
        """l of this velocity."""
        error = latent_mean((v - (point.noise - point.x0)) ** 2) + LEAST
        power = 0.5 if self.likelihood == "huber" else self.power
        factor = 1.0 if self.likelihood == "huber" else 1 / power
        flattened: Tensor = error.pow(power) - LEAST**power
        return -factor * point.sigma * flattened

    def loss(self, point: ForwardPoint, adv: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """PPO's clipped loss, and the distances to the base model and to the old policy."""
        assert point.v_old is not None
        assert point.v_ref is not None
        credit = adv.clamp(-LARGEST, LARGEST) / LARGEST
        ratio = torch.exp(self.log_likelihood(point, point.v) - self.log_likelihood(point, point.v_old))
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        near_base = self.base_weight * latent_mean((point.v - point.v_ref) ** 2)
        near_old = self.old_weight * latent_mean((point.v - point.v_old) ** 2)
        return torch.maximum(-credit * ratio, -credit * clipped) + near_base + near_old
