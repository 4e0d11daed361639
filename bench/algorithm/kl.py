"""KL policies: the references of a row's KL terms, the weights of the terms and the controllers of the weights.

Any method works with any KL policy; `bench.api.KLPolicy` is their interface. The policies here have two terms.
"anchor": `Method.divergence` between the steps of the policy and of an anchor on the same latents. "stepwise":
mean(logp_old - logp_new) against the policy that sampled the rollout. All defaults are those of SAGE-GRPO's dual trust
region (arXiv:2603.21872; Tencent-Hunyuan/SAGE-GRPO, hyvideo/utils/grpo_utils.py).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from bench.api import KLPolicy, KLStep, RefreshRule
from bench.core.errors import BenchError, DivergedError

Controller = Literal["released", "usual", "constant"]
State = dict[str, Any]

RAMP = 100
"""Ticks of the linear ramp. These constants are those of hyvideo/commons/grpo_commons.py, AdaptiveKLController."""
WINDOW = 10
"""KL values that are averaged after the ramp."""
TOO_HIGH, TOO_LOW = 1.5, 0.5
"""Bounds of the mean KL over the target; within them the coefficient stays."""
WEAKER, STRONGER = 0.9, 1.1
"""Factors of the coefficient outside of these bounds."""


def _check_weights(**weights: float) -> None:
    for name, value in weights.items():
        if not 0 <= value < math.inf:
            raise BenchError(f"KL policy: {name} is {value}; set it to a finite value of at least 0.")


@dataclass(frozen=True, kw_only=True)
class NoKL(KLPolicy):
    """No KL term."""

    def anchors(self) -> dict[str, RefreshRule]:
        return {}

    def weights(self, state: Mapping[str, Any]) -> dict[str, float]:
        return {}

    def terms(self, step: KLStep) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True, kw_only=True)
class ControlledKL(KLPolicy):
    """A KL whose coefficient a controller moves between `min_weight` and `weight`.

    `released`: a linear ramp from min_weight over the first 99 ticks; from tick 100 on, the mean of the last 10 KL
    values above 1.5 times the target multiplies the coefficient by 0.9, below half of the target by 1.1. The target is
    `weight`, as released. `usual`: the same with the two factors swapped, so that a KL above the target strengthens
    the penalty. `constant`: `weight` from the first tick on.
    Departs: the paper describes two stages, a small weight and then a large one; `constant` gives either stage, the
      default is the released code's ramp and controller.
    Departs: the controller ticks once per trained step with the mean over all samples; the released code ticks once
      per micro-batch, separately on each rank, so that ranks may disagree.
    """

    weight: float = 1e-5
    """Largest coefficient and, for the adaptive controllers, also the target KL (kl_weight)."""
    min_weight: float = 1e-7
    """Smallest coefficient, and the first one (kl_min_coef, kl_coef)."""
    controller: Controller = "released"
    """How the coefficient moves."""

    def __post_init__(self) -> None:
        _check_weights(weight=self.weight, min_weight=self.min_weight)
        if self.controller not in get_args(Controller):
            raise BenchError(
                f"KL policy: controller is {self.controller!r}; choose one of {', '.join(get_args(Controller))}."
            )
        if self.controller != "constant" and self.min_weight > self.weight:
            raise BenchError(
                f"KL policy: min_weight {self.min_weight} is above weight {self.weight}; swap or lower it."
            )

    @abstractmethod
    def term_weights(self) -> dict[str, float]:
        """Weights of the terms in the KL that the controller measures."""

    def terms(self, step: KLStep) -> dict[str, Tensor]:
        """The divergence from the anchor, and the estimate of the KL to the rollout policy: those with a weight."""
        values = {"stepwise": step.logp_old - step.logp_new}
        for divergence in step.divergences.values():  # of the only anchor with a forward pass
            values["anchor"] = divergence
        return {name: values[name] for name in self.term_weights()}

    def init_state(self) -> State:
        start = self.weight if self.controller == "constant" else self.min_weight
        return {"ticks": 0, "coefficient": start, "recent": []}

    def weights(self, state: Mapping[str, Any]) -> dict[str, float]:
        return {term: state["coefficient"] * weight for term, weight in self.term_weights().items()}

    def next_state(self, state: Mapping[str, Any], logs: Mapping[str, float]) -> State:
        missing = sorted(set(self.term_weights()) - set(logs))
        if missing:
            raise BenchError(f"KL policy: the value of the term '{missing[0]}' is missing from the logs.")
        kl = sum(weight * float(logs[term]) for term, weight in self.term_weights().items())
        if not math.isfinite(kl):
            raise DivergedError(f"KL policy: the KL is {kl} at tick {state['ticks']} (terms {dict(logs)}).")
        ticks, recent = state["ticks"] + 1, [*state["recent"], kl][-WINDOW:]
        return {
            "ticks": ticks,
            "coefficient": self._coefficient(state["coefficient"], ticks, recent),
            "recent": recent,
        }

    def _coefficient(self, coefficient: float, ticks: int, recent: list[float]) -> float:
        if self.controller == "constant":
            return coefficient
        if ticks < RAMP:
            return self.min_weight + (self.weight - self.min_weight) * ticks / RAMP
        mean = sum(recent) / len(recent)
        high_factor, low_factor = (WEAKER, STRONGER) if self.controller == "released" else (STRONGER, WEAKER)
        if mean > TOO_HIGH * self.weight:
            coefficient *= high_factor
        elif mean < TOO_LOW * self.weight:
            coefficient *= low_factor
        return max(self.min_weight, min(coefficient, self.weight))


@dataclass(frozen=True, kw_only=True)
class FixedKL(ControlledKL):
    """KL to the frozen base model (released code: use_moving_KL off, use_dual_kl off)."""

    def anchors(self) -> dict[str, RefreshRule]:
        return {"fixed": RefreshRule()}

    def term_weights(self) -> dict[str, float]:
        return {"anchor": 1.0}


@dataclass(frozen=True, kw_only=True)
class MovingKL(ControlledKL):
    """KL to a copy of the policy, refreshed every `every` updates; before the first refresh, to the base model."""

    every: int = 10
    """Updates between refreshes (update_ref_model_step)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        RefreshRule(every=self.every)  # for its check

    def anchors(self) -> dict[str, RefreshRule]:
        return {"moving": RefreshRule(every=self.every)}

    def term_weights(self) -> dict[str, float]:
        return {"anchor": 1.0}


@dataclass(frozen=True, kw_only=True)
class StepwiseKL(ControlledKL):
    """KL to the rollout policy as released: the one-sample estimate mean(logp_old - logp_new).

    With one optimizer step per update its value is 0, and its gradient adds the weight to every advantage.
    Departs: no reference network is evaluated; the released code has no flag for this term alone and still runs one.
    Departs: the paper writes KL(policy || policy of the update before), which is {name: moving, params: {every: 1}}
      here; the default is the released code's estimate.
    """

    step_weight: float = 0.1
    """Weight of the term (dual_kl_step_weight)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_weights(step_weight=self.step_weight)

    def anchors(self) -> dict[str, RefreshRule]:
        return {"previous": RefreshRule(network=False)}

    def term_weights(self) -> dict[str, float]:
        return {"stepwise": self.step_weight}


@dataclass(frozen=True, kw_only=True)
class DualKL(ControlledKL):
    """SAGE-GRPO's dual trust region: a moving (or fixed) anchor plus the stepwise term."""

    anchor: Literal["moving", "fixed"] = "moving"
    """Reference of the anchor term (use_moving_KL)."""
    every: int = 10
    """Updates between refreshes of a moving anchor (update_ref_model_step)."""
    moving_weight: float = 1.0
    """Weight of the anchor term (dual_kl_moving_weight)."""
    step_weight: float = 0.1
    """Weight of the stepwise term (dual_kl_step_weight)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_weights(moving_weight=self.moving_weight, step_weight=self.step_weight)
        RefreshRule(every=self.every)  # for its check

    def anchors(self) -> dict[str, RefreshRule]:
        rule = RefreshRule(every=self.every if self.anchor == "moving" else None)
        return {self.anchor: rule, "previous": RefreshRule(network=False)}

    def term_weights(self) -> dict[str, float]:
        return {"anchor": self.moving_weight, "stepwise": self.step_weight}


def has_kl_terms(policy: KLPolicy) -> bool:
    """Whether the policy adds a term to the loss."""
    return bool(policy.weights(policy.init_state()))
