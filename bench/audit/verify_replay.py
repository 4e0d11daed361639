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
from bench.store.lock import run_lock
from bench.store.policy import load_policy
from bench.suite.job import Job, TrainingRun
from bench.train.evaluate import evaluate
from bench.train.run import load_models
from bench.train.trainer import Trainer

UPDATES = 2
"""Updates that are done again: the first has no history, the second has that of the optimizer and of the KL policy."""
PLATFORM = ("CPU: ", "machine: ", "GPU: ", "processes: ", "python: ", "package ")
"""Starts of the changes of an environment with which equal bits cannot be expected."""
TOLERANCE = 10 * 0.0028
"""Largest difference of a score, and of a number of training or its share if it is above 1, where equal bits cannot be
expected: ten times the largest one that another CPU caused in a whole run (docs/how-to/replay-and-audit.md)."""
UNBOUNDED = ("weights_before", "weights_after", "grad_clipped", "tied_groups", "clipped_share")
"""Fields of the log that the last digit of a number may change altogether: hashes, and counts of comparisons."""
ONE_SIDED = "one side has fields that the other has not"


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
    gpu: bool = False
    """Whether the stored run used a GPU, whose kernels may give other bits each time."""
    refused: str | None = None
    """Why nothing was done again, in one sentence."""

    @property
    def complete(self) -> bool:
        """Whether training, if there is one, and evaluation were done again."""
        return self.refused is None and self.scores is not None

    @property
    def largest(self) -> float:
        """Largest difference of any number; infinite for fields that only one side has with the same sources."""
        sizes = list((self.scores or {}).values())
        sizes += [math.inf] if self._new_fields else []
        sizes += [gap.size for gap in self._gaps]
        return max(sizes, default=0.0)

    @property
    def _gaps(self) -> list[Difference]:
        return [] if self.training is None else self.training.gaps

    @property
    def _new_fields(self) -> bool:
        """Whether only one side has some field although the sources are the same."""
        same_sources = not any(change.startswith("sources: ") for change in self.changes)
        return self.training is not None and bool(self.training.one_sided) and same_sources

    @property
    def same_platform(self) -> bool:
        """Whether hardware, Python and packages are those of the stored run."""
        return not any(change.startswith(PLATFORM) for change in self.changes)

    @property
    def exact(self) -> bool:
        """Whether equal bits are expected: on the same platform, without a GPU."""
        return self.same_platform and not self.gpu

    @property
    def wrong(self) -> bool:
        """Whether numbers differ where equal bits are expected, or by more than the tolerance elsewhere."""
        return self.largest > 0 if self.exact else self._too_large() is not None

    def _too_large(self) -> str | None:
        """The first difference above the tolerance, as text; None if there is none."""
        texts = [ONE_SIDED] if self._new_fields else []
        texts += [str(gap) for gap in self._gaps if not within_tolerance(gap)]
        texts += [f"{name} by {size:.3g}" for name, size in (self.scores or {}).items() if size > TOLERANCE]
        return texts[0] if texts else None

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
        if not self.exact:
            above = self._too_large()
            where += f", {'within' if above is None else 'above'} the tolerance of {TOLERANCE:g}"
            where += "" if above is None else f" ({above})"
        first = self._gaps[0] if self._gaps else None
        scores = {name: float(f"{gap:.3g}") for name, gap in (self.scores or {}).items() if gap}
        examples = [*([str(first)] if first else []), *([f"scores by up to {scores}"] if scores else [])]
        return f"{done}differs {where}: {', '.join(examples) or ONE_SIDED}"

    @property
    def finding(self) -> Finding | None:
        """The finding about this run; None if there is nothing to tell."""
        return None if self.complete and not self.largest else Finding(self.run, self.text, self.wrong)

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


def within_tolerance(gap: Difference) -> bool:
    """Whether another platform may cause this difference of a number of training.

    It may cause no other learning rate and no other whole number, such as a trained step, beside those of `UNBOUNDED`.
    """
    if gap.field.split(".")[0] in UNBOUNDED:
        return True
    if math.isinf(gap.size):
        return False
    exact = isinstance(gap.stored, int) or gap.field.startswith("lr.")
    return gap.size <= (0.0 if exact else TOLERANCE * max(1.0, abs(gap.stored)))


def draw(runs: Sequence[Path], count: int | Literal["all"], number: int) -> list[Path]:
    """The runs that are done again: at most `count` of these, in an order that `number` and their records decide.

    `runs`: those that can be read, have finished and were made under the rules of this version
    (`bench.audit.verify.Report.repeatable`). The order follows from the number and a digest of all their `run.json`.
    Who made them does not know the number, who checks them does not choose it if it is drawn, and with the number
    everybody draws the same runs.
    """
    own = {run: hashlib.sha256((run / store.RUN).read_bytes()).hexdigest() for run in runs}
    total = hashlib.sha256(f"{number} {''.join(sorted(own.values()))}".encode()).hexdigest()
    order = sorted(own, key=lambda run: hashlib.sha256(f"{total} {own[run]}".encode()).hexdigest())
    return order if count == "all" else order[:count]


def replay_runs(runs: Sequence[Path]) -> list[PartialReplay]:
    """Do each run again in part, with one line of progress."""
    return [replay_run(run) for run in track(runs, "doing runs again")]


def replay_run(run: Path) -> PartialReplay:
    """Do the first updates of a run and the evaluation of its stored policy again, and compare all numbers."""
    try:
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
    return PartialReplay(run, diff, scores, changes, gpu=bool(record.provenance.get("gpu")))
