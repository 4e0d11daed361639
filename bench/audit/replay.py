"""`bench replay`: repeat a recorded run and compare every number.

The configuration, row and seed come from the record. The first updates, or the whole run with its held-out
evaluation, are repeated in another folder. The only file that is written into the stored run is `replay.json`.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import store
from bench.audit.differences import (
    TrainingDiff,
    compare_lines,
    curve_floors,
    environment,
    environment_changes,
    score_floors,
)
from bench.core.errors import BenchError, DivergedError
from bench.core.process_state import process_state
from bench.core.progress import ProgressCallback
from bench.core.provenance import hardware, provenance
from bench.launch.jobs import suite_jobs
from bench.launch.progress import RunsProgress
from bench.launch.run import workload
from bench.store.curve import read_points
from bench.store.lock import run_lock
from bench.store.record import STARTED
from bench.store.replay import ReplayRecord, write_replay
from bench.suite.devices import gpu_name, refuse_context_parallel
from bench.suite.job import Job, TrainingRun
from bench.suite.prepared import prepare
from bench.suite.recorded import suite_of_record
from bench.train.preflight import check_suite
from bench.train.run import LoadedModels, execute, load_models
from bench.train.trainer import Trainer

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ReplayResult:
    """Result of the repeated run."""

    lines: list[dict[str, Any]]
    """Lines of `train.jsonl`."""
    error: str | None
    environment: dict[str, Any]
    """Sources, versions, hardware, weights and prompts, by name."""
    curve: pd.DataFrame
    """The points of the held-out curve; no rows for a run without one."""
    scores: pd.DataFrame | None = None
    """None if only the first updates were repeated, or if the run failed."""


@dataclass(frozen=True)
class ReplayReport:
    """Comparison of the repeated with the stored run."""

    run: Path
    record: store.RunRecord
    """Of the stored run."""
    updates: int
    """Number of updates that are compared."""
    whole: bool
    """Whether the whole run was repeated, with its held-out evaluation."""
    training: TrainingDiff
    score_differences: dict[str, float] | None
    """Largest difference of each metric; None if there are no scores to compare."""
    curve_differences: dict[str, float]
    """The same of the points of the held-out curve; {} without a curve."""
    errors: tuple[str | None, str | None]
    """What stopped the stored run and its repetition."""
    changes: list[str]
    """Changes of the environment since the stored run, one phrase each."""

    @property
    def new_fields(self) -> bool:
        """Whether lines have other fields although the sources are the same."""
        return bool(self.training.one_sided) and not any(change.startswith("sources: ") for change in self.changes)

    @property
    def equal(self) -> bool:
        return self.largest == 0

    @property
    def largest(self) -> float:
        """Largest difference of any number; infinite if numbers are missing or only one of the two runs stopped."""
        if (self.errors[0] is None) != (self.errors[1] is None) or self.new_fields:
            return math.inf
        gap = self.training.largest
        scores = [*(self.score_differences or {}).values(), *self.curve_differences.values()]
        return max(0.0 if gap is None else gap.size, *scores, 0.0)


def job_of(run: Path) -> tuple[store.RunRecord, Job]:
    """The recorded run as a job with today's digest; a record that this version cannot run is refused."""
    record = store.read_record(run)
    suite = suite_of_record(run, record)
    rows = [row for row in suite.rows if row.name == record.row]
    if record.seed is not None:
        if not rows:
            raise BenchError(f"record {run / store.RUN} has no row {record.row!r} in its configuration.")
        suite = suite.model_copy(update={"rows": rows, "seeds": [record.seed]})
    refuse_context_parallel(suite, "bench replay")
    prepared = prepare(suite)
    check_suite(prepared)
    return record, suite_jobs(prepared, run)[0 if record.seed is None else 1]


@contextmanager
def _replay_folder(out: Path | None, run: Path, digest: str) -> Iterator[Path]:
    """The folder of the repetition: a temporary one, or `out`, which may contain the first updates of this replay."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="bench-replay-") as name:
            yield Path(name) / "suite" / "row" / "seed-0"  # a run writes to the folder of its suite too
        return
    started = out / STARTED
    if (out / store.RUN).exists() or out.resolve() == run.resolve():
        raise BenchError(f"--out {out} contains a run already: name a new folder for the replay.")
    if started.is_file():
        store.check_digest(out, store.read_digest(out), digest)
    elif out.exists() and any(out.iterdir()):
        raise BenchError(f"--out {out} contains other files: name a new or an empty folder for the replay.")
    yield out


def _repeat_run(job: Job, report: ProgressCallback) -> ReplayResult:
    record = execute(job, report, log_attempt=False)
    _, scores = store.read_run(job.folder)
    return ReplayResult(
        store.read_lines(job.folder / store.TRAIN),
        record.error,
        record_environment(record),
        store.read_curve(job.folder, record),
        scores if record.scores_digest is not None else None,
    )


def record_environment(record: store.RunRecord) -> dict[str, Any]:
    """Everything besides the settings that may have changed a number of the stored run."""
    return environment(record.provenance, record.backbone, record.evaluators, record.prompts_digest)


def _repeat_updates(job: TrainingRun, updates: int, report: ProgressCallback) -> ReplayResult:
    store.make_folder(job.folder)
    error = None
    with run_lock(job.folder):
        store.write_text(job.folder / STARTED, job.digest + "\n")
        models = load_models(job, report)
        try:
            Trainer.new(job, models.backbone, models.evaluators).train(report, updates)
        except DivergedError as cause:
            error = str(cause)
    lines, curve = store.read_lines(job.folder / store.TRAIN), read_points(job.folder)
    return ReplayResult(lines, error, current_environment(job, models), curve)


def current_environment(job: Job, models: LoadedModels) -> dict[str, Any]:
    """The same of a run that this process does."""
    return environment(
        provenance(processes=1, source_digest=job.source_digest, process_state=process_state(), **gpu_name()),
        dict(models.backbone.fingerprint()),
        {name: dict(evaluator.fingerprint()) for name, evaluator in models.evaluators.items()},
        job.prepared.prompts.digest(job.suite.evaluation.prompts),
    )


def replay(run: Path, updates: int | None = None, out: Path | None = None) -> ReplayReport:
    """Repeat the run, or its first `updates` without the held-out evaluation, and compare.

    `out`: folder of the repetition, by default a temporary one. Raises `BenchError` for a record that cannot be run.
    """
    record, job = job_of(run)
    planned = job.suite.budget.updates if isinstance(job, TrainingRun) else 0
    if updates is not None and not 1 <= updates <= planned:
        raise BenchError(
            f"--updates is {updates}, but the run has {planned} update(s): "
            + (f"give 1 to {planned}." if planned else "the base is not trained, leave --updates out.")
        )
    stored_scores = store.read_run(run)[1] if updates is None else None
    stored_curve = store.read_curve(run, record)
    with _replay_folder(out, run, job.digest) as folder:
        job = replace(job, folder=folder)
        with _show_progress(job, updates) as report:
            if updates is not None and isinstance(job, TrainingRun):
                result = _repeat_updates(job, updates, report)
            else:
                result = _repeat_run(job, report)
    until = planned if updates is None else updates
    stored_error_counts = updates is None or record.updates_done < until
    digest_change = [] if job.digest == record.digest else [f"digest: {record.digest} stored, {job.digest} again"]
    score_differences = None
    if record.scores_digest is not None and stored_scores is not None and result.scores is not None:
        score_differences = score_floors(stored_scores, result.scores)
    return ReplayReport(
        run=run,
        record=record,
        updates=until,
        whole=updates is None,
        training=compare_lines(store.read_lines(run / store.TRAIN), result.lines, until),
        score_differences=score_differences,
        curve_differences=curve_floors(stored_curve[stored_curve["update"] <= until], result.curve),
        errors=(record.error if stored_error_counts else None, result.error),
        changes=environment_changes(record_environment(record), result.environment) or digest_change,
    )


def write_verdict(report: ReplayReport) -> Path:
    """Write `replay.json` of a whole replay beside the record of the run."""
    gaps = report.training.gaps
    record = ReplayRecord(
        digest=report.record.digest,
        scores_digest=report.record.scores_digest,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware={**hardware(), **gpu_name()},
        equal=report.equal,
        training_gaps=len(gaps),
        first_gap=str(gaps[0]) if gaps else None,
        floors=report.score_differences or {},
        other=report.changes,
    )
    return write_replay(report.run, record)


@contextmanager
def _show_progress(job: Job, updates: int | None) -> Iterator[ProgressCallback]:
    """Show what the repetition does."""
    work = workload(job)
    if updates is not None:
        work = replace(work, updates=updates, videos=0)
    with RunsProgress({job.label: work}) as progress:
        yield lambda step: progress.record(job.label, step, time.monotonic())


def replay_page(report: ReplayReport, tolerance: float) -> str:
    """The comparison as text; the first line is the result."""
    training, errors, scores = report.training, report.errors, report.score_differences
    parts = [f"{report.updates} update(s)"] * (report.updates > 0) + ["the held-out evaluation"] * report.whole
    lines = [f"{report.run}: {' and '.join(parts)} done again: {_result(report, tolerance)}"]
    if report.updates:
        lines.append(f"training: {len(training.gaps)} of {training.compared} numbers differ")
    if training.gaps:
        lines += [f"  first: {training.gaps[0]}", f"  largest: {training.largest}"]
    if scores is not None:
        gaps = ", ".join(f"{name} {size:.3g}" for name, size in scores.items())
        lines.append(f"scores: largest difference {gaps}" if any(scores.values()) else "scores: all equal")
    if curve := report.curve_differences:
        gaps = ", ".join(f"{name} {size:.3g}" for name, size in curve.items())
        lines.append(f"curve: largest difference {gaps}" if any(curve.values()) else "curve: all points equal")
    if any(errors):  # their texts are not compared, since they may contain the name of a folder
        lines.append(f"stopped by: {errors[0] or 'nothing'} (stored); {errors[1] or 'nothing'} (again)")
    lines += [
        f"not compared: {name}, which only the {side} run has" for name, side in sorted(training.one_sided.items())
    ]
    lines += [f"other than in the record: {change}" for change in report.changes]
    if not report.changes:
        lines.append("the same sources, versions, hardware and weights as in the record")
    return "\n".join(lines)


def replay_document(report: ReplayReport, tolerance: float) -> dict[str, Any]:
    """The comparison as JSON data."""
    training = report.training
    return {
        "run": report.run,
        "updates": report.updates,
        "whole": report.whole,
        "equal": report.equal,
        "largest_difference": report.largest,
        "within_tolerance": report.largest <= tolerance,
        "numbers_compared": training.compared,
        "numbers_that_differ": len(training.gaps),
        "first_difference": str(training.gaps[0]) if training.gaps else None,
        "not_compared": training.one_sided,
        "score_differences": report.score_differences,
        "curve_differences": report.curve_differences,
        "stopped_by": dict(zip(("stored", "again"), report.errors, strict=True)),
        "changes": report.changes,
    }


def _result(report: ReplayReport, tolerance: float) -> str:
    if report.equal:
        return "equal bits"
    infinite = report.largest == math.inf
    size = "cannot be compared in full" if infinite else f"differs by up to {report.largest:.3g}"
    return f"{size}, {'within' if report.largest <= tolerance else 'above'} the tolerance of {tolerance:g}"
