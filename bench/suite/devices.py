"""GPUs and processes that a suite needs, and whether this machine has them."""

from __future__ import annotations

import inspect
import os
from typing import Any

from bench import plugins
from bench.api import BenchError
from bench.core.progress import say
from bench.suite.schema import Experiment


def cp_degree(exp: Experiment) -> int:
    """Processes that work on the same samples: the degree of the backbone's context parallelism."""
    parallel = exp.backbone.train.get("parallel") or {}
    found = parallel.get("context", 1) if isinstance(parallel, dict) else None
    if not isinstance(found, int) or found < 1:
        raise BenchError(
            f"backbone.train.parallel is {parallel!r}: write it as {{context: 2}}, a number of processes."
        )
    return found


def refuse_context_parallel(exp: Experiment, command: str) -> None:
    """Refuse a suite whose samples are spread over processes, where the command works in one."""
    if cp_degree(exp) > 1:
        raise BenchError(
            f"{command} works in one process, but backbone.train.parallel spreads each sample over {cp_degree(exp)}: "
            "take it out of the suite, or override it with backbone.train.parallel='{}'."
        )


def check_devices(exp: Experiment, processes: int) -> None:
    """Refuse more processes of one run on this machine than it has GPUs, where the backbone runs on GPUs.

    More of them than cores is slow but allowed, and said.
    """
    import torch

    gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
    if not _on_gpus(exp, gpus):
        if processes > cores:
            say(f"note: {processes} processes of one run share {cores} core(s)")
        return
    numbered = [str(d) for d in _suite_devices(exp) if ":" in str(d)]
    if processes > 1 and numbered:
        raise BenchError(
            f"a run has {processes} processes with a GPU of its own each, but the suite names the device "
            f"{numbered[0]}: write cuda in its place, or leave it out."
        )
    if processes > gpus:
        mend = f"give an --nproc of at most {gpus}" if gpus else "choose a machine that has GPUs"
        raise BenchError(
            f"a run has {processes} process(es) on this machine and each needs a GPU of its own, but "
            f"torch sees {gpus or 'none'}: {mend}, or backbone.train.device=cpu."
        )


def _suite_devices(exp: Experiment) -> list[Any]:
    """Devices that the suite names, for the backbone and for its evaluators."""
    named = [
        exp.backbone.train.get("device"),
        *(exp.evaluator_params.get(name, {}).get("device") for name in exp.judges),
    ]
    return [device for device in named if device is not None]


def gpu_name() -> dict[str, Any]:
    """Name of this process's GPU, for a record's provenance; empty where there is none."""
    import torch

    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def _on_gpus(exp: Experiment, gpus: int) -> bool:
    """Whether the backbone runs on GPUs: as the suite says, else where there are some."""
    if "device" not in inspect.signature(plugins.find("backbones", exp.backbone.name)).parameters:
        return False
    device = exp.backbone.train.get("device")
    return gpus > 0 if device is None else str(device).startswith("cuda")
