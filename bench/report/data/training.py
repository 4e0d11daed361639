"""What the finished runs of a suite recorded during training: one line per update, and the schedule of each row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.core.errors import BenchError
from bench.report.data.metrics import SUMS
from bench.report.data.records import Run, SuiteRecords
from bench.report.data.selection import Row
from bench.store.files import read_lines
from bench.store.record import RUN, TRAIN, run_folder

#: Scores of the rollouts besides the trained reward, if the runs recorded their metrics: sums and single metrics.
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
    reward_group_std: float | None = None
    """Standard deviation of the reward within a group, mean over groups: how much the policy explores."""
    kl_anchor: float | None = None
    """Mean of the KL term to the anchor; 0 in the update after a refresh. None without such a term."""
    grad_norm: list[float] = Field(default_factory=list)
    """Norm of the gradient before clipping, one per optimizer step."""
    ratio_error: float | None = None
    """Largest difference of a ratio to 1 before the first optimizer step; 0 is exact."""
    clipped_share: float | None = None
    """Share of the transitions beyond the clip range."""

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
    predicted_grad_norm: list[Annotated[float, Field(gt=0)]] = Field(default_factory=list)
    """[t], relative: 1 = the lower median of the schedule; [] for a forward method, which trains no step."""
    step_weight: list[Annotated[float, Field(ge=0)]] = Field(default_factory=list)
    """[t], weight by the equalizer; all 1 without it; [] for a forward method."""

    @model_validator(mode="after")
    def _same_length(self) -> Schedule:
        lengths = {len(self.predicted_grad_norm), len(self.step_weight)}
        if len(self.std) != len(self.sigma) - 1 or lengths not in ({0}, {len(self.std)}):
            raise ValueError("the lists need one value per step, and sigma one more")
        return self

    def close_to(self, other: Schedule) -> bool:
        pairs = zip(self.model_dump().values(), other.model_dump().values(), strict=True)
        return all(len(a) == len(b) and np.allclose(a, b, rtol=SCHEDULE_TOLERANCE, atol=1e-9) for a, b in pairs)


@dataclass(frozen=True)
class Training:
    """What the finished runs of one row recorded during training."""

    row: Row
    seeds: list[int]
    """Ascending."""
    lines: list[list[TrainLine]]
    """[seed][update]."""
    schedule: Schedule


def load_training(folder: Path | str, suite: SuiteRecords) -> list[Training]:
    """Rows of `results/<suite>` with a finished run, in the suite's order, from `train.jsonl` and `run.json`."""
    trainings: list[Training] = []
    for runs in suite.rows:
        if not runs.finished:
            continue
        first, *others = [_read_training(Path(folder), run) for run in runs.finished]
        for path, lines, schedule in others:
            if [line.ledger for line in lines] != [line.ledger for line in first[1]]:
                raise BenchError(f"{path} has other rollout NFE than {first[0]}: run the run that differs again.")
            if not schedule.close_to(first[2]):
                raise BenchError(f"the schedule of {path} is not that of {first[0]}: run the run that differs again.")
        trainings.append(Training(runs.row, runs.seeds, [first[1], *(lines for _, lines, _ in others)], first[2]))
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
    lines = read_updates(TrainLine, path)
    if not lines:
        raise BenchError(f"{path} is missing or empty: copy it back, or delete the run's folder and run it again.")
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


def read_updates(model: type[P], path: Path) -> list[P]:
    """The lines of a training log as `model`s; none if there is no such file."""
    return [validated(model, line, str(path), f"line {number}") for number, line in enumerate(read_lines(path), 1)]


def validated(model: type[P], content: Any, file: str, part: str) -> P:
    """`content` as a `model`; a `BenchError` names the file, the part of it, the key and the fix."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise BenchError(f"{file}, {part}{f', {key}' if key else ''}: {first['msg']}. {FIX}") from error
