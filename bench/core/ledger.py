"""What a run has spent, counted where it is spent and settled against the budget after every update."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.core.budget import Budget
from bench.core.errors import BenchError

TRAIN_COST = 3
"""A trained step counts three function evaluations: one forward and a backward of twice its cost."""


def guidance_multiplicity(guidance: float) -> int:
    """Network evaluations per velocity: two above guidance 1 (conditional and unconditional)."""
    return 1 if guidance == 1 else 2


def planned(budget: Budget, reward_evaluators: int, updates: int) -> dict[str, int]:
    """What `updates` updates of this budget spend: the same for every row."""
    samples = updates * budget.prompts * budget.group_size
    times = guidance_multiplicity(budget.guidance)
    return {
        "nfe_rollout": samples * budget.steps * times,
        "nfe_train": TRAIN_COST * samples * budget.train_steps * times,
        "reward_calls": samples * reward_evaluators,
        "decodes": samples,
        "videos": samples,
        "updates": updates,
        "optimizer_steps": updates * budget.minibatches,
        "prompts": updates * budget.prompts,
    }


@dataclass
class Ledger:
    """Running totals of one run. NFE is counted per sample; `seconds` and `restarts` decide no number."""

    counts: dict[str, int] = field(default_factory=dict)
    reward_calls: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    restarts: int = 0

    def spend(self, name: str, amount: int) -> None:
        self.counts[name] = self.counts.get(name, 0) + amount

    def call_reward(self, evaluator: str, videos: int) -> None:
        self.reward_calls[evaluator] = self.reward_calls.get(evaluator, 0) + videos

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def settle(self, budget: Budget, reward_evaluators: int, updates: int) -> None:
        """Refuse to go on when anything but the budget was spent."""
        spent = {**self.counts, "reward_calls": sum(self.reward_calls.values())}
        for name, amount in planned(budget, reward_evaluators, updates).items():
            if spent.get(name, 0) != amount:
                raise BenchError(
                    f"ledger: {name} is {spent.get(name, 0)} after {updates} updates, the budget says {amount}: "
                    "a method or an "
                    "evaluator spent what is not its own; this run does not count."
                )

    def totals(self) -> dict[str, Any]:
        """Totals for the record; nfe_anchor is 0 for a row without anchors."""
        return {"nfe_anchor": 0, **self.counts, "reward_calls": dict(self.reward_calls), "restarts": self.restarts}

    def state(self) -> dict[str, Any]:
        return {
            "counts": dict(self.counts),
            "reward_calls": dict(self.reward_calls),
            "seconds": dict(self.seconds),
            "restarts": self.restarts,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Ledger:
        return cls(dict(state["counts"]), dict(state["reward_calls"]), dict(state["seconds"]), int(state["restarts"]))
