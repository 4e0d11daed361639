"""`bench replay`: do a recorded run again and say in what it differs.

From the record alone: its configuration, row and seed. The first updates, or all of the run with its held-out
evaluation, in a folder of its own; nothing of the stored run is touched but its `replay.json`.
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

from pydantic import ValidationError

from bench import store
from bench.audit.differences import TrainingDiff, compare_lines, environment, environment_changes, score_floors
from bench.core.errors import BenchError, DivergedError
from bench.core.progress import LINE_EVERY, say
from bench.core.provenance import hardware, provenance
from bench.launch.jobs import suite_jobs
from bench.store.record import STARTED
from bench.store.replay import ReplayRecord, write_replay
from bench.suite.devices import gpu_name, refuse_context_parallel
from bench.suite.job import Job
from bench.suite.schema import Experiment
from bench.train import checkpoint
from bench.train.preflight import check_suite
from bench.train.run import execute, load_models
from bench.train.trainer import ProgressCallback, Trainer

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ReplayResult:
    """What the second time gave."""

    lines: list[dict[str, Any]]
    error: str | None
    surroundings: dict[str, Any]
    scores: pd.DataFrame | None = None
    """None where only the first updates were done, or where the run failed."""


@dataclass(frozen=True)
class ReplayReport:
    """A replay beside the stored run."""

    run: Path
    record: store.RunRecord
    """Of the stored run."""
    updates: int
    whole: bool
    curves: TrainingDiff
    floors: dict[str, float] | None
    """Largest difference of each metric; None where there are no scores to compare."""
    errors: tuple[str | None, str | None]
    """What stopped the stored run and its replay, if anything did."""
    other: list[str]

    @property
    def new_fields(self) -> bool:
        """Whether lines have other fields although the sources are the same."""
        return bool(self.curves.one_sided) and not any(each.startswith("sources: ") for each in self.other)

    @property
    def equal(self) -> bool:
        return self.largest == 0

    @property
    def largest(self) -> float:
        """Largest difference of any number; infinite where something is missing or stopped otherwise."""
        if (self.errors[0] is None) != (self.errors[1] is None) or self.new_fields:
            return math.inf
        gap = self.curves.largest
        return max(0.0 if gap is None else gap.size, *(self.floors or {}).values(), 0.0)


def job_of(run: Path) -> tuple[store.RunRecord, Job]:
    """The recorded run as a job with today's digest; the record must be one that this version can do."""
    record = store.read_record(run)
    try:
        exp = Experiment.model_validate(record.config)
    except ValidationError as cause:
        first = cause.errors()[0]
        raise BenchError(
            f"record {run / store.RUN} holds a configuration that this version does not take "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}): check out the commit that it names."
        ) from cause
    rows = [row for row in exp.rows if row.name == record.row]
    if record.seed is not None:
        if not rows:
            raise BenchError(f"record {run / store.RUN} names no row {record.row!r} in its own configuration.")
        exp = exp.model_copy(update={"rows": rows, "seeds": [record.seed]})
    refuse_context_parallel(exp, "bench replay")
    check_suite(exp)
    return record, suite_jobs(exp, run)[0 if record.seed is None else 1]


@contextmanager
def _folder(out: Path | None, run: Path, digest: str) -> Iterator[Path]:
    """Where the run is done again: a temporary folder, or `out`, which may hold the beginning of the same replay."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="bench-replay-") as name:
            yield Path(name)
        return
    started = out / STARTED
    if (out / store.RUN).exists() or out.resolve() == run.resolve():
        raise BenchError(f"--out {out} holds a run already: name a new folder for the replay.")
    if started.is_file():
        store.check_digest(out, started.read_text(encoding="utf-8").strip(), digest)
    elif out.exists() and any(out.iterdir()):
        raise BenchError(f"--out {out} holds other files: name a new or an empty folder for the replay.")
    yield out


def _replay_whole(job: Job, report: ProgressCallback) -> ReplayResult:
    record = execute(job, report)
    _, scores = store.read_run(job.folder)
    where = environment(record.provenance, record.backbone, record.evaluators, record.prompts_digest)
    kept = scores if record.scores_digest is not None else None
    return ReplayResult(store.read_lines(job.folder / store.TRAIN), record.error, where, kept)


def _replay_part(job: Job, updates: int, report: ProgressCallback) -> ReplayResult:
    job.folder.mkdir(parents=True, exist_ok=True)
    error = None
    with checkpoint.run_lock(job.folder):
        store.write_text(job.folder / STARTED, job.digest + "\n")
        backbone, evaluators, _ = load_models(job)
        try:
            Trainer.new(job, backbone, evaluators).train(report, updates)
        except DivergedError as cause:
            error = str(cause)
    prints = {name: dict(each.fingerprint()) for name, each in evaluators.items()}
    made = provenance(processes=1, **gpu_name())
    where = environment(made, dict(backbone.fingerprint()), prints, job.exp.check_prompts())
    return ReplayResult(store.read_lines(job.folder / store.TRAIN), error, where)


def replay(run: Path, updates: int | None = None, out: Path | None = None) -> ReplayReport:
    """Do the run again, all of it with its held-out evaluation or its first `updates`, and compare."""
    record, job = job_of(run)
    planned = 0 if record.seed is None else job.exp.budget.updates
    if updates is not None and not 1 <= updates <= planned:
        raise BenchError(
            f"--updates is {updates}, but the run has {planned} update(s): "
            + (f"give 1 to {planned}." if planned else "the base is not trained, leave --updates out.")
        )
    stored_scores = store.read_run(run)[1] if updates is None else None
    with _folder(out, run, job.digest) as folder:
        job = replace(job, folder=folder)
        again = _replay_whole(job, _as_text(job)) if updates is None else _replay_part(job, updates, _as_text(job))
    until = planned if updates is None else updates
    stops = updates is None or record.updates_done < until
    where = environment(record.provenance, record.backbone, record.evaluators, record.prompts_digest)
    changed = [] if job.digest == record.digest else [f"digest: {record.digest} stored, {job.digest} again"]
    differences = None
    if record.scores_digest is not None and stored_scores is not None and again.scores is not None:
        differences = score_floors(stored_scores, again.scores)
    return ReplayReport(
        run=run,
        record=record,
        updates=until,
        whole=updates is None,
        curves=compare_lines(store.read_lines(run / store.TRAIN), again.lines, until),
        floors=differences,
        errors=(record.error if stops else None, again.error),
        other=environment_changes(where, again.surroundings) or changed,
    )


def write_verdict(verdict: ReplayReport) -> Path:
    """`replay.json` of a whole replay, beside the record of the run."""
    gaps = verdict.curves.gaps
    kept = ReplayRecord(
        digest=verdict.record.digest,
        scores_digest=verdict.record.scores_digest,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware={**hardware(), **gpu_name()},
        equal=verdict.equal,
        training_gaps=len(gaps),
        first_gap=str(gaps[0]) if gaps else None,
        floors=verdict.floors or {},
        other=verdict.other,
    )
    return write_replay(verdict.run, kept)


def _as_text(job: Job) -> ProgressCallback:
    """Plain lines of progress on stderr."""
    last = [-math.inf]

    def report(phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - last[0] > LINE_EVERY:
            last[0] = now
            say(f"again: {job.label}: {phase} {done}/{total}")

    return report


def replay_page(verdict: ReplayReport, tolerance: float) -> str:
    """The verdict in words, first line first."""
    curves, errors = verdict.curves, verdict.errors
    parts = [f"{verdict.updates} update(s)"] * (verdict.updates > 0) + ["the held-out evaluation"] * verdict.whole
    said = "equal bits"
    if not verdict.equal:
        size = f"differs by up to {verdict.largest:.3g}"
        size = "cannot be compared in full" if verdict.largest == math.inf else size
        said = f"{size}, {'within' if verdict.largest <= tolerance else 'above'} the tolerance of {tolerance:g}"
    lines = [f"{verdict.run}: {' and '.join(parts)} done again: {said}"]
    if verdict.updates:
        lines.append(f"training: {len(curves.gaps)} of {curves.compared} numbers differ")
    if curves.gaps:
        lines += [f"  first: {curves.gaps[0]}", f"  largest: {curves.largest}"]
    if verdict.floors is not None:
        gaps = ", ".join(f"{name} {size:.3g}" for name, size in verdict.floors.items())
        lines.append(f"scores: largest difference {gaps}" if any(verdict.floors.values()) else "scores: all equal")
    if any(errors):  # their words may name a folder
        lines.append(f"stopped by: {errors[0] or 'nothing'} (stored); {errors[1] or 'nothing'} (again)")
    lines += [
        f"not compared: {name}, which only the {side} run has" for name, side in sorted(curves.one_sided.items())
    ]
    lines += [f"other than in the record: {each}" for each in verdict.other]
    if not verdict.other:
        lines.append("the same sources, versions, hardware and weights as in the record")
    return "\n".join(lines)
