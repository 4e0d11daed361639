"""One Slurm job per run, as one array, through submitit (the optional extra `slurm`)."""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.base import BenchError
from bench.build import Job, need_devices
from bench.torchrun import Spread, Together
from bench.train import execute

FOLDER = ".slurm"
"""Folder below a suite's records that holds submitit's own files and the jobs' logs."""


def work(job: Job, spread: Spread) -> tuple[str, str | None]:
    """One run, on the node that Slurm gave it: ("error", what to mend) where it stopped."""
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    try:
        need_devices(job.exp, spread.nproc)
        if spread.nproc > 1:
            return Together(spread, queue.SimpleQueue()).do(job)
        record = execute(job, lambda phase, done, total: None)
    except BenchError as error:
        return "error", str(error)
    return record.status, record.error


class Array:
    """Submits the runs when it is made; `do` waits for one."""

    def __init__(self, todo: Sequence[Job], spread: Spread, settings: Mapping[str, Any], folder: Path):
        """`settings` are submitit's; "cluster: local" or "debug" does the jobs here. `folder`: the suite's records."""
        submitit = _submitit()
        given = {"cluster": "slurm", "name": folder.name, **settings}
        try:
            executor = submitit.AutoExecutor(folder=folder / FOLDER, cluster=given.pop("cluster"))
            executor.update_parameters(**given)
            with executor.batch():
                self.handles = {job.folder: executor.submit(work, job, spread) for job in todo}
        except (AssertionError, RuntimeError, ValueError, TypeError, NameError, OSError) as cause:
            raise BenchError(
                f"the jobs cannot be submitted ({' '.join(str(cause).split())}): mend 'slurm:' in the launch file, "
                "or call this on a node that has sbatch."
            ) from cause

    def do(self, job: Job) -> tuple[str, str | None]:
        """Status of one run, once its job has ended; the second entry says what was wrong."""
        submitit, handle = _submitit(), self.handles[job.folder]
        try:
            status, error = handle.result()
        except submitit.core.utils.FailedJobError:  # a bug: its traceback is shown
            raise
        except submitit.core.utils.UncompletedJobError as cause:
            raise BenchError(
                f"Slurm job {handle.job_id} ended without a result (state {handle.state}; its log is "
                f"{handle.paths.stderr}): call again and the run goes on from its last checkpoint."
            ) from cause
        if status == "error":
            raise BenchError(error)
        return status, error

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
