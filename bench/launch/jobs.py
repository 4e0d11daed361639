"""The runs of a suite: their digests, which of them are finished, and copies of finished runs of other suites."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from bench import store
from bench.core.errors import BenchError, RunLockedError
from bench.core.hashing import digest
from bench.core.progress import working
from bench.core.provenance import source_digest
from bench.store.attempts import read_attempts, record_attempt
from bench.store.lock import run_lock
from bench.store.record import STARTED
from bench.store.videos import video_files
from bench.suite.difference import row_difference, settings_difference
from bench.suite.inputs import change_text, input_changes, run_inputs
from bench.suite.job import BaseRun, Job, TrainingRun
from bench.suite.prepared import PreparedSuite
from bench.suite.recorded import suite_of_record


def all_jobs(suites: Sequence[PreparedSuite], results: Path) -> list[Job]:
    """The runs of a suite, or of all variants of a study; call `check_suite` on each suite before."""
    sources = source_digest()
    return [job for prepared in suites for job in suite_jobs(prepared, results, sources)]


def suite_jobs(prepared: PreparedSuite, results: Path, sources: str | None = None) -> list[Job]:
    """The base and rows x seeds (seed by seed), each with its digest.

    The digest covers all parameters of a row's method (after the noise policy) and of its KL policy, not its name.
    Equal rows of two suites therefore have equal digests, and their runs are copied (`copy_finished`).
    `sources`: the source digest of the harness, if the caller has it.
    """
    suite, folder, harness = prepared.suite, results / prepared.suite.name, sources or source_digest()
    with working("hashing the checkpoints"):
        base = run_inputs(prepared, None, None, harness)
    rows = {row.name: run_inputs(prepared, row, None, harness) for row in prepared.rows}
    jobs: list[Job] = [BaseRun(prepared, folder / "base", digest(base), inputs=base)]
    for seed in suite.seeds:
        for name in rows:
            inputs = {**rows[name], "seed": seed}
            path = store.run_folder(folder, name, seed)
            jobs.append(TrainingRun(prepared, path, digest(inputs), name, seed, inputs=inputs))
    return jobs


def unfinished(jobs: Sequence[Job], overwrite: bool = False) -> list[Job]:
    """Jobs without a finished record of their digest, marked as overwriting where the folder has another run.

    Without `overwrite`, a folder of another run, finished or not, is a `BenchError`.
    """
    others = [job for job in jobs if store.other_digest(job.folder, job.digest) is not None]
    if others and not overwrite:
        raise BenchError(_refusal(others))
    pending = [job for job in jobs if job in others or not store.is_complete(job.folder)]
    for job in others:
        _refuse_stored(job)
    return [replace(job, overwrite=True) if job in others else job for job in pending]


def _refusal(others: Sequence[Job]) -> str:
    """Which folders have other runs, and what the first of these has otherwise."""
    folder, more = others[0].folder, len(others) - 1
    names = f"{folder} holds another run" if not more else f"{folder} and {more} more folder(s) hold other runs"
    return (
        f"{names}: {other_run(others[0])}. Start anew with --overwrite, give this suite a name of its own with "
        "suite=NAME, or write elsewhere with --results."
    )


def other_run(job: Job) -> str:
    """What the run in the job's folder has otherwise than the job, as text."""
    changes = input_changes(store.read_inputs(job.folder), job)
    if not changes and (job.folder / store.RUN).is_file():
        change = _setting_change(store.read_record(job.folder), job)
        changes = [change] if change else []
    other = store.other_digest(job.folder, job.digest)
    return change_text(changes) or (
        f"its digest is {other}, this run's is {job.digest} (the suite's settings, the weights or the sources changed)"
    )


def _setting_change(record: store.RunRecord, job: Job) -> str | None:
    """The first setting of a record that differs from the job's; None if there is none."""
    try:
        recorded = suite_of_record(job.folder, record)
    except BenchError:
        return "its configuration is not one of this version"
    change = settings_difference(recorded, job.suite)
    return change or (row_difference(recorded, job.row.spec) if isinstance(job, TrainingRun) else None)


STORED = "reference"
"""Folder of the project's stored runs below the results; a user's runs are never copied from it."""


def _refuse_stored(job: Job) -> None:
    """Refuse to overwrite one of the project's stored runs."""
    if ("results", STORED) in pairwise(job.folder.resolve().parts):
        raise BenchError(
            f"{job.folder} holds a stored run, which is never overwritten: write elsewhere with --results, or give "
            "this suite a name of its own with suite=NAME."
        )


def finished_runs(results: Path) -> dict[str, Path]:
    """Digest to folder of every finished run below `results`, without those of the folder `STORED`."""
    folders: dict[str, Path] = {}
    for path in store.find(results, f"**/{store.RUN}"):
        started = path.parent / STARTED
        if STORED not in path.relative_to(results).parts and started.is_file():
            folders.setdefault(store.read_digest(path.parent), path.parent)
    return folders


def copy_finished(jobs: Sequence[Job], results: Path) -> list[Job]:
    """Copy the runs that another suite has finished; returns the jobs that remain."""
    folders = finished_runs(results)
    return [job for job in jobs if job.digest not in folders or not _copy_run(folders[job.digest], job, results)]


def _copy_run(source: Path, job: Job, results: Path) -> bool:
    """Copy a run under its new name; the record names the source, scores and curves are the same bytes.

    False if the source is not a finished run of this digest, or another process works on the job.
    """
    record, scores = store.read_run(source)
    if record.status != "finished" or record.digest != job.digest:
        return False
    changes = {
        "suite": job.suite.name,
        "row": job.identity["row"],
        "config": job.suite.model_dump(mode="json"),
        "extra": {**record.extra, "shared_from": source.relative_to(results).as_posix()},
    }
    read_attempts(job.suite_folder)  # before anything is removed: a broken log refuses the copy
    store.make_folder(job.folder)
    try:
        with run_lock(job.folder):
            if job.overwrite:
                store.remove_run(job.folder)
            store.start_run(job.folder, job.digest, job.inputs)
            identity = job.identity
            attempt = record_attempt(job.suite_folder, "copy", identity["row"], identity["seed"], job.digest)
            for path in [source / store.TRAIN, source / store.POLICY, source / store.CURVE, *video_files(source)]:
                if path.is_file():
                    store.write_bytes(job.folder / path.relative_to(source), path.read_bytes())
            store.write_run(job.folder, record.model_copy(update={**changes, "attempt": attempt}), scores)
    except RunLockedError:  # `bench run` waits for the process that works on it
        return False
    return True


def unique_by_digest(jobs: Iterable[Job]) -> list[Job]:
    """The first job of every digest, in order."""
    return list({job.digest: job for job in reversed(list(jobs))}.values())[::-1]
