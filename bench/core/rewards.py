"""Rewards of one update, and the suite's rule that turns them into advantages."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bench.core.budget import AdvantageSettings
from bench.core.errors import BenchError, DivergedError


@dataclass(frozen=True)
class AdvantageRule(ABC):
    """How rewards become advantages, the same for all rows of a suite. A frozen dataclass of parameters."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    @abstractmethod
    def advantages(self, rewards: Rewards) -> Float[Tensor, "k p g"]:
        """One advantage per sample (k = 1), or one per reward in the order of `rewards.weights`, all finite.

        A single one is that of the weighted rewards, the sign of a weight included. The harness weights several: each
        is multiplied by the sign of its reward's weight, and its loss by the weight's size.

        A pure function of rewards that are finite, with at least two samples per group. A group whose rewards are all
        equal has advantages of exactly 0: it carries no information.
        """


class Rewards(dict[str, Tensor]):
    """Rewards of one update by metric name, each [p, g] (prompts, samples of a group).

    `weights` are the suite's weights by metric name, `rule` is its advantage rule.
    """

    def __init__(self, values: Mapping[str, Tensor], weights: Mapping[str, float], rule: AdvantageRule | None = None):
        super().__init__(values)
        self.weights = dict(weights)
        self.rule = rule or StandardizedAdvantages()

    def total(self) -> Float[Tensor, "p g"]:
        """The reward: the weighted sum of the metrics."""
        return torch.stack([weight * self[name] for name, weight in self.weights.items()]).sum(0)

    def separate(self) -> list[Float[Tensor, "p g"]]:
        """The values of each reward, for an advantage of its own; those of a single one are weighted already."""
        return [self.total()] if len(self.weights) == 1 else [self[name] for name in self.weights]

    def check(self) -> None:
        """Raise on a reward that is not finite (`DivergedError`) and on groups of one sample (`BenchError`)."""
        for metric, values in self.items():
            if not torch.isfinite(values).all():
                p, g = (int(i) for i in (~torch.isfinite(values)).nonzero()[0])
                raise DivergedError(
                    f"reward {metric} is not finite (sample {g} of prompt {p}): look at the saved sample and at the "
                    "evaluator."
                )
            if values.shape[1] < 2:
                raise BenchError(
                    f"reward {metric} has one sample per prompt, so every advantage is 0 or undefined: "
                    "set budget.group_size to at least 2."
                )


def tied(values: Float[Tensor, "p g"]) -> Bool[Tensor, "p"]:
    """Marks the groups whose values are all equal: their advantages are 0."""
    return values.amax(1) == values.amin(1)


@dataclass(frozen=True)
class StandardizedAdvantages(AdvantageSettings, AdvantageRule):
    """The packaged rule: rewards are centred on their group, divided by a std, and clipped."""

    def advantages(self, rewards: Rewards) -> Float[Tensor, "k p g"]:
        """Those of each reward with `std: each`, else those of the weighted sum."""
        if self.std == "each":
            return torch.stack([standardized(values, self) for values in rewards.separate()])
        return standardized(rewards.total(), self)[None]


def standardized(values: Float[Tensor, "p g"], rule: AdvantageSettings) -> Float[Tensor, "p g"]:
    """(value - group mean) / (max(std, floor) + eps), clipped to [-clip, clip]; exactly 0 for a tied group.

    `values` are those of one reward or the weighted sum of all.

    Departs: the mean of equal numbers is rounded, and a small eps blows that rounding up (an advantage of up to 0.96
      with DanceGRPO's ddof 1 and eps 1e-8), so a tied group's advantage is set to 0 instead of computed.
    """
    if rule.std == "global":
        std = values.std(correction=rule.ddof)
    else:
        std = values.std(1, correction=rule.ddof, keepdim=True)
    if rule.floor is not None:
        std = std.clamp_min(rule.floor)
    adv = ((values - values.mean(1, keepdim=True)) / (std + rule.eps)).clamp(-rule.clip, rule.clip)
    return torch.where(tied(values)[:, None], torch.zeros_like(adv), adv)


@dataclass(frozen=True)
class WhitenedAdvantages(AdvantageRule):
    """GDPO's credit (arXiv:2601.05242): each reward is standardised in its group, and the sum over the update.

    So a reward of small spread counts as much as one of large spread, and the weights alone decide between them.
    """

    eps: float = 1e-4
    """Added to each std, at least 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.eps < math.inf:
            raise BenchError(f"advantage rule whitened: eps is {self.eps}; set it to a finite value of at least 0.")

    def advantages(self, rewards: Rewards) -> Float[Tensor, "k p g"]:
        """The weighted sum of the rewards' z-scores per group, over its std in the update.

        Departs: a group in which every reward is tied has advantages of exactly 0; the rounded mean over the update
          would leave it some 1e-9.
        """
        each = AdvantageSettings(eps=self.eps, clip=torch.finfo(torch.float32).max)
        parts = [weight * standardized(rewards[name], each) for name, weight in rewards.weights.items()]
        summed = torch.stack(parts).sum(0)
        scale = (summed.std(correction=0) + self.eps).clamp_min(torch.finfo(summed.dtype).tiny)  # eps 0, all tied
        whitened = (summed - summed.mean()) / scale
        still = torch.stack([tied(rewards[name]) for name in rewards.weights]).all(0)
        return torch.where(still[:, None], torch.zeros_like(whitened), whitened)[None]
