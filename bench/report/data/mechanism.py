"""The numbers of the figures on noise and gradients: what each rollout step injects and how strongly it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.report.data.differences import interval_columns
from bench.report.data.statistics import over_seeds
from bench.report.data.training import Training


def noise(trainings: Sequence[Training]) -> pd.DataFrame:
    """One line per row and rollout step: injected `std` per latent element; `rss` is its root sum of squares."""
    frames = []
    for training in trainings:
        s = training.schedule
        values = {"step": range(len(s.std)), "sigma": s.sigma[:-1], "sigma_next": s.sigma[1:], "std": s.std}
        frames.append(pd.DataFrame({**_identity(training), **values, "rss": float(np.linalg.norm(s.std))}))
    return pd.concat(frames, ignore_index=True)


def gradients(trainings: Sequence[Training]) -> pd.DataFrame:
    """One line per row and step that is noisy or trained: the step's gradient norm, before and after the equalizer.

    `measured_after` is the geometric mean over updates, then over seeds, with a Student-t 95 % interval of the log
    over seeds (NaN with fewer than 3); `measured_before` is the same divided by the step's weight. Both are multiplied
    by the row's `scale`, so that `measured_before` and `predicted_before` have the same geometric mean over the
    measured steps. Units: 1 = the predicted norm at the schedule's lower median. Norms of 0 and steps of weight 0 have
    no logarithm; they are left out, and `n_zero` counts them. `*_spread`: largest over smallest of the measured steps.
    Rows of forward methods are left out.
    """
    frames = [_gradients(training) for training in trainings if training.schedule.step_weight]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["row"])


def _gradients(training: Training) -> pd.DataFrame:
    s = training.schedule
    norms = pd.DataFrame(
        [
            (seed, step, norm)
            for seed, lines in enumerate(training.lines)
            for line in lines
            for step, norm in line.grad_norm_of_step.items()
        ],
        columns=["seed", "step", "norm"],
    )
    weight, predicted = np.array(s.step_weight), np.array(s.predicted_grad_norm)
    usable = (norms["norm"] > 0) & (weight[norms["step"].astype(int)] > 0)
    logs = norms[usable].assign(norm=np.log(norms.loc[usable, "norm"].to_numpy(float)))
    by_seed = logs.groupby(["step", "seed"])["norm"].mean()
    steps = sorted({*norms["step"].astype(int), *np.flatnonzero(s.std).tolist()})
    rows: list[dict[str, Any]] = []
    for step in steps:
        estimate = over_seeds(by_seed[by_seed.index.get_level_values("step") == step].to_numpy())
        of_step = norms["step"] == step
        rows.append(
            {
                **{**_identity(training), "step": step, "sigma": s.sigma[step], "step_weight": weight[step]},
                **{"n_norms": int((of_step & usable).sum()), "n_zero": int((of_step & ~usable).sum())},
                **{"predicted_before": predicted[step], "predicted_after": predicted[step] * weight[step]},
                **interval_columns("measured_after", estimate),
            }
        )
    return _scaled(pd.DataFrame(rows))


def _scaled(frame: pd.DataFrame) -> pd.DataFrame:
    """Logs of one row's measured norms as multiples of the prediction; adds `measured_before*`, spreads, `scale`."""
    ends = ("", "_lo", "_hi")
    known = frame["measured_after"].notna()
    weight = frame["step_weight"].where(known, 1.0)
    gap = np.log(frame["predicted_before"]) - (frame["measured_after"] - np.log(weight))
    frame["scale"] = float(np.exp(gap[known].mean())) if known.any() else np.nan
    for end in ends:
        frame[f"measured_after{end}"] = np.exp(frame[f"measured_after{end}"]) * frame["scale"]
        frame[f"measured_before{end}"] = frame[f"measured_after{end}"] / weight
    names = [f"{kind}_{when}" for when in ("before", "after") for kind in ("predicted", "measured")]
    for name in names:
        values = frame.loc[known, name]
        frame[f"{name}_spread"] = values.max() / values.min() if known.any() else np.nan
    measured = [f"measured_{when}{end}" for when in ("before", "after") for end in ends]
    shown = [*measured, "scale", *[f"{name}_spread" for name in names]]
    return frame[[name for name in frame.columns if name not in shown] + shown]


def _identity(training: Training) -> dict[str, Any]:
    return {"row": training.row.label, "method": training.row.method, "n_seeds": len(training.lines)}
