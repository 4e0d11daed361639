"""Training dynamics from `train.jsonl`: share of the KL term, spread of the gradients over steps, setbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from bench.report.data.differences import interval_columns
from bench.report.data.records import RowRuns, Run
from bench.report.data.statistics import over_seeds
from bench.report.data.training import TrainModel, read_updates
from bench.store.record import TRAIN

SMOOTH = 5
"""Updates of the running mean in which setbacks are measured, and of the start of training that gives their unit."""


class GradientSummary(TrainModel):
    """Norms of the two parts of an update's gradient, of the KL term and of the rest."""

    kl: float = Field(ge=0)
    policy: float = Field(ge=0)
    """Norm of the gradient without the KL term."""


class DynamicsLine(TrainModel):
    """One line of `train.jsonl`; only some updates record the parts of their gradient."""

    kl_gradient: GradientSummary | None = None
    grad_norm_of_step: dict[int, float] = Field(default_factory=dict)
    reward: float | None = None
    reward_group_std: float | None = None
    grad_norm: list[float] = Field(default_factory=list)
    """Norm of the gradient before clipping, one per optimizer step."""
    grad_clipped: int | None = Field(default=None, ge=0)
    """Optimizer steps whose gradient was clipped; None in older logs."""


def lines(run: Run) -> list[DynamicsLine]:
    """The updates of a run, validated."""
    return read_updates(DynamicsLine, run.folder / TRAIN)


def kl_share(updates: Sequence[DynamicsLine]) -> float:
    """Norm of the KL term's gradient over the norm of the rest, mean over the updates that record both.

    Updates whose rest is 0 (all advantages are 0) have no ratio and are left out. NaN if no update is left.
    """
    parts = [line.kl_gradient for line in updates if line.kl_gradient]
    return _mean([part.kl / part.policy for part in parts if part.policy > 0])


def gradient_spread(updates: Sequence[DynamicsLine]) -> float:
    """Largest over smallest gradient norm of the trained steps, each the geometric mean over the updates.

    Equal gradients give 1. Norms of 0 have no logarithm and are left out; NaN with fewer than two steps.
    """
    logs: dict[int, list[float]] = {}
    for line in updates:
        for step, norm in line.grad_norm_of_step.items():
            if norm > 0:
                logs.setdefault(step, []).append(float(np.log(norm)))
    means = [_mean(values) for values in logs.values()]
    return float(np.exp(max(means) - min(means))) if len(means) > 1 else float("nan")


def setback(updates: Sequence[DynamicsLine]) -> float:
    """Largest fall of the training reward (running mean over `SMOOTH` updates) below its earlier maximum.

    In units of the reward's standard deviation within a group over the first `SMOOTH` updates, so that reward weights
    do not matter. 0 for a curve that never falls; NaN for fewer than `SMOOTH` updates or a unit of 0.
    """
    rewards = [line.reward for line in updates if line.reward is not None]
    unit = _mean([line.reward_group_std for line in updates[:SMOOTH] if line.reward_group_std is not None])
    if len(rewards) < SMOOTH or not unit > 0:
        return float("nan")
    curve = np.convolve(rewards, np.full(SMOOTH, 1 / SMOOTH), "valid")
    return float((np.maximum.accumulate(curve) - curve).max() / unit)


def setbacks(runs: RowRuns) -> dict[int | None, float]:
    """Seed to setback of a row's finished runs."""
    return {run.record.seed: setback(lines(run)) for run in runs.finished}


def columns(runs: RowRuns, baseline: Mapping[int | None, float]) -> dict[str, Any]:
    """`kl_share`; `grad_spread` and `setback` with `_lo`, `_hi` over seeds; `to_first_setback`, paired by seed.

    `baseline` has the setback of each seed of the level that `to_first_setback` compares with; it may be empty.
    """
    updates = {run.record.seed: lines(run) for run in runs.finished}
    spreads = [value for value in map(gradient_spread, updates.values()) if np.isfinite(value)]
    spread = interval_columns("grad_spread", over_seeds(np.log(spreads)) if spreads else None)
    falls = {seed: setback(update_lines) for seed, update_lines in updates.items()}
    return {
        "kl_share": _mean([x for x in map(kl_share, updates.values()) if np.isfinite(x)]),
        **{name: float(np.exp(value)) for name, value in spread.items()},
        **_mean_columns("setback", list(falls.values())),
        **_mean_columns("to_first_setback", [falls[s] - baseline[s] for s in falls if s in baseline]),
    }


class Clipping(NamedTuple):
    """How often a row's gradients were clipped, over the optimizer steps of updates that record it."""

    clipped: int
    steps: int
    median: float
    """Median of the gradient's norm before clipping over `budget.grad_clip`; NaN if it is not known."""


def gradient_clipping(runs: RowRuns) -> Clipping:
    """The clipping of a row's finished runs."""
    clipped, ratios = 0, list[float]()
    for run in runs.finished:
        updates = [line for line in lines(run) if line.grad_clipped is not None]
        clipped += sum(line.grad_clipped or 0 for line in updates)
        limit = run.record.budget.get("grad_clip", float("nan"))
        ratios += [norm / limit for line in updates for norm in line.grad_norm]
    return Clipping(clipped, len(ratios), float(np.median(ratios)) if ratios else float("nan"))


def _mean_columns(name: str, values: Sequence[float]) -> dict[str, float]:
    """The columns of the mean over the seeds whose number is known."""
    known = [value for value in values if np.isfinite(value)]
    return interval_columns(name, over_seeds(known) if known else None)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
