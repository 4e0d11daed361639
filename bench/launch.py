"""Turn a suite into runs and have the unfinished ones done, by the launcher of the user's choice."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import plugins, sharing, store
from bench.base import BenchError
from bench.build import STARTED, Job, copies, make_method, need_devices, recorded, refuse_shard
from bench.capabilities import ChecksSuite
from bench.config import PATHS, Experiment, RowSpec, difference, packaged, resolve
from bench.kl import kl_policy
from bench.launchers import How, Outcome, do
from bench.ledger import planned
from bench.processes import need_fit
from bench.progress import say
from bench.provenance import GOLDEN, MANIFEST, digest, package_versions, sha256_file, source_digest, verify_manifest
from bench.room import need_room
from bench.workload import anchor_nfe, judged_nfe


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
            known[name] = _checkpoint_digest(name)
    return {key: known[name] for key, name in sorted(folders.items())}


def _present(name: str) -> Path:
    """The checkpoint's path; a missing one is refused."""
    path = resolve(name)
    if not path.exists():
        raise BenchError(
            f"checkpoint {path} does not exist: `bench assets SUITE` lists what belongs there and how to fetch it; "
            "mend the path in the suite, or make it with `bench nano` for a nano part."
        )
    return path


def _checkpoint_digest(name: str) -> Any:
    path = _present(name)
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
    return [job for exp in suites for job in jobs(exp, results, known)]


def jobs(exp: Experiment, results: Path, known: dict[str, Any] | None = None) -> list[Job]:
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
    rows = [(row, {"row": _identity(exp, row), "method": plugins.source("methods", row.method)}) for row in exp.rows]
    for seed in exp.seeds:
        for row, does in rows:
            key = {**shared, **does, "seed": seed}
            found.append(Job(exp, row, seed, store.run_folder(suite, row.name, seed), digest(key)))
    return found


def _identity(exp: Experiment, row: RowSpec) -> dict[str, Any]:
    """What a row does: the clip range stands as it is before the harness scales it to the latent's size."""
    kl = dataclasses.asdict(kl_policy(row.kl_spec.name, **row.kl_spec.params))
    method = make_method(exp.model_copy(update={"clip_reference_size": None}), row, 1)
    return {"method": row.method, "params": recorded(method), "kl": row.kl_spec.name, "kl_params": kl}


def check(exp: Experiment) -> None:
    """Refuse, before anything is loaded or trained, what a run of the suite would refuse."""
    check_names(exp)
    check_backbone(exp)


def check_backbone(exp: Experiment, may_lack: bool = False) -> None:
    """Refuse a checkpoint or settings that the backbone could not load.

    `may_lack`: the checkpoint may be absent; the settings are then looked at alone.
    """
    refuse_shard(exp)
    backbone, name = plugins.find("backbones", exp.backbone.name), exp.backbone.checkpoint
    if isinstance(backbone, type) and issubclass(backbone, ChecksSuite):
        checkpoint = None if may_lack and not resolve(name).exists() else _present(name)
        backbone.check_suite(checkpoint, exp.budget.guidance, exp.backbone.train)


def check_names(exp: Experiment) -> None:
    """Refuse a wrong name or parameter of a plug-in or of a KL policy; checkpoints may be absent."""
    for name in [*exp.judges, *exp.evaluator_params]:
        plugins.check("evaluators", name, exp.evaluator_params.get(name, {}))
    plugins.check("backbones", exp.backbone.name, exp.backbone.train)
    for row in exp.rows:
        make_method(exp, row, exp.clip_reference_size or 1)
        kl_policy(row.kl_spec.name, **row.kl_spec.params)


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
    change = difference(store.read_record(job.folder).config, job.exp.shared())
    if change:
        raise BenchError(
            f"{job.folder} holds another run: {change}. Give this suite a name of its own with suite=NAME, "
            "write elsewhere with --results, or move that folder."
        )


def describe(exp: Experiment, found: Sequence[Job]) -> str:
    """What will run and what it will cost, for `--dry-run`."""
    todo = unfinished(found)
    budget, each = exp.budget, planned(exp.budget, len(exp.reward), exp.budget.updates)
    trained = [job for job in todo if job.row is not None]
    videos = len(exp.prompt_list("heldout")) * exp.evaluation.videos_per_prompt
    judged = judged_nfe(exp)
    lines = [
        f"suite {exp.suite}: {len(found)} runs (base + {len(exp.rows)} rows x {len(exp.seeds)} seeds), "
        f"{len(todo)} to do",
        *(f"  {job.label:32s} {'to do' if job in todo else 'finished'}  {job.digest}" for job in found),
        f"each row: {budget.updates} updates of {budget.prompts} prompts x {budget.group_size} samples, "
        f"{budget.steps} steps, "
        f"{budget.train_steps} trained, {budget.minibatches} optimizer step(s) each",
        "each row spends: " + ", ".join(f"{name} {value:,}" for name, value in each.items()),
        f"held-out evaluation of each run: {videos} videos x {exp.evaluation.steps} steps = {judged:,} NFE",
        f"to do in all: rollout NFE {each['nfe_rollout'] * len(trained):,}, "
        f"train NFE {each['nfe_train'] * len(trained):,}, "
        f"anchor NFE {sum(anchor_nfe(job.exp, job.row) for job in todo):,}, evaluation NFE {judged * len(todo):,}",
        _hours(found, len(trained)),
    ]
    return "\n".join(lines)


def _hours(found: Sequence[Job], todo: int) -> str:
    """Time from the finished runs of this suite on this machine; nothing is guessed without one."""
    done = [
        store.read_record(job.folder)
        for job in found
        if job.row is not None and store.is_complete(job.folder, job.digest)
    ]
    if not todo:
        return "time: nothing to do"
    if not done:
        return "time: unknown until one run of this suite has finished on this machine"
    minutes = sum(sum(record.seconds.values()) for record in done) / len(done) / 60
    return f"time: {minutes:.1f} minutes of one process per run, measured on {len(done)} finished runs"


def run(suites: Sequence[Experiment], results: Path, how: How = How()) -> Outcome:  # noqa: B008  (frozen)
    """Do every unfinished run of a suite, or of all variants of a study.

    One run's error leaves the others going; the caller turns the outcome into an exit code.
    """
    for exp in suites:
        check(exp)
        size = how.spread.size
        if size % copies(exp):
            raise BenchError(
                f"backbone.train.parallel.context is {copies(exp)}, but a run has {size} process(es): "
                f"use --launcher torchrun with an --nproc that is a multiple of {copies(exp)}."
            )
        need_fit(exp.budget, size // copies(exp))
        if how.launcher != "slurm":  # its jobs look at their own machine
            need_devices(exp, how.nproc)
            need_room(exp, size, how.shard)
    found = all_jobs(suites, results)
    todo, outcome = unfinished(found), Outcome()
    done = [job for job in found if job not in todo]
    outcome.failed = sum(store.read_record(job.folder).status == "failed" for job in done)
    if done:
        say(f"{len(done)} of {len(found)} runs are finished already under {results / suites[0].study}")
    left = sharing.fill(todo, results)
    if len(left) < len(todo):
        say(f"{len(todo) - len(left)} runs are shared with other suites under {results}")
    todo = sharing.first_of_each(left)
    if todo:
        if how.launcher == "local":  # its runs share one GPU
            together = min(how.processes or len(os.sched_getaffinity(0)), len(todo))
            for exp in suites:
                need_room(exp, runs=together)
        do(todo, {job.label: _cost(job) for job in todo}, how, outcome, results / suites[0].study)
        twins = [job for job in left if job not in todo]
        outcome.finished += len(twins) - len(sharing.fill(twins, results))
    return outcome


def _cost(job: Job) -> tuple[int, int]:
    """Function evaluations of a run's training (anchors included) and of its held-out evaluation."""
    if job.row is None:
        return 0, judged_nfe(job.exp)
    spent = planned(job.exp.budget, len(job.exp.reward), job.exp.budget.updates)
    return spent["nfe_rollout"] + spent["nfe_train"] + anchor_nfe(job.exp, job.row), judged_nfe(job.exp)
