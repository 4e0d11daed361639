"""The runs of a suite: their digests, which of them are finished, and copies of finished runs of other suites."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import plugins, store
from bench.core.errors import BenchError
from bench.core.hashing import digest
from bench.core.progress import working
from bench.core.provenance import package_versions, source_digest
from bench.store.record import STARTED
from bench.suite.difference import first_difference
from bench.suite.job import BaseRun, Job, TrainingRun
from bench.suite.prepared import PreparedSuite
from bench.suite.schema import PluginSpec, RowSpec, Suite


def all_jobs(suites: Sequence[PreparedSuite], results: Path) -> list[Job]:
    """The runs of a suite, or of all variants of a study; call `check_suite` on each suite before."""
    sources = source_digest()
    return [job for prepared in suites for job in suite_jobs(prepared, results, sources)]


def suite_jobs(prepared: PreparedSuite, results: Path, sources: str | None = None) -> list[Job]:
    """The base and rows x seeds (seed by seed), each with its digest.

    The digest covers all parameters of a row's method (after the noise policy) and of its KL policy, not its name.
    Equal rows of two suites therefore have equal digests, and their runs are copied (`copy_finished`).
    `sources`: the source digest, if the caller has it.
    """
    suite, folder = prepared.suite, results / prepared.suite.name
    common = suite.shared()
    del common["noise_policy"]
    with working("hashing the checkpoints"):
        checkpoints = {use: checkpoint.digest for use, checkpoint in prepared.checkpoints.items()}
    shared = {
        "shared": common,
        "prompts": prepared.prompts.digest,
        "checkpoints": checkpoints,
        "sources": sources or source_digest(),
        "packages": package_versions(),
        "backbone": plugins.source("backbones", suite.backbone.name),
        "evaluators": {name: plugins.source("evaluators", name) for name in suite.all_evaluators},
        **_rule_sources(suite),
    }
    jobs: list[Job] = [BaseRun(prepared, folder / "base", digest({**shared, "row": None}))]
    rows = [
        (
            row.name,
            {
                "row": row.identity(),
                "method": plugins.source("methods", row.spec.method),
                **plugins.external_sources("kl_policies", row.spec.kl_spec.name),
            },
        )
        for row in prepared.rows
    ]
    for seed in suite.seeds:
        for name, identity in rows:
            key = digest({**shared, **identity, "seed": seed})
            jobs.append(TrainingRun(prepared, store.run_folder(folder, name, seed), key, name, seed))
    return jobs


def _rule_sources(suite: Suite) -> dict[str, dict[str, str]]:
    """Sources of a noise policy and of an advantage rule that are not part of the project."""
    rules = {"noise_policies": suite.noise_policy, "advantage_rules": suite.advantage}
    sources: dict[str, dict[str, str]] = {}
    for group, spec in rules.items():
        if isinstance(spec, PluginSpec):
            sources |= plugins.external_sources(group, spec.kind)
    return sources


def unfinished(jobs: Sequence[Job]) -> list[Job]:
    """Jobs without a finished record of their digest; a folder with another digest, finished or not, is refused."""
    for job in jobs:
        started = job.folder / STARTED
        if started.exists():
            stored = started.read_text(encoding="utf-8").strip()
            if stored != job.digest and (job.folder / store.RUN).exists():
                _check_settings(job)
            store.check_digest(job.folder, stored, job.digest)
    return [job for job in jobs if not store.is_complete(job.folder, job.digest)]


def _check_settings(job: Job) -> None:
    """Refuse a finished run with other settings and name the first of them; other sources or weights pass."""
    recorded = store.read_record(job.folder).config
    change = first_difference(recorded, job.suite.shared()) or _row_difference(recorded, job)
    if change:
        raise BenchError(
            f"{job.folder} holds another run: {change}. Give this suite a name of its own with suite=NAME, "
            "write elsewhere with --results, or move that folder."
        )


def _row_difference(recorded: dict[str, Any], job: Job) -> str | None:
    """The first setting of the job's row that the row of the same name has otherwise in a recorded suite."""
    if not isinstance(job, TrainingRun):
        return None
    rows = [RowSpec.model_validate(row) for row in recorded["rows"]]
    same = next((row for row in rows if row.name == job.row_name), None)
    if same is None:
        return None
    return first_difference(same.model_dump(mode="json"), job.row.spec.model_dump(mode="json"), f"row {job.row_name}")


STORED = "reference"
"""Folder of the project's stored runs below the results; a user's runs are never copied from it."""


def finished_runs(results: Path) -> dict[str, Path]:
    """Digest to folder of every finished run below `results`, without those of the folder `STORED`."""
    folders: dict[str, Path] = {}
    for path in sorted(results.rglob(store.RUN)):
        started = path.parent / STARTED
        if STORED not in path.relative_to(results).parts and started.is_file():
            folders.setdefault(started.read_text(encoding="utf-8").strip(), path.parent)
    return folders


def copy_finished(jobs: Sequence[Job], results: Path) -> list[Job]:
    """Copy the runs that another suite has finished; returns the jobs that remain."""
    folders = finished_runs(results)
    return [job for job in jobs if job.digest not in folders or not _copy_run(folders[job.digest], job, results)]


def _copy_run(source: Path, job: Job, results: Path) -> bool:
    """Copy a run under its new name; the record names the source, scores and curves are the same bytes.

    False if the source is not a finished run of this digest.
    """
    record, scores = store.read_run(source)
    if record.status != "finished" or record.digest != job.digest:
        return False
    store.make_folder(job.folder)
    store.write_text(job.folder / STARTED, job.digest + "\n")
    for name in (store.TRAIN, store.POLICY):
        if (source / name).is_file():
            store.write_bytes(job.folder / name, (source / name).read_bytes())
    changes = {
        "suite": job.suite.name,
        "row": job.identity["row"],
        "config": job.suite.model_dump(mode="json"),
        "extra": {**record.extra, "shared_from": source.relative_to(results).as_posix()},
    }
    store.write_run(job.folder, record.model_copy(update=changes), scores)
    return True


def unique_by_digest(jobs: Iterable[Job]) -> list[Job]:
    """The first job of every digest, in order."""
    return list({job.digest: job for job in reversed(list(jobs))}.values())[::-1]
