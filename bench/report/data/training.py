"""The numbers of the figures: what the finished runs of a suite recorded during training, as data frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.core.errors import BenchError
from bench.report.data.metrics import SUMS
from bench.report.data.records import Run, SuiteRecords
from bench.report.data.selection import Row
from bench.report.data.statistics import Array, Estimate, over_seeds
from bench.store.files import read_lines
from bench.store.record import RUN, TRAIN, run_folder

#: Updates of the centred moving mean that is drawn. Every update has other prompts, so its raw mean is noisy.
WINDOW = 5
#: Panels of the curves besides the trained reward, if the runs recorded their metrics: sums and single metrics.
MONITORED = ("gold_overall", "overall", "clipscore", "pickscore")
#: Relative tolerance of two schedules of one row, which may come from different machines in single precision.
SCHEDULE_TOLERANCE = 1e-5
FIX = "It is from another version of this project: delete the run's folder and run `bench run` again."


class TrainModel(BaseModel):
    """The part of a record that figures read; other fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class LedgerTotals(TrainModel):
    """The ledger's running totals after an update."""

    nfe_rollout: int


class TrainLine(TrainModel):
    """One update of `train.jsonl`."""

    update: int
    reward: float
    """Weighted sum of the rewards: mean over the videos of the update, score units."""
    rewards: dict[str, float]
    monitor: dict[str, float]
    """Mean over the videos of the update of every monitored metric, which is not trained; {} if there is none."""
    ledger: LedgerTotals
    grad_norm_of_step: dict[int, float]
    """Trained step to the norm of its part of the gradient, with the step's weight and the KL term."""

    @property
    def panels(self) -> dict[str, float]:
        """Panel to value: `trained`, `gold_overall` (as reward or monitored), and the other monitored sums."""
        values = {"trained": self.reward}
        for name in MONITORED:
            known = {**self.rewards, **self.monitor} if name == "gold_overall" else self.monitor
            parts = SUMS.get(name, (name,))
            if set(parts) <= set(known):
                values[name] = sum(known[part] for part in parts)
        return values


class Schedule(TrainModel):
    """Noise and predicted gradient norm of a row's method at each of the t rollout steps; step 0 is the noisiest."""

    sigma: list[float]
    """[t + 1], 1 = noise, 0 = video."""
    std: list[Annotated[float, Field(ge=0)]]
    """[t], injected noise per latent element; 0 for a deterministic step."""
    predicted_grad_norm: list[Annotated[float, Field(gt=0)]]
    """[t], relative: 1 = the lower median of the schedule."""
    step_weight: list[Annotated[float, Field(ge=0)]]
    """[t], weight by the equalizer; all 1 without it."""

    @model_validator(mode="after")
    def _same_length(self) -> Schedule:
        if {len(self.std), len(self.predicted_grad_norm), len(self.step_weight)} != {len(self.sigma) - 1}:
            raise ValueError("the lists need one value per step, and sigma one more")
        return self

    def close_to(self, other: Schedule) -> bool:
        pairs = zip(self.model_dump().values(), other.model_dump().values(), strict=True)
        return all(len(a) == len(b) and np.allclose(a, b, rtol=SCHEDULE_TOLERANCE, atol=1e-9) for a, b in pairs)


@dataclass(frozen=True)
class Training:
    """What the finished runs of one row recorded during training."""

    row: Row
    index: int
    """Position of the row in the suite: decides its colour and marker."""
    lines: list[list[TrainLine]]
    """[seed][update], seeds ascending."""
    schedule: Schedule


def load_training(folder: Path | str, suite: SuiteRecords) -> list[Training]:
    """Rows of `results/<suite>` with a finished run, in the suite's order, from `train.jsonl` and `run.json`."""
    trainings: list[Training] = []
    for index, runs in enumerate(suite.rows):
        if not runs.finished:
            continue
        first, *others = [_read_training(Path(folder), run) for run in runs.finished]
        for path, lines, schedule in others:
            if [line.ledger for line in lines] != [line.ledger for line in first[1]]:
                raise BenchError(f"{path} has other rollout NFE than {first[0]}: run the run that differs again.")
            if not schedule.close_to(first[2]):
                raise BenchError(f"the schedule of {path} is not that of {first[0]}: run the run that differs again.")
        trainings.append(Training(runs.row, index, [first[1], *(lines for _, lines, _ in others)], first[2]))
        panels = set(trainings[0].lines[0][0].panels)
        for path, lines, _ in (first, *others):
            if any(set(line.panels) != panels for line in lines):
                raise BenchError(f"{path} does not record the metrics of all other runs ({sorted(panels)}). {FIX}")
    if not trainings:
        raise BenchError(f"{folder} holds no finished run: figures need one, run `bench run` on this suite first.")
    return trainings


def _read_training(folder: Path, run: Run) -> tuple[Path, list[TrainLine], Schedule]:
    record = run.record
    path = run_folder(folder, record.row, record.seed)
    schedule = validated(Schedule, record.extra.get("schedule", {}), f"record {path / RUN}", "extra.schedule")
    path /= TRAIN
    content = read_lines(path)
    if not content:
        raise BenchError(f"{path} is missing or empty: copy it back, or delete the run's folder and run it again.")
    lines = [validated(TrainLine, line, str(path), f"line {number}") for number, line in enumerate(content, 1)]
    if [line.update for line in lines] != list(range(record.updates_done)):
        raise BenchError(
            f"{path} does not hold updates 0 to {record.updates_done - 1}, each once and in order: delete the run's "
            "folder and run it again."
        )
    steps = len(schedule.std)
    if any(not 0 <= step < steps for line in lines for step in line.grad_norm_of_step):
        raise BenchError(f"{path} has gradients of a step outside the schedule of {steps} steps. {FIX}")
    return path, lines, schedule


P = TypeVar("P", bound=TrainModel)


def validated(model: type[P], content: Any, file: str, part: str) -> P:
    """`content` as a `model`; a `BenchError` names the file, the part of it, the key and the fix."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise BenchError(f"{file}, {part}{f', {key}' if key else ''}: {first['msg']}. {FIX}") from error


def moving_mean(x: Array, window: int = WINDOW) -> Array:
    """Centred moving mean along the last axis; towards the ends the window shrinks and stays centred."""
    n = x.shape[-1]
    reach = [min(window // 2, k, n - 1 - k) for k in range(n)]
    return np.stack([x[..., k - r : k + r + 1].mean(-1) for k, r in enumerate(reach)], -1)


def curves(trainings: Sequence[Training], source: str = "here") -> pd.DataFrame:
    """One line per panel, row and update.

    `mean`, `lo`, `hi`: mean over seeds and its Student-t 95 % interval (NaN with fewer than 3 seeds), score units;
    `smooth*`: the same of the moving mean of each seed. `nfe_rollout` is the total of one run after the update's
    rollout.
    """
    rows: list[dict[str, Any]] = []
    for training in trainings:
        for panel in training.lines[0][0].panels:
            x = np.array([[line.panels[panel] for line in lines] for lines in training.lines])
            for line, raw, smooth in zip(training.lines[0], x.T, moving_mean(x).T, strict=True):
                rows.append(
                    {
                        **{"panel": panel, "source": source, **_identity(training)},
                        **{"update": line.update, "nfe_rollout": line.ledger.nfe_rollout},
                        **_columns(over_seeds(raw), "mean", "lo", "hi"),
                        **_columns(over_seeds(smooth), "smooth", "smooth_lo", "smooth_hi"),
                    }
                )
    return pd.DataFrame(rows)


def _identity(training: Training) -> dict[str, Any]:
    return {"row": training.row.label, "method": training.row.method, "n_seeds": len(training.lines)}


def _columns(estimate: Estimate, *names: str) -> dict[str, float]:
    return dict(zip(names, (estimate.mean, estimate.lo, estimate.hi), strict=True))


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
    """
    return pd.concat([_gradients(training) for training in trainings], ignore_index=True)


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
                **_columns(estimate, "measured_after", "measured_after_lo", "measured_after_hi"),
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
