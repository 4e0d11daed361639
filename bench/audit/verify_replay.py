"""`bench verify --replay`: runs drawn at random are done again, in part: the first updates and the evaluation."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from bench import store
from bench.audit.differences import Difference, TrainingDiff, compare_lines, environment_changes, score_floors
from bench.audit.findings import Finding
from bench.audit.replay import current_environment, job_of, record_environment
from bench.core.errors import BenchError, DivergedError
from bench.core.progress import silent, track
from bench.core.rng import stream
from bench.core.rules import RULES
from bench.store.lock import run_lock
from bench.store.policy import load_policy
from bench.suite.job import Job, TrainingRun
from bench.train.evaluate import evaluate
from bench.train.run import load_models
from bench.train.trainer import Trainer

UPDATES = 2
"""Updates that are done again: the first has no history, the second has that of the optimizer and of the KL policy."""
PLATFORM = ("CPU: ", "machine: ", "GPU: ", "python: ", "package ")
"""Starts of the changes of an environment with which equal bits cannot be expected."""


@dataclass(frozen=True)
class PartialReplay:
    """What came out when a run was done again in part."""

    run: Path
    training: TrainingDiff | None = None
    """None for the base."""
    scores: dict[str, float] | None = None
    """Largest difference of each metric; None if nothing was evaluated."""
    changes: list[str] = field(default_factory=list)
    """Changes of the environment since the stored run, one phrase each."""
    refused: str | None = None
    """Why nothing was done again, in one sentence."""

    @property
    def largest(self) -> float:
        """Largest difference of any number; infinite for fields that only one side has with the same sources."""
        sizes = list((self.scores or {}).values())
        if self.training is not None:
            same_sources = not any(change.startswith("sources: ") for change in self.changes)
            sizes += [math.inf] if self.training.one_sided and same_sources else []
            sizes += [gap.size for gap in self.training.gaps]
        return max(sizes, default=0.0)

    @property
    def same_platform(self) -> bool:
        """Whether hardware, Python and packages are those of the stored run."""
        return not any(change.startswith(PLATFORM) for change in self.changes)

    @property
    def wrong(self) -> bool:
        """Whether numbers differ although the platform is the same."""
        return self.largest > 0 and self.same_platform

    @property
    def text(self) -> str:
        """What was done again and what came out, without the name of the run."""
        if self.refused is not None:
            return self.refused
        parts = [] if self.training is None else [f"{self.training.updates} update(s)"]
        parts += ["no evaluation (it has no stored policy)" if self.scores is None else "the evaluation"]
        done = f"{' and '.join(parts)} done again: "
        if not self.largest:
            return f"{done}equal bits"
        where = "on the same platform" if self.same_platform else "on another platform"
        where += f" ({'; '.join(self.changes)})" if self.changes else ""
        first = self.training.gaps[0] if self.training is not None and self.training.gaps else None
        scores = {name: float(f"{gap:.3g}") for name, gap in (self.scores or {}).items() if gap}
        examples = [*([str(first)] if first else []), *([f"scores by up to {scores}"] if scores else [])]
        return f"{done}differs {where}: {', '.join(examples) or 'one side has fields that the other has not'}"

    @property
    def finding(self) -> Finding | None:
        """The finding about this run; None if there is nothing to tell."""
        return Finding(self.run, self.text, self.wrong) if self.refused or self.largest else None

    def document(self) -> dict[str, Any]:
        """The result as JSON data."""
        largest = self.largest
        return {
            "run": self.run,
            "text": self.text,
            "wrong": self.wrong,
            "largest_difference": largest if math.isfinite(largest) else None,
            "score_differences": self.scores,
            "changes": self.changes,
        }


def draw(runs: Sequence[Path], count: int | Literal["all"]) -> list[Path]:
    """The runs that are done again: `count` of the finished ones, in an order that the records themselves decide.

    The order follows from a digest of all `run.json`, so nobody who made them or checks them chooses, and everybody
    draws the same runs.
    """
    records = {run: (run / store.RUN).read_bytes() for run in runs if (run / store.RUN).is_file()}
    own = {run: hashlib.sha256(content).hexdigest() for run, content in records.items()}
    total = hashlib.sha256("".join(sorted(own.values())).encode()).hexdigest()
    order = sorted(own, key=lambda run: hashlib.sha256(f"{total} {own[run]}".encode()).hexdigest())
    return order if count == "all" else order[:count]


def replay_runs(runs: Sequence[Path]) -> list[PartialReplay]:
    """Do each run again in part, with one line of progress."""
    return [replay_run(run) for run in track(runs, "doing runs again")]


def replay_run(run: Path) -> PartialReplay:
    """Do the first updates of a run and the evaluation of its stored policy again, and compare all numbers."""
    try:
        record = store.read_record(run)
        if record.status == "failed":
            return PartialReplay(run, refused="not done again: it failed")
        if record.rules != RULES:
            return PartialReplay(run, refused=f"made under rules {record.rules}; this version has rules {RULES}")
        record, job = job_of(run)
        with tempfile.TemporaryDirectory(prefix="bench-replay-") as name:
            return _replay(run, record, replace(job, folder=Path(name)))
    except BenchError as error:
        return PartialReplay(run, refused=f"cannot be done again ({str(error).rstrip('.')})")


def _replay(run: Path, record: store.RunRecord, job: Job) -> PartialReplay:
    with run_lock(job.folder):
        models = load_models(job)
        diff = None
        if isinstance(job, TrainingRun):
            until = min(UPDATES, record.updates_done)
            try:
                store.start_run(job.folder, job.digest, job.inputs)
                Trainer.new(job, models.backbone, models.evaluators).train(silent, until)
            except DivergedError as error:
                stop = Difference(until, "error", record.error, str(error))
                return PartialReplay(run, TrainingDiff(until, gaps=[stop]))
            again = store.read_lines(job.folder / store.TRAIN)
            diff = compare_lines(store.read_lines(run / store.TRAIN), again, until)
        scores: dict[str, float] | None = None
        if diff is None or (run / store.POLICY).is_file():
            models.backbone.reset(stream(0, "initial_policy"))
            if diff is not None:
                load_policy(models.backbone, run)
            frame: pd.DataFrame = evaluate(models.backbone, models.evaluators, job.prepared).scores
            scores = score_floors(store.read_run(run)[1], store.sorted_scores(frame))
    changes = environment_changes(record_environment(record), current_environment(job, models))
    return PartialReplay(run, diff, scores, changes)
