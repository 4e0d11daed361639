"""Run every unfinished job of a suite, or describe the jobs and their cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench import store
from bench.core.errors import BenchError
from bench.core.ledger import planned_counts
from bench.core.progress import inform
from bench.core.world import check_divisible
from bench.launch.config import LaunchConfig
from bench.launch.jobs import all_jobs, copy_finished, other_run, unfinished, unique_by_digest
from bench.launch.launchers import Outcome, run_jobs
from bench.launch.progress import Workload
from bench.plan.fit import check_gpu_memory, runs_at_once
from bench.plan.workload import anchor_nfe, curve_nfe, curve_points, evaluation_nfe, held_out_videos
from bench.store.lock import is_locked
from bench.suite.devices import check_devices, shared_gpus
from bench.suite.job import Job, TrainingRun
from bench.suite.prepared import PreparedSuite, check_machine
from bench.suite.prompts import count_comments
from bench.suite.stored import write_suite
from bench.train.preflight import check_suite


def describe(prepared: PreparedSuite, jobs: Sequence[Job], overwrite: bool = False) -> str:
    """The jobs of a suite, which of them are finished, and the cost of the others, for `--dry-run`."""
    suite, pending = prepared.suite, unfinished(jobs, overwrite)
    states = {job.folder: "anew" if job.overwrite else "to do" for job in pending}
    budget, spending = suite.budget, planned_counts(suite.budget, len(suite.reward), suite.budget.updates)
    training = [job for job in pending if isinstance(job, TrainingRun)]
    evaluation, curve = evaluation_nfe(prepared), curve_nfe(prepared)
    lines = [
        f"suite {suite.name}: {len(jobs)} runs (base + {len(suite.rows)} rows x {len(suite.seeds)} seeds), "
        f"{len(pending)} to do",
        *(f"  {job.label:32s} {states.get(job.folder, 'finished')}  {job.digest}" for job in jobs),
        _prompt_counts(prepared),
        f"each row: {budget.updates} updates of {budget.prompts} prompts x {budget.group_size} samples, "
        f"{budget.steps} steps, "
        f"{budget.train_steps} trained, {budget.minibatches} optimizer step(s) each",
        "each row spends: " + ", ".join(f"{name} {value:,}" for name, value in spending.items()),
        f"held-out evaluation of each run: {held_out_videos(prepared)} videos x {suite.evaluation.steps} steps = "
        f"{evaluation:,} NFE",
        f"held-out curve of each row: {curve_points(prepared)} points, {curve:,} NFE; "
        f"kept videos of each run: {len(prepared.scored_prompts) * suite.evaluation.keep_videos}",
        f"to do in all: rollout NFE {spending['nfe_rollout'] * len(training):,}, "
        f"train NFE {spending['nfe_train'] * len(training):,}, "
        f"anchor NFE {sum(anchor_nfe(budget, job.row) for job in training):,}, "
        f"curve NFE {curve * len(training):,}, "
        f"evaluation NFE {evaluation * len(pending):,}",
        _time_left([job for job in jobs if job not in pending], len(training)),
    ]
    return "\n".join(lines)


def _prompt_counts(prepared: PreparedSuite) -> str:
    """Prompts for training, held out and for validation, and lines passed over because they start with '#'."""
    files, lists = prepared.suite.prompts, prepared.prompts
    names = files.model_dump(exclude_none=True)
    comments = [str(count_comments(name, f"prompts.{key}")) for key, name in names.items()]
    validation = "no" if lists.validation is None else len(lists.validation)
    return (
        f"prompts: {len(lists.train)} for training, {len(lists.held_out)} held out, {validation} for validation; "
        f"scored: {prepared.suite.evaluation.prompts}; lines with # that are passed over: {', '.join(comments)}"
    )


def _time_left(finished_jobs: Sequence[Job], pending: int) -> str:
    """Minutes per run, from the finished runs of this suite; without one, no estimate."""
    finished = [store.read_record(job.folder) for job in finished_jobs if isinstance(job, TrainingRun)]
    if not pending:
        return "time: nothing to do"
    if not finished:
        return "time: unknown until one run of this suite has finished on this machine"
    minutes = sum(sum(record.seconds.values()) for record in finished) / len(finished) / 60
    return f"time: {minutes:.1f} minutes of one process per run, measured on {len(finished)} finished runs"


def check_launch(prepared: PreparedSuite, launch: LaunchConfig) -> None:
    """Refuse a suite that cannot run, and processes that do not fit the suite or this machine."""
    check_suite(prepared)
    size, degree = launch.layout.size, prepared.cp_degree
    if size % degree:
        raise BenchError(
            f"backbone.train.parallel.context is {degree}, but a run has {size} process(es): "
            f"use --launcher torchrun with an --nproc that is a multiple of {degree}."
        )
    check_divisible(prepared.suite.budget, size // degree)
    if launch.launcher != "slurm":  # its jobs check their own machine
        check_machine(prepared)
        check_devices(prepared.suite, launch.nproc)
        check_gpu_memory(prepared, size, launch.shard)


def run_suites(
    suites: Sequence[PreparedSuite],
    results: Path,
    launch: LaunchConfig = LaunchConfig(),  # noqa: B008  (frozen)
    overwrite: bool = False,
) -> Outcome:
    """Run every unfinished job of a suite, or of all variants of a study.

    `overwrite`: where the folder of a job holds another run, start anew; that run is removed when the new one begins.
    Once all checks have passed, the suite is stored in the folder of its records (`bench.suite.stored`).
    An error of one run does not stop the others. The outcome counts finished and failed runs and errors.
    """
    for prepared in suites:
        check_launch(prepared, launch)
    jobs, folder = all_jobs(suites, results), results / suites[0].suite.study
    store.check_writable(folder)
    pending, outcome = unfinished(jobs, overwrite), Outcome(jobs=jobs)
    write_suite(folder, [prepared.suite for prepared in suites])
    for job in pending:
        if job.overwrite:
            inform(f"{job.folder} is done anew: it holds another run ({other_run(job)})")
    finished = [job for job in jobs if job not in pending]
    outcome.failed = sum(store.read_record(job.folder).status == "failed" for job in finished)
    if finished:
        inform(f"{len(finished)} of {len(jobs)} runs are finished already under {folder}")
    remaining = copy_finished(pending, results)
    if len(remaining) < len(pending):
        inform(f"{len(pending) - len(remaining)} runs are shared with other suites under {results}")
    pending = unique_by_digest(remaining)
    if pending:
        if launch.launcher == "local":  # its runs share the GPUs
            at_once = runs_at_once(suites, len(pending), launch.processes)
            gpus = max(1, len(shared_gpus([prepared.suite for prepared in suites])))
            for prepared in suites:
                check_gpu_memory(prepared, runs=at_once, gpus=gpus)
            launch = replace(launch, processes=at_once)
        _run_or_wait(pending, launch, outcome, folder)
        duplicates = [job for job in remaining if job not in pending]
        left = copy_finished(duplicates, results)
        outcome.finished += len(duplicates) - len(left)
        originals = {job.digest: job.label for job in pending}
        for job in left:
            reason = outcome.reasons.get(originals[job.digest])
            outcome.count(job.label, "error", f"{originals[job.digest]}, which is the same run: {reason}")
    return outcome


WAIT_S = 2.0
"""Seconds between two looks at runs that another process works on."""


def _run_or_wait(jobs: Sequence[Job], launch: LaunchConfig, outcome: Outcome, folder: Path) -> None:
    """Do the runs, and wait for those that another `bench run` works on; what it leaves unfinished is done here."""
    while jobs:
        outcome.elsewhere = [job for job in jobs if is_locked(job.folder)]
        free = [job for job in jobs if job not in outcome.elsewhere]
        if free:
            run_jobs(free, {job.label: workload(job) for job in free}, launch, outcome, folder)
        waiting = outcome.elsewhere
        if waiting:
            inform(f"waiting for another process, which works on {', '.join(job.label for job in waiting)}")
        while waiting and all(is_locked(job.folder) for job in waiting):
            time.sleep(WAIT_S)
        jobs = []
        for job in waiting:
            if not is_locked(job.folder) and store.is_finished(job.folder, job.digest):
                record = store.read_record(job.folder)
                outcome.count(job.label, record.status, record.error)
            else:
                jobs.append(job)


def workload(job: Job) -> Workload:
    """Updates and held-out videos of a run; an update's function evaluations are those without an anchor."""
    budget, videos = job.suite.budget, held_out_videos(job.prepared)
    spending = planned_counts(budget, len(job.suite.reward), 1)
    update = spending["nfe_rollout"] + spending["nfe_train"]
    return Workload(
        updates=budget.updates if isinstance(job, TrainingRun) else 0,
        videos=videos,
        video_cost=evaluation_nfe(job.prepared) / videos / update,
    )
