"""Turn a suite into runs and have the unfinished ones done, by the launcher of the user's choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import plugins, store
from bench.algorithm.kl import kl_policy
from bench.core.errors import BenchError
from bench.core.hashing import digest, sha256_file
from bench.core.manifest import GOLDEN, MANIFEST, verify_manifest
from bench.core.provenance import package_versions, source_digest
from bench.store.record import STARTED
from bench.suite.difference import first_difference
from bench.suite.job import Job
from bench.suite.methods import make_method, recorded_params
from bench.suite.schema import PATHS, Experiment, RowSpec, packaged
from bench.train.preflight import existing_checkpoint


def checkpoint_digests(exp: Experiment, known: dict[str, Any]) -> dict[str, Any]:
    """What every checkpoint of the suite is; one with a manifest is verified file by file.

    `known` (checkpoint to digest) is looked up and added to: the variants of a study share gigabytes to hash.
    """
    folders = {"backbone": exp.backbone.checkpoint}
    for name in exp.judges:
        params = exp.evaluator_params.get(name, {})
        folders |= {f"{name}.{key}": params[key] for key in PATHS if isinstance(params.get(key), str)}
    for name in folders.values():
        if name not in known:
            known[name] = checkpoint_digest(name)
    return {key: known[name] for key, name in sorted(folders.items())}


def checkpoint_digest(name: str) -> Any:
    path = existing_checkpoint(name)
    if (path / MANIFEST).exists():
        return verify_manifest(path)
    if packaged(name):
        raise BenchError(
            f"checkpoint {path} has no {MANIFEST}: restore it with `git checkout`, or by `bench nano manifest`."
        )
    below = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name != GOLDEN]
    files = [path] if path.is_file() else below
    return [[file.relative_to(path.parent).as_posix(), sha256_file(file)] for file in files]


def all_jobs(suites: Sequence[Experiment], results: Path) -> list[Job]:
    """The jobs of a suite, or of all variants of a study; `check` comes before it."""
    known: dict[str, Any] = {}
    return [job for exp in suites for job in suite_jobs(exp, results, known)]


def suite_jobs(exp: Experiment, results: Path, known: dict[str, Any] | None = None) -> list[Job]:
    """The base and rows x seeds (seed by seed), each with its digest. Every name and parameter is checked here.

    A row counts by what it does, not by what it is called: its method's parameters after the suite's noise policy,
    and its KL policy's, all defaults filled in. Rows of two suites that do the same share their runs (bench/sharing).
    `known`: see `checkpoint_digests`.
    """
    common = exp.shared()
    del common["noise_policy"]
    shared = {
        "shared": common,
        "prompts": exp.check_prompts(),
        "checkpoints": checkpoint_digests(exp, {} if known is None else known),
        "sources": source_digest(),
        "packages": package_versions(),
        "backbone": plugins.source("backbones", exp.backbone.name),
        "evaluators": {name: plugins.source("evaluators", name) for name in exp.judges},
    }
    suite = results / exp.suite
    found = [Job(exp, None, None, suite / "base", digest({**shared, "row": None}))]
    rows = [
        (row, {"row": row_identity(exp, row), "method": plugins.source("methods", row.method)}) for row in exp.rows
    ]
    for seed in exp.seeds:
        for row, does in rows:
            key = {**shared, **does, "seed": seed}
            found.append(Job(exp, row, seed, store.run_folder(suite, row.name, seed), digest(key)))
    return found


def row_identity(exp: Experiment, row: RowSpec) -> dict[str, Any]:
    """What a row does: the clip range stands as it is before the harness scales it to the latent's size."""
    kl = dataclasses.asdict(kl_policy(row.kl_spec.name, **row.kl_spec.params))
    method = make_method(exp.model_copy(update={"clip_reference_size": None}), row, 1)
    return {"method": row.method, "params": recorded_params(method), "kl": row.kl_spec.name, "kl_params": kl}


def unfinished(found: Sequence[Job]) -> list[Job]:
    """Runs without a finished record of their digest; a folder of another digest, finished or not, is refused."""
    for job in found:
        started = job.folder / STARTED
        if started.exists():
            had = started.read_text(encoding="utf-8").strip()
            if had != job.digest and (job.folder / store.RUN).exists():
                _name_the_change(job)
            store.check_digest(job.folder, had, job.digest)
    return [job for job in found if not store.is_complete(job.folder, job.digest)]


def _name_the_change(job: Job) -> None:
    """Refuse a finished run of other settings with the first setting that differs; other sources or weights pass."""
    change = first_difference(store.read_record(job.folder).config, job.exp.shared())
    if change:
        raise BenchError(
            f"{job.folder} holds another run: {change}. Give this suite a name of its own with suite=NAME, "
            "write elsewhere with --results, or move that folder."
        )


STORED = "reference"
"""Folder of our own stored runs below the results: never taken for the user's own."""


def finished_runs(results: Path) -> dict[str, Path]:
    """Digest to folder of every finished run below `results`, our stored ones left out."""
    found: dict[str, Path] = {}
    for path in sorted(results.rglob(store.RUN)):
        started = path.parent / STARTED
        if STORED not in path.relative_to(results).parts and started.is_file():
            found.setdefault(started.read_text(encoding="utf-8").strip(), path.parent)
    return found


def copy_finished(jobs: Sequence[Job], results: Path) -> list[Job]:
    """Copy what another suite has finished; returns the jobs that are left to do."""
    known = finished_runs(results)
    return [job for job in jobs if job.digest not in known or not _copy_run(known[job.digest], job, results)]


def _copy_run(source: Path, job: Job, results: Path) -> bool:
    """The run under its new name: the record says where it was trained, its scores and curves are the same bytes."""
    record, scores = store.read_run(source)
    if record.status != "finished" or record.digest != job.digest:
        return False
    job.folder.mkdir(parents=True, exist_ok=True)
    store.write_text(job.folder / STARTED, job.digest + "\n")
    for name in (store.TRAIN, store.POLICY):
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


def unique_by_digest(jobs: Iterable[Job]) -> list[Job]:
    """One job of every digest."""
    return list({job.digest: job for job in reversed(list(jobs))}.values())[::-1]
