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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.base import BenchError
from bench.build import Job
from bench.processes import Shard
from bench.progress import Progress, say
from bench.slurm import Array
from bench.torchrun import KILLED, Spread, Together
from bench.train import execute

Costs = Mapping[str, tuple[int, int]]
"""Label of a run to its function evaluations in training and in the held-out evaluation."""
Status = tuple[str, str | None]
"""Status of one run, and what was wrong."""
REPORT_EVERY = 0.5
"""Seconds between two messages of a run."""
LAUNCHERS = ("local", "torchrun", "slurm")
SHARDS = ("full", "grads")


@dataclass(frozen=True)
class How:
    """How runs are done; no number of a run depends on it."""

    launcher: Literal["local", "torchrun", "slurm"] = "local"
    processes: int | None = None
    """Runs at a time, for the local launcher; by default one per core."""
    nproc: int = 1
    """Processes of one run, on each of its nodes."""
    slurm: dict[str, Any] = field(default_factory=dict)
    """submitit's parameters of the Slurm job, such as slurm_partition and timeout_min."""
    shard: Shard | None = None
    """How the model's weights are spread over the processes of one run; None: each holds them all."""
    nodes: int = 1
    """Machines that share one run."""

    def __post_init__(self) -> None:
        if self.launcher not in LAUNCHERS:
            raise BenchError(f"launcher is {self.launcher!r}: choose one of {', '.join(LAUNCHERS)}.")
        if self.processes is not None and self.processes < 1:
            raise BenchError(f"--processes is {self.processes}: give at least 1.")
        if self.nproc < 1:
            raise BenchError(f"--nproc is {self.nproc}: give at least 1.")
        if self.launcher == "local" and self.nproc > 1:
            raise BenchError(
                f"--nproc is {self.nproc}, but the local launcher does each run in one process: "
                "use --launcher torchrun, or --processes for several runs at a time."
            )
        if self.launcher != "local" and self.processes is not None:
            raise BenchError(
                f"--processes belongs to the local launcher: with {self.launcher}, --nproc says how many processes "
                "do one run."
            )
        if self.shard is not None:
            self._check_shard(self.shard)
        self._check_nodes()
        if self.launcher != "slurm" and self.slurm:
            raise BenchError(f"slurm settings are given, but the launcher is {self.launcher}: set launcher: slurm.")

    def _check_nodes(self) -> None:
        if self.nodes < 1:
            raise BenchError(f"nodes is {self.nodes}: give at least 1.")
        if self.nodes > 1 and (self.launcher != "slurm" or self.slurm.get("cluster") == "debug"):
            raise BenchError(
                f"nodes is {self.nodes}, but several nodes for one run need jobs of Slurm: set launcher: slurm in the "
                "launch file, and no cluster: debug."
            )
        for key in ("nodes", "tasks_per_node", "slurm_nodes", "slurm_tasks_per_node", "slurm_ntasks_per_node"):
            if key in self.slurm:
                raise BenchError(f"slurm.{key} is the launcher's own: write nodes and nproc beside 'slurm:' instead.")

    def _check_shard(self, shard: str) -> None:
        if shard not in SHARDS:
            raise BenchError(f"shard is {shard!r}: choose one of {', '.join(SHARDS)}.")
        if self.spread.size == 1:
            raise BenchError(
                f"--shard is {shard}, but each run has one process: use --launcher torchrun with an --nproc above 1."
            )

    @property
    def spread(self) -> Spread:
        """How one run is spread over processes."""
        return Spread(self.nproc, self.shard, self.nodes)


@dataclass
class Outcome:
    """What a call of `run` did."""

    finished: int = 0
    failed: int = 0
    errors: int = 0


def do(todo: Sequence[Job], costs: Costs, how: How, outcome: Outcome, folder: Path) -> None:
    """Do these runs of the suite with records in `folder`; one run's error leaves the others going."""
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers: two threads collapse when processes compete
    if how.launcher == "local":
        _local(todo, costs, how, outcome)
        return
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    way = Together(how.spread, messages) if how.launcher == "torchrun" else Array(todo, how.spread, how.slurm, folder)
    with ThreadPoolExecutor(1 if how.launcher == "torchrun" else len(todo)) as pool:
        try:
            watch({pool.submit(way.do, job): job for job in todo}, costs, messages, outcome)
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


def _local(todo: Sequence[Job], costs: Costs, how: How, outcome: Outcome) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        messages = manager.Queue()
        workers = min(how.processes or len(os.sched_getaffinity(0)), len(todo))
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(messages,))
        try:
            watch({pool.submit(_work, job): job for job in todo}, costs, messages, outcome)
        except BaseException:
            say("stopping the workers")
            for child in multiprocessing.active_children():
                if not child.name.startswith("SyncManager"):  # it carries the messages, and ends with its context
                    child.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def watch(waiting: dict[Future[Status], Job], costs: Costs, messages: Any, outcome: Outcome) -> None:
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
