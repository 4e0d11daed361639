"""The ledger of a run: counts of what it spends, compared with the budget after every update.

NFE is the number of function evaluations: forward passes of the network for one sample.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.core.budget import Budget
from bench.core.errors import BenchError

TRAIN_COST = 3
"""Function evaluations of one trained step: one forward pass, and a backward pass of twice its cost."""


def guidance_multiplicity(guidance: float) -> int:
    """Function evaluations per velocity: 1 without guidance, 2 with it (conditional and unconditional)."""
    return 1 if guidance == 1 else 2


def planned_counts(budget: Budget, reward_evaluators: int, updates: int) -> dict[str, int]:
    """Counts after `updates` updates of this budget: the same for every row."""
    samples = updates * budget.prompts * budget.group_size
    branches = guidance_multiplicity(budget.guidance)
    return {
        "nfe_rollout": samples * budget.steps * branches,
        "nfe_train": TRAIN_COST * samples * budget.train_steps * branches,
        "reward_calls": samples * reward_evaluators,
        "decodes": samples,
        "videos": samples,
        "updates": updates,
        "optimizer_steps": updates * budget.minibatches,
        "prompts": updates * budget.prompts,
    }


def sampling_nfe(videos: int, steps: int, guidance: float) -> int:
    """Function evaluations of so many held-out videos, each of `steps` steps."""
    return videos * steps * guidance_multiplicity(guidance)


@dataclass
class Ledger:
    """Running totals of one run. NFE is counted per sample; no result depends on `seconds` and `restarts`."""

    counts: dict[str, int] = field(default_factory=dict)
    """nfe_rollout, nfe_anchor, nfe_train, decodes, videos, updates, optimizer_steps and prompts: what training spends.

    nfe_curve and curve_videos are what the points of the held-out curve cost; no other count includes them."""
    reward_calls: dict[str, int] = field(default_factory=dict)
    """Scored videos by reward evaluator."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds by phase."""
    restarts: int = 0
    """Number of times that the run was resumed from a checkpoint."""

    def spend(self, name: str, amount: int) -> None:
        """Add to one of `counts`."""
        self.counts[name] = self.counts.get(name, 0) + amount

    def call_reward(self, evaluator: str, videos: int) -> None:
        """Add scored videos of a reward evaluator."""
        self.reward_calls[evaluator] = self.reward_calls.get(evaluator, 0) + videos

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of the body to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def settle(self, budget: Budget, reward_evaluators: int, updates: int) -> None:
        """Raise a `BenchError` unless exactly the budget of `updates` updates was spent."""
        spent = {**self.counts, "reward_calls": sum(self.reward_calls.values())}
        for name, amount in planned_counts(budget, reward_evaluators, updates).items():
            if spent.get(name, 0) != amount:
                raise BenchError(
                    f"ledger: {name} is {spent.get(name, 0)} after {updates} updates, but the budget allows {amount}: "
                    "a method or an evaluator spends outside of the budget, so this run does not count."
                )

    def totals(self) -> dict[str, Any]:
        """Totals for the record; nfe_anchor is 0 for a row without anchors."""
        return {"nfe_anchor": 0, **self.counts, "reward_calls": dict(self.reward_calls), "restarts": self.restarts}

    def state(self) -> dict[str, Any]:
        """The ledger as JSON types, for a checkpoint."""
        return {
            "counts": dict(self.counts),
            "reward_calls": dict(self.reward_calls),
            "seconds": dict(self.seconds),
            "restarts": self.restarts,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Ledger:
        """The ledger that `state` was taken from."""
        return cls(
            counts=dict(state["counts"]),
            reward_calls=dict(state["reward_calls"]),
            seconds=dict(state["seconds"]),
            restarts=int(state["restarts"]),
        )
