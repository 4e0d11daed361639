"""Whether a run fits into the memory of the GPUs at hand, asked before anything is loaded."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from bench.base import BenchError
from bench.build import copies
from bench.config import Experiment
from bench.machines import Machine
from bench.memory import memory
from bench.remedies import too_large
from bench.workload import BACKBONE, model

if TYPE_CHECKING:
    from bench.launchers import How


def need_room(exp: Experiment, how: How, runs: int = 1) -> None:
    """Refuse a run that needs more memory than the GPU has by `bench.memory`, or so many of `runs` at a time.

    Only where this machine's GPUs are the run's: not for nano, a CPU, another backbone, or a Slurm job elsewhere.
    """
    device = exp.backbone.train.get("device")
    here = how.launcher != "slurm" and torch.cuda.is_available() and (device is None or str(device).startswith("cuda"))
    if not here or exp.scale == "nano" or exp.backbone.name != BACKBONE:
        return
    card = torch.cuda.get_device_properties(0)
    where = Machine(card.name, how.nproc, card.total_memory / 1e9, context=copies(exp), shard=how.shard)
    found = model(exp)
    used = memory(exp, found, where)[0]
    refused = too_large(exp, found, where, used)
    if refused:
        raise BenchError(refused)
    together = min(how.processes or len(os.sched_getaffinity(0)), runs) if how.launcher == "local" else 1
    if together * used.peak > card.total_memory:
        raise BenchError(
            f"{exp.suite}: {together} runs at a time need about {together * used.peak / 1e9:.0f} GB, and their one "
            f"{card.name} has {card.total_memory / 1e9:.0f} GB: use --processes {int(card.total_memory / used.peak)}."
        )
