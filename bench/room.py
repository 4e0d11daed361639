"""Whether a run fits into the memory of the GPUs at hand, asked before anything is loaded."""

from __future__ import annotations

import torch

from bench.base import BenchError
from bench.build import copies
from bench.config import Experiment
from bench.machines import Machine
from bench.memory import memory
from bench.processes import Shard
from bench.remedies import too_large
from bench.workload import BACKBONE, model


def need_room(exp: Experiment, processes: int = 1, shard: Shard | None = None, runs: int = 1) -> None:
    """Refuse a run over these processes that needs more memory than this machine's GPU has, by `bench.memory`.

    `runs`: how many of them share the one GPU at a time. Not for nano, a CPU, or another backbone.
    """
    device = exp.backbone.train.get("device")
    here = torch.cuda.is_available() and (device is None or str(device).startswith("cuda"))
    if not here or exp.scale == "nano" or exp.backbone.name != BACKBONE:
        return
    card = torch.cuda.get_device_properties(0)
    where = Machine(card.name, processes, card.total_memory / 1e9, context=copies(exp), shard=shard)
    found = model(exp)
    used = memory(exp, found, where)[0]
    refused = too_large(exp, found, where, used)
    if refused:
        raise BenchError(refused)
    if runs * used.peak > card.total_memory:
        raise BenchError(
            f"{exp.suite}: {runs} runs at a time need about {runs * used.peak / 1e9:.0f} GB, and their one "
            f"{card.name} has {card.total_memory / 1e9:.0f} GB: use --processes {int(card.total_memory / used.peak)}."
        )
