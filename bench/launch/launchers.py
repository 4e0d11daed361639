"""Three ways to do runs: a pool of processes here, N processes for one run (torchrun), or a job per run (Slurm).

All say the same things on stderr and end in the same outcome.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.core.progress import Progress, say
from bench.launch.config import LaunchConfig
from bench.launch.slurm import SlurmLauncher
from bench.launch.torchrun import KILLED, TorchrunLauncher
from bench.suite.job import Job
from bench.train.run import execute

Costs = Mapping[str, tuple[int, int]]
"""Label of a run to its function evaluations in training and in the held-out evaluation."""
Status = tuple[str, str | None]
"""Status of one run, and what was wrong."""
REPORT_EVERY = 0.5
"""Seconds between two messages of a run."""


@dataclass
class Outcome:
    """What a call of `run` did."""

    finished: int = 0
    failed: int = 0
    errors: int = 0


def run_jobs(todo: Sequence[Job], costs: Costs, how: LaunchConfig, outcome: Outcome, folder: Path) -> None:
    """Do these runs of the suite with records in `folder`; one run's error leaves the others going."""
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers: two threads collapse when processes compete
    if how.launcher == "local":
        _local(todo, costs, how, outcome)
        return
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    way = (
        TorchrunLauncher(how.spread, messages)
        if how.launcher == "torchrun"
        else SlurmLauncher(todo, how.spread, how.slurm, folder)
    )
    with ThreadPoolExecutor(1 if how.launcher == "torchrun" else len(todo)) as pool:
        try:
            follow({pool.submit(way.do, job): job for job in todo}, costs, messages, outcome)
        except BaseException:
            say("stopping the runs")
            pool.shutdown(wait=False, cancel_futures=True)
            way.stop()
            raise


# one process per run, several runs at a time ------------------------------------------------------------------
_messages: Any = None


def _start(messages: Any) -> None:
    global _messages
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears an interrupt and ends its workers

    torch.set_num_threads(1)
    _messages = messages


def _work(job: Job) -> Status:
    """One run, in a worker process."""
    last = [0.0]

    def report(phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - last[0] > REPORT_EVERY or done == total:
            last[0] = now
            _messages.put((job.label, phase, done, total))

    record = execute(job, report)
    return record.status, record.error


def _local(todo: Sequence[Job], costs: Costs, how: LaunchConfig, outcome: Outcome) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        messages = manager.Queue()
        workers = min(how.processes or len(os.sched_getaffinity(0)), len(todo))
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(messages,))
        try:
            follow({pool.submit(_work, job): job for job in todo}, costs, messages, outcome)
        except BaseException:
            say("stopping the workers")
            for child in multiprocessing.active_children():
                if not child.name.startswith("SyncManager"):  # it carries the messages, and ends with its context
                    child.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def follow(waiting: dict[Future[Status], Job], costs: Costs, messages: Any, outcome: Outcome) -> None:
    """Show the progress of these runs until the last one has ended, and count how they ended."""
    progress = Progress(costs)
    pending = set(waiting)
    while pending:
        ended, pending = wait(pending, timeout=REPORT_EVERY, return_when=FIRST_COMPLETED)
        progress.hear(messages)
        for future in ended:
            job = waiting[future]
            try:
                status, error = future.result()
            except BenchError as cause:
                outcome.errors += 1
                progress.end(job.label, f"error: {cause}")
            except BrokenProcessPool:
                outcome.errors += 1
                progress.end(job.label, f"error: {KILLED}")
            except Exception as cause:  # a bug: the other runs go on, the traceback is shown, the exit code is not 0
                outcome.errors += 1
                progress.end(job.label, f"error: {type(cause).__name__}: {cause}")
                traceback.print_exception(cause)
            else:
                outcome.finished += status == "finished"
                outcome.failed += status == "failed"
                progress.end(job.label, status if error is None else f"failed: {error}")
    progress.close()
