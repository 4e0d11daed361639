"""Three launchers: a process per run on this machine, torchrun (N processes per run), and Slurm (one job per run).

All show the same progress on stderr and count the same outcome.
"""

from __future__ import annotations

import os
import queue
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError, RunLockedError
from bench.core.progress import inform
from bench.launch.config import LaunchConfig
from bench.launch.local import LocalLauncher
from bench.launch.progress import RunsProgress, Workload
from bench.launch.slurm import LoggedSteps, SlurmLauncher
from bench.launch.torchrun import Status, TorchrunLauncher
from bench.launch.worker import REPORT_EVERY
from bench.suite.devices import shared_gpus
from bench.suite.job import Job

Workloads = Mapping[str, Workload]
"""Label of a run to its work."""


@dataclass
class Outcome:
    """Counts of the runs of one call."""

    finished: int = 0
    failed: int = 0
    """Runs with a record of status "failed": a number was not finite."""
    errors: int = 0
    """Runs without a record: they stopped with an error."""
    reasons: dict[str, str] = field(default_factory=dict, compare=False)
    """Label of each run of this call that failed or stopped with an error to the reason."""
    jobs: list[Job] = field(default_factory=list, compare=False)
    """All runs of the suite or study, those that were finished before included."""
    elsewhere: list[Job] = field(default_factory=list, compare=False)
    """Runs that another `bench run` works on."""

    def count(self, label: str, kind: str, reason: str | None) -> None:
        """Count a run that has ended: "finished", "failed" or "error"."""
        self.finished += kind == "finished"
        self.failed += kind == "failed"
        self.errors += kind == "error"
        if reason is not None:
            self.reasons[label] = reason


def run_jobs(jobs: Sequence[Job], workloads: Workloads, launch: LaunchConfig, outcome: Outcome, folder: Path) -> None:
    """Do these runs, whose records are below `folder`, and count them in `outcome`; an error of one stops no other."""
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers: two threads each are far slower when they compete
    messages: queue.SimpleQueue[Any] | LoggedSteps = queue.SimpleQueue()
    at_once = {"local": min(launch.processes or len(os.sched_getaffinity(0)), len(jobs)), "torchrun": 1}
    launcher: LocalLauncher | TorchrunLauncher | SlurmLauncher
    if launch.launcher == "local":
        launcher = LocalLauncher(messages, launch.trackers, shared_gpus([job.suite for job in jobs]))
    elif launch.launcher == "torchrun":
        launcher = TorchrunLauncher(launch.layout, messages, trackers=launch.trackers)
    else:
        messages = LoggedSteps(jobs)
        launcher = SlurmLauncher(jobs, launch, folder)
    with ThreadPoolExecutor(at_once.get(launch.launcher, len(jobs))) as pool:
        try:
            watch_runs({pool.submit(launcher.run, job): job for job in jobs}, workloads, messages, outcome)
        except BaseException:
            inform("stopping the runs")
            pool.shutdown(wait=False, cancel_futures=True)
            launcher.stop()
            raise


def watch_runs(jobs: dict[Future[Status], Job], workloads: Workloads, messages: Any, outcome: Outcome) -> None:
    """Show the progress of these runs until all have ended, and count their results in `outcome`."""
    pending = set(jobs)
    with RunsProgress(workloads) as progress:
        while pending:
            ended, pending = wait(pending, timeout=REPORT_EVERY, return_when=FIRST_COMPLETED)
            progress.receive(messages)
            for future in ended:
                job = jobs[future]
                kind, reason = _result(future)
                if kind == "locked":
                    outcome.elsewhere.append(job)
                    progress.end(job.label, "another process works on this run")
                else:
                    outcome.count(job.label, kind, reason)
                    progress.end(job.label, kind if reason is None else f"{kind}: {reason}")


def _result(future: Future[Status]) -> Status:
    """Status of an ended run and the reason; "error" for a run without a record, "locked" for another's."""
    try:
        return future.result()
    except RunLockedError as cause:
        return "locked", str(cause)
    except BenchError as cause:
        return "error", str(cause)
    except Exception as cause:  # a bug: the other runs go on, the traceback is shown, the exit code is not 0
        traceback.print_exception(cause)
        return "error", f"{type(cause).__name__}: {cause}"
