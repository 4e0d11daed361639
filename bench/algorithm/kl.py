"""KL policies: which reference a row is held to, how strongly, and how the strength moves. Any method, any policy.

A policy is a frozen set of hyper-parameters; its state is a plain dictionary (JSON) that the harness keeps and
checkpoints. Two terms exist. "anchor": `Method.divergence` between the policy's step and an anchor's on the same
latents. "stepwise": mean(logp_old - logp_new) against the policy that sampled the rollout. All defaults are those of
SAGE-GRPO's dual trust region (arXiv:2603.21872; Tencent-Hunyuan/SAGE-GRPO, hyvideo/utils/grpo_utils.py).

The harness, once per update: refresh every anchor whose rule is due. Once per trained step of the schedule: read
`weights(state)`, add weight * mean(term) to the loss, then call `next_state(state, {term: mean over all samples})`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from bench.api import BenchError, DivergedError

AnchorName = Literal["fixed", "moving", "previous"]
Controller = Literal["released", "usual", "constant"]
Term = Literal["anchor", "stepwise"]
State = dict[str, Any]

#: Ticks of the linear ramp, KL values averaged after it, and the band and factors of the adaptation
#: (hyvideo/commons/grpo_commons.py, AdaptiveKLController).
RAMP = 100
WINDOW = 10
TOO_HIGH, TOO_LOW = 1.5, 0.5
WEAKER, STRONGER = 0.9, 1.1


@dataclass(frozen=True)
class RefreshRule:
    """When an anchor becomes a copy of the current policy, and whether it costs network evaluations."""

    every: int | None = None
    """Updates between refreshes; None for an anchor that is never refreshed by the harness."""
    network: bool = True
    """Whether the anchor needs a forward pass of its own; False for the rollout policy, whose log-probs are stored."""

    def due(self, update: int) -> bool:
        """Whether to refresh before the rollout of this update (the first update is 0)."""
        return self.every is not None and update > 0 and update % self.every == 0


@dataclass(frozen=True, kw_only=True)
class KLPolicy:
    """No KL at all, and the interface of every policy."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  (pydantic's own hook, not a field)

    def anchors(self) -> dict[AnchorName, RefreshRule]:
        """References by name: "fixed" (frozen base), "moving" (copy of the policy), "previous" (rollout policy)."""
        return {}

    def term_weights(self) -> dict[Term, float]:
        """How the terms add up to the KL that the controller watches."""
        return {}

    def init_state(self) -> State:
        """The state before the first update."""
        return {}

    def weights(self, state: Mapping[str, Any]) -> dict[Term, float]:
        """Factor of each term in the loss at this tick: the controller's coefficient times the term's weight."""
        return {}

    def next_state(self, state: Mapping[str, Any], logs: Mapping[str, float]) -> State:
        """The state after one trained step whose terms had these means over all samples; `state` is left as it was."""
        return dict(state)


@dataclass(frozen=True, kw_only=True)
class ControlledKL(KLPolicy):
    """A KL whose coefficient a controller moves between `min_weight` and `weight`.

    `released`: a linear ramp from min_weight over the first 99 ticks; from tick 100 on, the mean of the last 10 KL
    values above 1.5 times the target multiplies the coefficient by 0.9, below half of the target by 1.1. The target is
    `weight` itself, as released. `usual`: the same with the two reactions swapped, so that too much KL strengthens the
    penalty. `constant`: `weight` from the first tick on.
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

    def __post_init__(self) -> None:
        for name in ("weight", "min_weight", "moving_weight", "step_weight"):
            value = getattr(self, name, 0.0)
            if not 0 <= value < math.inf:
                raise BenchError(f"KL policy: {name} is {value}; set it to a finite value of at least 0.")
        if self.controller not in get_args(Controller):
            raise BenchError(
                f"KL policy: controller is {self.controller!r}; choose one of {', '.join(get_args(Controller))}."
            )
        if self.controller != "constant" and self.min_weight > self.weight:
            raise BenchError(
                f"KL policy: min_weight {self.min_weight} is above weight {self.weight}; swap or lower it."
            )
        every = getattr(self, "every", 1)
        if every < 1:
            raise BenchError(f"KL policy: every is {every}; the anchor is refreshed every 1 or more updates.")

    def init_state(self) -> State:
        start = self.weight if self.controller == "constant" else self.min_weight
        return {"ticks": 0, "coefficient": start, "recent": []}

    def weights(self, state: Mapping[str, Any]) -> dict[Term, float]:
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
        when_high, when_low = (WEAKER, STRONGER) if self.controller == "released" else (STRONGER, WEAKER)
        if mean > TOO_HIGH * self.weight:
            coefficient *= when_high
        elif mean < TOO_LOW * self.weight:
            coefficient *= when_low
        return max(self.min_weight, min(coefficient, self.weight))


@dataclass(frozen=True, kw_only=True)
class FixedKL(ControlledKL):
    """KL to the frozen base (released code: use_moving_KL off, use_dual_kl off)."""

    def anchors(self) -> dict[AnchorName, RefreshRule]:
        return {"fixed": RefreshRule()}

    def term_weights(self) -> dict[Term, float]:
        return {"anchor": 1.0}


@dataclass(frozen=True, kw_only=True)
class MovingKL(ControlledKL):
    """KL to a copy of the policy that is renewed every `every` updates; the base until then."""

    every: int = 10
    """Updates between refreshes (update_ref_model_step)."""

    def anchors(self) -> dict[AnchorName, RefreshRule]:
        return {"moving": RefreshRule(every=self.every)}

    def term_weights(self) -> dict[Term, float]:
        return {"anchor": 1.0}


@dataclass(frozen=True, kw_only=True)
class StepwiseKL(ControlledKL):
    """KL to the rollout policy as released: the one-sample estimate mean(logp_old - logp_new).

    With one optimizer step per rollout its value is 0 and its gradient adds the weight to every advantage.
    Departs: no reference network is evaluated; the released code has no flag for this term alone and still runs one.
    Departs: the paper writes KL(policy || policy of the update before), which is {name: moving, params: {every: 1}}
      here; the default is the released code's estimate.
    """

    step_weight: float = 0.1
    """Weight of the term (dual_kl_step_weight)."""

    def anchors(self) -> dict[AnchorName, RefreshRule]:
        return {"previous": RefreshRule(network=False)}

    def term_weights(self) -> dict[Term, float]:
        return {"stepwise": self.step_weight}


@dataclass(frozen=True, kw_only=True)
class DualKL(ControlledKL):
    """SAGE-GRPO's dual trust region: a moving (or fixed) anchor plus the stepwise term."""

    anchor: Literal["moving", "fixed"] = "moving"
    """The position term's reference (use_moving_KL)."""
    every: int = 10
    """Updates between refreshes of a moving anchor (update_ref_model_step)."""
    moving_weight: float = 1.0
    """Weight of the anchor's term (dual_kl_moving_weight)."""
    step_weight: float = 0.1
    """Weight of the stepwise term (dual_kl_step_weight)."""

    def anchors(self) -> dict[AnchorName, RefreshRule]:
        rule = RefreshRule(every=self.every if self.anchor == "moving" else None)
        return {self.anchor: rule, "previous": RefreshRule(network=False)}

    def term_weights(self) -> dict[Term, float]:
        return {"anchor": self.moving_weight, "stepwise": self.step_weight}


POLICIES: dict[str, type[KLPolicy]] = {
    "none": KLPolicy,
    "fixed": FixedKL,
    "stepwise": StepwiseKL,
    "moving": MovingKL,
    "dual": DualKL,
}


def kl_policy(name: str, **params: Any) -> KLPolicy:
    """The KL policy of this name; an unknown name or parameter raises and says what there is."""
    if name not in POLICIES:
        near = difflib.get_close_matches(str(name), POLICIES, n=1, cutoff=0)[0]
        raise BenchError(f"unknown KL policy '{name}': did you mean '{near}'? There are {', '.join(POLICIES)}.")
    try:
        return TypeAdapter(POLICIES[name]).validate_python(params)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        allowed = ", ".join(field.name for field in fields(POLICIES[name])) or "none"
        raise BenchError(
            f"KL policy '{name}', parameter '{where}': {first['msg']}. Its parameters: {allowed}."
        ) from error
