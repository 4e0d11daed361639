"""The Slurm launcher: one job per run, as one array, through submitit (the optional extra `slurm`).

A job may have several nodes. Each node then has one task, which starts the node's processes with torchrun; the first
node is the rendezvous host.
"""

from __future__ import annotations

import json
import os
import queue
import time
import traceback
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import store
from bench.core.errors import BenchError, RunLockedError
from bench.core.parallelism import ProcessLayout
from bench.core.process_state import fix_process_state
from bench.core.progress import Step, silent
from bench.core.world import PeerLostError
from bench.launch.config import LaunchConfig
from bench.launch.torchrun import KilledError, Node, Status, TorchrunLauncher
from bench.launch.trackers import tracked
from bench.plan.fit import check_gpu_memory
from bench.suite.devices import check_devices
from bench.suite.job import Job, TrainingRun
from bench.train.run import execute

FOLDER = ".slurm"
"""Folder below a suite's records with submitit's files and the logs of the jobs."""
READ_EVERY = 10.0
"""Seconds between two readings of the logs of runs on other machines."""
PORTS = range(20000, 32000)
"""Ports of the rendezvous: below those that Linux uses for outgoing connections."""


def run_job(job: Job, layout: ProcessLayout, trackers: Sequence[str] = ()) -> Status:
    """Do one run, as a task of a Slurm job.

    Returns the run's status, or "error", "locked", "killed" or "bug" with a text. With several nodes, each one returns
    a status: the first one that of the run, the others "done"; "lost" means that another node ended.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    fix_process_state()
    try:
        check_devices(job.suite, layout.nproc)
        check_gpu_memory(job.prepared, layout.size, layout.shard)
        if layout.size > 1:
            return TorchrunLauncher(layout, queue.SimpleQueue(), this_node(layout.nodes), trackers).run(job)
        with tracked(job, trackers, silent) as report:
            record = execute(job, report)
    except PeerLostError as error:
        return "lost", str(error)
    except KilledError as error:
        return "killed", str(error)
    except RunLockedError as error:
        return "locked", str(error)
    except BenchError as error:
        return "error", str(error)
    except Exception:  # shown by `bench run`, unless another node has an error
        return "bug", traceback.format_exc()
    return record.status, record.error


def this_node(nodes: int) -> Node:
    """The node of this task; the rendezvous is on the job's first node, at a port derived from the job's id."""
    if nodes == 1:
        return Node()
    task = _submitit().JobEnvironment()
    if task.num_tasks != nodes:
        raise BenchError(
            f"the job has {task.num_tasks} task(s), but its run has {nodes} nodes, with one task each: "
            "remove what sets the number of tasks under 'slurm:' in the launch file."
        )
    port = PORTS[zlib.crc32(task.job_id.encode()) % len(PORTS)]
    return Node(task.global_rank, task.hostnames[0], port)


def combine_statuses(statuses: Sequence[Status]) -> Status:
    """Status of a run from those of its nodes; a cause is raised before what follows from it on other nodes."""
    for kind in ("error", "locked", "bug", "killed", "lost"):
        for status, text in statuses:
            if status == kind == "locked":
                raise RunLockedError(str(text))
            if status == kind == "bug":
                raise RuntimeError(f"a job stopped:\n{text}")
            if status == kind:
                raise BenchError(str(text))
    return statuses[0]


class LoggedSteps:
    """The messages of runs on other machines, read from their `train.jsonl`: the updates that they do from now on."""

    def __init__(self, jobs: Sequence[Job]):
        self.jobs = [job for job in jobs if isinstance(job, TrainingRun)]
        self.steps = {job.label: _logged_step(job) for job in self.jobs}
        """Label of each run to its latest step; None before its first update."""
        self.waiting: list[tuple[str, Step]] = []
        self.last_reading = time.monotonic()

    def get_nowait(self) -> tuple[str, Step]:
        """The next message (label, step), or `queue.Empty`; as of a queue."""
        now = time.monotonic()
        if not self.waiting and now - self.last_reading > READ_EVERY:
            self.last_reading = now
            for job in self.jobs:
                step = _logged_step(job)
                if step is not None and step != self.steps[job.label]:
                    self.steps[job.label] = step
                    self.waiting.append((job.label, step))
        if not self.waiting:
            raise queue.Empty
        return self.waiting.pop(0)


def _logged_step(job: TrainingRun) -> Step | None:
    """The updates done by a run and its latest reward; the last line of its log counts once it is complete."""
    path = job.folder / store.TRAIN
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    if not lines:
        return None
    return Step("train", len(lines), job.suite.budget.updates, reward=json.loads(lines[-1])["reward"])


class SlurmLauncher:
    """Submit all runs at construction; `run` waits for one of them."""

    def __init__(self, jobs: Sequence[Job], launch: LaunchConfig, folder: Path):
        """`launch.slurm`: its cluster "local" or "debug" uses this machine. `folder`: the suite's records."""
        submitit = _submitit()
        parameters = {"cluster": "slurm", "name": folder.name, **launch.slurm}
        if launch.nodes > 1 and parameters["cluster"] == "local":  # a task takes the place of a node
            parameters |= {"tasks_per_node": launch.nodes}
        elif launch.nodes > 1:
            parameters |= {"nodes": launch.nodes, "tasks_per_node": 1}
        try:
            executor = submitit.AutoExecutor(folder=folder / FOLDER, cluster=parameters.pop("cluster"))
            executor.update_parameters(**parameters)
            with executor.batch():
                self.handles = {
                    job.folder: executor.submit(run_job, job, launch.layout, launch.trackers) for job in jobs
                }
        except (AssertionError, RuntimeError, ValueError, TypeError, NameError, OSError) as cause:
            raise BenchError(
                f"the jobs cannot be submitted ({' '.join(str(cause).split())}): fix 'slurm:' in the launch file, "
                "or run this command on a node that has sbatch."
            ) from cause

    def run(self, job: Job) -> Status:
        """Wait for the job of one run."""
        submitit, handle = _submitit(), self.handles[job.folder]
        try:
            statuses = handle.results()
        except submitit.core.utils.FailedJobError:  # a bug: its traceback is shown
            raise
        except submitit.core.utils.UncompletedJobError as cause:
            raise BenchError(
                f"Slurm job {handle.job_id} ended without a result (state {handle.state}; its log is "
                f"{handle.paths.stderr}): run the same command again to resume from the last checkpoint."
            ) from cause
        return combine_statuses(statuses)

    def stop(self) -> None:
        """Cancel all jobs that have not ended."""
        for handle in self.handles.values():
            if not handle.done():
                handle.cancel()


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as cause:
        raise BenchError(
            "--launcher slurm needs submitit: install it with `pip install 'grpo-video-bench[slurm]'`."
        ) from cause
    return submitit
