"""Rewards of one round, and the advantage that the suite's rule makes of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bench.core.budget import AdvantageRule
from bench.core.errors import BenchError, DivergedError


class Rewards(dict[str, Tensor]):
    """Metric name to rewards [p, g] of one round, with the suite's weights and its advantage rule."""

    def __init__(self, values: Mapping[str, Tensor], weights: Mapping[str, float], rule: AdvantageRule | None = None):
        super().__init__(values)
        self.weights = dict(weights)
        self.rule = rule or AdvantageRule()

    def total(self) -> Float[Tensor, "p g"]:
        """The weighted sum that the suite calls the reward."""
        return torch.stack([weight * self[name] for name, weight in self.weights.items()]).sum(0)

    def check(self) -> None:
        """Refuse, before any statistics, a reward that is not finite and a group that cannot have a spread."""
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
    """Groups whose values are all equal: nothing can be learnt from them."""
    return values.amax(1) == values.amin(1)


def rule_advantages(values: Float[Tensor, "p g"], rule: AdvantageRule) -> Float[Tensor, "p g"]:
    """(value - group mean) / (max(std, floor) + eps) of a reward or of their sum, clipped; exactly 0 for a tied group.

    Departs: the mean of equal numbers is rounded, and a small eps blows that rounding up (an advantage of up to 0.96
      with DanceGRPO's ddof 1 and eps 1e-8), so a tied group's advantage is set to 0 instead of computed.
    """
    if rule.std == "global":
        spread = values.std(correction=rule.ddof)
    else:
        spread = values.std(1, correction=rule.ddof, keepdim=True)
    if rule.floor is not None:
        spread = spread.clamp_min(rule.floor)
    adv = ((values - values.mean(1, keepdim=True)) / (spread + rule.eps)).clamp(-rule.clip, rule.clip)
    return torch.where(tied(values)[:, None], torch.zeros_like(adv), adv)
