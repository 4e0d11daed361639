"""Runs that two suites share are trained once: a finished run of the same digest is copied, never repeated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import store
from bench.build import STARTED, Job

POLICY = store.POLICY
STORED = "reference"
"""Folder of our own stored runs below the results: never taken for the user's own."""


def finished(results: Path) -> dict[str, Path]:
    """Digest to folder of every finished run below `results`, our stored ones left out."""
    found: dict[str, Path] = {}
    for path in sorted(results.rglob(store.RUN)):
        started = path.parent / STARTED
        if STORED not in path.relative_to(results).parts and started.is_file():
            found.setdefault(started.read_text(encoding="utf-8").strip(), path.parent)
    return found


def fill(jobs: Sequence[Job], results: Path) -> list[Job]:
    """Copy what another suite has finished; returns the jobs that are left to do."""
    known = finished(results)
    return [job for job in jobs if job.digest not in known or not _copy(known[job.digest], job, results)]


def _copy(source: Path, job: Job, results: Path) -> bool:
    """The run under its new name: the record says where it was trained, its scores and curves are the same bytes."""
    record, scores = store.read_run(source)
    if record.status != "finished" or record.digest != job.digest:
        return False
    job.folder.mkdir(parents=True, exist_ok=True)
    store.write_text(job.folder / STARTED, job.digest + "\n")
    for name in (store.TRAIN, POLICY):
        if (source / name).is_file():
            store.write_bytes(job.folder / name, (source / name).read_bytes())
    changed = {
        "suite": job.exp.suite,
        "row": "base" if job.row is None else job.row.name,
        "config": job.exp.model_dump(mode="json"),
        "extra": {**record.extra, "shared_from": source.relative_to(results).as_posix()},
    }
    store.write_run(job.folder, record.model_copy(update=changed), scores)
    return True


def first_of_each(jobs: Iterable[Job]) -> list[Job]:
    """One job of every digest."""
    return list({job.digest: job for job in reversed(list(jobs))}.values())[::-1]
