"""Three launchers: a pool of processes on this machine, torchrun (N processes per run), and Slurm (one job per run).

All show the same progress on stderr and count the same outcome.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.core.progress import Progress, say
from bench.launch.config import LaunchConfig
from bench.launch.slurm import SlurmLauncher
from bench.launch.torchrun import KILLED_MESSAGE, Status, TorchrunLauncher
from bench.launch.worker import REPORT_EVERY, init_pool_worker, run_in_pool
from bench.store.lock import is_locked
from bench.suite.job import Job

Costs = Mapping[str, tuple[int, int]]
"""Label of a run to its function evaluations in training and in the held-out evaluation."""


@dataclass
class Outcome:
    """Counts of the runs of one call."""

    finished: int = 0
    failed: int = 0
    """Runs with a record of status "failed": a number was not finite."""
    errors: int = 0
    """Runs without a record: they stopped with an error."""
    elsewhere: list[Job] = field(default_factory=list)
    """Runs that another `bench run` works on."""

    def count(self, status: str) -> None:
        """Count a run that has a record."""
        self.finished += status == "finished"
        self.failed += status == "failed"


def run_jobs(jobs: Sequence[Job], costs: Costs, launch: LaunchConfig, outcome: Outcome, folder: Path) -> None:
    """Do these runs, whose records are below `folder`, and count them in `outcome`; an error of one stops no other."""
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers: two threads each are far slower when they compete
    if launch.launcher == "local":
        _run_in_pool(jobs, costs, launch, outcome)
        return
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    launcher = (
        TorchrunLauncher(launch.layout, messages)
        if launch.launcher == "torchrun"
        else SlurmLauncher(jobs, launch.layout, launch.slurm, folder)
    )
    with ThreadPoolExecutor(1 if launch.launcher == "torchrun" else len(jobs)) as pool:
        try:
            watch_runs({pool.submit(launcher.run, job): job for job in jobs}, costs, messages, outcome)
        except BaseException:
            say("stopping the runs")
            pool.shutdown(wait=False, cancel_futures=True)
            launcher.stop()
            raise


def _run_in_pool(jobs: Sequence[Job], costs: Costs, launch: LaunchConfig, outcome: Outcome) -> None:
    """The local launcher: one process per run, several runs at a time."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        messages = manager.Queue()
        workers = min(launch.processes or len(os.sched_getaffinity(0)), len(jobs))
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=init_pool_worker, initargs=(messages,))
        try:
            watch_runs({pool.submit(run_in_pool, job): job for job in jobs}, costs, messages, outcome)
        except BaseException:
            say("stopping the workers")
            for child in multiprocessing.active_children():
                if not child.name.startswith("SyncManager"):  # it holds the queue, and ends with its context
                    child.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def watch_runs(jobs: dict[Future[Status], Job], costs: Costs, messages: Any, outcome: Outcome) -> None:
    """Show the progress of these runs until all have ended, and count their results in `outcome`."""
    progress = Progress(costs)
    pending = set(jobs)
    while pending:
        ended, pending = wait(pending, timeout=REPORT_EVERY, return_when=FIRST_COMPLETED)
        progress.receive(messages)
        for future in ended:
            label = jobs[future].label
            try:
                status, error = future.result()
            except BenchError as cause:
                if is_locked(jobs[future].folder):
                    outcome.elsewhere.append(jobs[future])
                    progress.end(label, "another process works on this run")
                else:
                    outcome.errors += 1
                    progress.end(label, f"error: {cause}")
            except BrokenProcessPool:
                outcome.errors += 1
                progress.end(label, f"error: {KILLED_MESSAGE}")
            except Exception as cause:  # a bug: the other runs go on, the traceback is shown, the exit code is not 0
                outcome.errors += 1
                progress.end(label, f"error: {type(cause).__name__}: {cause}")
                traceback.print_exception(cause)
            else:
                outcome.count(status)
                progress.end(label, status if error is None else f"failed: {error}")
    progress.close()
