"""One Slurm job per run, as one array, through submitit (the optional extra `slurm`).

A job may have several nodes: then each node has one task, which starts that node's processes of the run.
"""

from __future__ import annotations

import os
import queue
import traceback
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.core.parallelism import ProcessLayout
from bench.core.world import PeerLostError
from bench.launch.torchrun import KilledError, Node, TorchrunLauncher
from bench.plan.fit import check_gpu_memory
from bench.suite.devices import check_devices
from bench.suite.job import Job
from bench.train.run import execute

FOLDER = ".slurm"
"""Folder below a suite's records that holds submitit's own files and the jobs' logs."""


PORTS = range(20000, 32000)
"""Where the nodes of a run meet: below the ports that Linux gives to outgoing connections."""


def run_job(job: Job, spread: ProcessLayout) -> tuple[str, str | None]:
    """One run, on the node that Slurm gave it: ("error", what to mend) where it stopped.

    One of several nodes says "done", and "lost" where another one is to blame; the first node has the run's status.
    """
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    try:
        check_devices(job.exp, spread.nproc)
        check_gpu_memory(job.exp, spread.size, spread.shard)
        if spread.size > 1:
            return TorchrunLauncher(spread, queue.SimpleQueue(), this_node(spread.nodes)).do(job)
        record = execute(job, lambda phase, done, total: None)
    except PeerLostError as error:
        return "lost", str(error)
    except KilledError as error:
        return "killed", str(error)
    except BenchError as error:
        return "error", str(error)
    except Exception:  # shown by `bench run`, unless another node has a plainer reason
        return "bug", traceback.format_exc()
    return record.status, record.error


def this_node(nodes: int) -> Node:
    """Which node of the job this task is, and where they meet: on the first, at a port of this job."""
    if nodes == 1:
        return Node()
    here = _submitit().JobEnvironment()
    if here.num_tasks != nodes:
        raise BenchError(
            f"the job has {here.num_tasks} task(s), but its run has {nodes} nodes: one task belongs on each node, "
            "so take out what sets the number of tasks under 'slurm:' in the launch file."
        )
    port = PORTS[zlib.crc32(here.job_id.encode()) % len(PORTS)]
    return Node(here.global_rank, here.hostnames[0], port)


def rendezvous_address(ends: Sequence[tuple[str, str | None]]) -> tuple[str, str | None]:
    """How a run ended, from how each of its nodes did: a cause comes before what follows from it on other nodes."""
    for kind in ("error", "bug", "killed", "lost"):
        for status, text in ends:
            if status == kind == "bug":
                raise RuntimeError(f"a job stopped:\n{text}")
            if status == kind:
                raise BenchError(str(text))
    return ends[0]


class SlurmLauncher:
    """Submits the runs when it is made; `do` waits for one."""

    def __init__(self, todo: Sequence[Job], spread: ProcessLayout, settings: Mapping[str, Any], folder: Path):
        """`settings` are submitit's; "cluster: local" or "debug" does the jobs here. `folder`: the suite's records."""
        submitit = _submitit()
        given = {"cluster": "slurm", "name": folder.name, **settings}
        if spread.nodes > 1 and given["cluster"] == "local":  # a task stands for a node
            given |= {"tasks_per_node": spread.nodes}
        elif spread.nodes > 1:
            given |= {"nodes": spread.nodes, "tasks_per_node": 1}
        try:
            executor = submitit.AutoExecutor(folder=folder / FOLDER, cluster=given.pop("cluster"))
            executor.update_parameters(**given)
            with executor.batch():
                self.handles = {job.folder: executor.submit(run_job, job, spread) for job in todo}
        except (AssertionError, RuntimeError, ValueError, TypeError, NameError, OSError) as cause:
            raise BenchError(
                f"the jobs cannot be submitted ({' '.join(str(cause).split())}): mend 'slurm:' in the launch file, "
                "or call this on a node that has sbatch."
            ) from cause

    def do(self, job: Job) -> tuple[str, str | None]:
        """Status of one run, once its job has ended; the second entry says what was wrong."""
        submitit, handle = _submitit(), self.handles[job.folder]
        try:
            ends = handle.results()
        except submitit.core.utils.FailedJobError:  # a bug: its traceback is shown
            raise
        except submitit.core.utils.UncompletedJobError as cause:
            raise BenchError(
                f"Slurm job {handle.job_id} ended without a result (state {handle.state}; its log is "
                f"{handle.paths.stderr}): call again and the run goes on from its last checkpoint."
            ) from cause
        return rendezvous_address(ends)

    def stop(self) -> None:
        """Cancel every job that has not ended."""
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
