"""The advantages of an update and the samples that train, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bench.api import AnyMethod
from bench.core.errors import BenchError, DivergedError
from bench.core.rewards import Rewards


@dataclass(frozen=True)
class Advantages:
    """Advantages of the b samples of an update, in their order."""

    adv: Float[Tensor, "k b"]
    """One advantage per sample, or one per reward, times the sign of the reward's weight."""
    weights: list[float]
    """Weight of the loss of each of the k advantages, at least 0."""
    keep: Bool[Tensor, "b"]
    """Marks the samples that train."""

    @classmethod
    def compute(cls, method: AnyMethod, rewards: Rewards, closed: bool = False) -> Advantages:
        """The method's advantages and selection, after checks of their shapes and that all values are finite.

        `closed`: those of `AnyMethod`, whatever the class has: the row stands in the closed division.
        """
        rewards.check()
        name, (p, g) = type(method).__name__, next(iter(rewards.values())).shape
        adv = AnyMethod.advantages(method, rewards) if closed else method.advantages(rewards)
        if adv.ndim != 3 or adv.shape[1:] != (p, g):
            raise BenchError(f"{name}.advantages returned {list(adv.shape)}: return [k, {p}, {g}].")
        if not torch.isfinite(adv).all():
            raise DivergedError(f"{name}.advantages is not finite: a group may be tied; add an epsilon to its std.")
        if len(adv) not in (1, len(rewards.weights)):
            raise BenchError(
                f"{name}.advantages returned {len(adv)} advantages: return one, or one per reward "
                f"({len(rewards.weights)}: {', '.join(rewards.weights)})."
            )
        weights = [1.0] if len(adv) == 1 else list(rewards.weights.values())
        adv = adv * torch.tensor([math.copysign(1.0, weight) for weight in weights])[:, None, None]
        keep = (AnyMethod.select(method, adv) if closed else method.select(adv)).flatten()
        if not keep.any():
            raise DivergedError(f"{name}.select keeps no sample of this update: nothing is left to train on.")
        return cls(adv.flatten(1), [abs(weight) for weight in weights], keep)
