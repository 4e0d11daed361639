"""Run every unfinished job of a suite, or describe what will run and what it costs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bench import store
from bench.core.errors import BenchError
from bench.core.ledger import planned
from bench.core.progress import say
from bench.core.world import check_divisible
from bench.launch.config import LaunchConfig
from bench.launch.jobs import all_jobs, copy_finished, unfinished, unique_by_digest
from bench.launch.launchers import Outcome, run_jobs
from bench.plan.fit import check_gpu_memory
from bench.plan.workload import anchor_nfe, evaluation_nfe
from bench.suite.devices import check_devices, cp_degree
from bench.suite.job import Job
from bench.suite.schema import Experiment
from bench.train.preflight import check_suite


def describe(exp: Experiment, found: Sequence[Job]) -> str:
    """What will run and what it will cost, for `--dry-run`."""
    todo = unfinished(found)
    budget, each = exp.budget, planned(exp.budget, len(exp.reward), exp.budget.updates)
    trained = [job for job in todo if job.row is not None]
    videos = len(exp.prompt_list("heldout")) * exp.evaluation.videos_per_prompt
    judged = evaluation_nfe(exp)
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


def run_suites(suites: Sequence[Experiment], results: Path, how: LaunchConfig = LaunchConfig()) -> Outcome:  # noqa: B008  (frozen)
    """Do every unfinished run of a suite, or of all variants of a study.

    One run's error leaves the others going; the caller turns the outcome into an exit code.
    """
    for exp in suites:
        check_suite(exp)
        size = how.spread.size
        if size % cp_degree(exp):
            raise BenchError(
                f"backbone.train.parallel.context is {cp_degree(exp)}, but a run has {size} process(es): "
                f"use --launcher torchrun with an --nproc that is a multiple of {cp_degree(exp)}."
            )
        check_divisible(exp.budget, size // cp_degree(exp))
        if how.launcher != "slurm":  # its jobs look at their own machine
            check_devices(exp, how.nproc)
            check_gpu_memory(exp, size, how.shard)
    found = all_jobs(suites, results)
    todo, outcome = unfinished(found), Outcome()
    done = [job for job in found if job not in todo]
    outcome.failed = sum(store.read_record(job.folder).status == "failed" for job in done)
    if done:
        say(f"{len(done)} of {len(found)} runs are finished already under {results / suites[0].study}")
    left = copy_finished(todo, results)
    if len(left) < len(todo):
        say(f"{len(todo) - len(left)} runs are shared with other suites under {results}")
    todo = unique_by_digest(left)
    if todo:
        if how.launcher == "local":  # its runs share one GPU
            together = min(how.processes or len(os.sched_getaffinity(0)), len(todo))
            for exp in suites:
                check_gpu_memory(exp, runs=together)
        run_jobs(todo, {job.label: _cost(job) for job in todo}, how, outcome, results / suites[0].study)
        twins = [job for job in left if job not in todo]
        outcome.finished += len(twins) - len(copy_finished(twins, results))
    return outcome


def _cost(job: Job) -> tuple[int, int]:
    """Function evaluations of a run's training (anchors included) and of its held-out evaluation."""
    if job.row is None:
        return 0, evaluation_nfe(job.exp)
    spent = planned(job.exp.budget, len(job.exp.reward), job.exp.budget.updates)
    return spent["nfe_rollout"] + spent["nfe_train"] + anchor_nfe(job.exp, job.row), evaluation_nfe(job.exp)
