"""The numbers of the figures on training itself: rewards of the rollouts and what else every update records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.report.data.differences import interval_columns
from bench.report.data.statistics import Array, over_seeds
from bench.report.data.training import Training, TrainLine

#: Updates of the centred moving mean that is drawn. Every update has other prompts, so its raw mean is noisy.
WINDOW = 5
HERE, REFERENCE = "here", "reference"

#: What the figure of training dynamics shows of an update; None where the run does not record it.
DYNAMICS: dict[str, Callable[[TrainLine], float | None]] = {
    "reward_group_std": lambda line: line.reward_group_std,
    "kl_anchor": lambda line: line.kl_anchor,
    "grad_norm": lambda line: float(np.mean(line.grad_norm)) if line.grad_norm else None,
    "ratio_error": lambda line: line.ratio_error,
    "clipped_share": lambda line: line.clipped_share,
}
#: Of these no moving mean is drawn: one falls to 0 at every refresh of the anchor, the other is a largest value.
UNSMOOTHED = ("kl_anchor", "ratio_error")


def window_of(updates: int) -> int:
    """Updates of one moving mean: `WINDOW`, or the largest odd number of updates that a shorter run has."""
    return min(WINDOW, updates - 1 + updates % 2)


def moving_mean(x: Array) -> Array:
    """Centred moving mean along the last axis, NaN where the window would reach beyond the first or last update."""
    window = window_of(x.shape[-1])
    smooth = np.full(x.shape, np.nan)
    inside = np.lib.stride_tricks.sliding_window_view(x, window, axis=-1).mean(-1)
    smooth[..., window // 2 : window // 2 + inside.shape[-1]] = inside
    return smooth


def adjusts(trainings: Sequence[Training]) -> bool:
    """Whether `rollouts` removes the effect of the prompts: several rows have all finished the same seeds."""
    return len(trainings) > 1 and len({tuple(training.seeds) for training in trainings}) == 1


def rollouts(trainings: Sequence[Training], source: str = HERE) -> pd.DataFrame:
    """One line per score, row, seed and update of the rollouts, whose videos carry each method's own noise.

    `mean_score`: mean over the update's videos. `value`: centred moving mean (NaN at both ends) of its gain since
    update 0, adjusted for prompts: all rows with a seed see the same prompts, so the mean over rows of each seed's
    update is taken away and the mean over rows and seeds of the update added. Unless several rows have all the same
    seeds, nothing is adjusted. `mean`, `lo`, `hi`: mean of `value` over seeds with its Student-t 95 % interval.
    """
    frames = []
    for panel in trainings[0].lines[0][0].panels:
        scores = [np.array([[line.panels[panel] for line in run] for run in each.lines]) for each in trainings]
        adjusted = _without_prompts(np.stack(scores)) if adjusts(trainings) else scores
        for training, raw, level in zip(trainings, scores, adjusted, strict=True):
            gain = moving_mean(level - level[:, :1])
            frames.append(_by_seed(training, panel, source, gain).assign(mean_score=raw.ravel()))
    return pd.concat(frames, ignore_index=True)


def _without_prompts(scores: Array) -> Array:
    """Scores [row, seed, update] without what all rows of a seed's update have in common beyond the other seeds."""
    return np.asarray(scores - scores.mean(0, keepdims=True) + scores.mean((0, 1), keepdims=True))


def dynamics(trainings: Sequence[Training]) -> pd.DataFrame:
    """One line per quantity of `DYNAMICS`, row, seed and update, for rows that record it in every update.

    `value`: as drawn, the moving mean except for `UNSMOOTHED`; `recorded`: of this update; `mean`, `lo`, `hi` as in
    `rollouts`. A quantity that is 0 everywhere has lines too.
    """
    frames = []
    for name, read in DYNAMICS.items():
        for training in trainings:
            recorded = np.array([[read(line) for line in run] for run in training.lines], dtype=float)
            if np.isnan(recorded).any():
                continue
            drawn = recorded if name in UNSMOOTHED else moving_mean(recorded)
            frames.append(_by_seed(training, name, HERE, drawn).assign(recorded=recorded.ravel()))
    columns = ["panel", "source", "row", "method", "seed", "update", "nfe_rollout", "value", "mean", "lo", "hi"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*columns, "recorded"])


def _by_seed(training: Training, panel: str, source: str, values: Array) -> pd.DataFrame:
    """One line per seed and update of `values` [seed, update] of one row."""
    spent = [line.ledger.nfe_rollout for line in training.lines[0]]
    frames = []
    for seed, value in zip(training.seeds, values, strict=True):
        columns: dict[str, Any] = {"panel": panel, "source": source, "row": training.row.label}
        columns |= {"method": training.row.method, "seed": seed, "update": range(len(spent)), "nfe_rollout": spent}
        frames.append(pd.DataFrame({**columns, "value": value}))
    return pd.concat(frames, ignore_index=True).pipe(over_all_seeds)


def over_all_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with `mean`, `lo`, `hi`: mean of `value` over seeds, with a Student-t 95 % interval from 3 seeds on.

    Both are those of all lines with the same panel, source, row and update; NaN where a seed's `value` is.
    """
    keys = ["panel", "source", "row", "update"]
    lines = [
        {**dict(zip(keys, key, strict=True)), **interval_columns("mean", over_seeds(own["value"].to_numpy()))}
        for key, own in frame.groupby(keys, sort=False)
    ]
    means = pd.DataFrame(lines, columns=[*keys, "mean", "mean_lo", "mean_hi"])
    return frame.merge(means.rename(columns={"mean_lo": "lo", "mean_hi": "hi"}), on=keys, how="left")
