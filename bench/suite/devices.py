"""GPUs and processes that a suite needs, and whether this machine has them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

from bench import plugins
from bench.core.errors import BenchError
from bench.core.parallelism import context_degree
from bench.core.progress import say
from bench.suite.schema import Suite

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Variable of the environment that names the GPUs that a process sees."""


def cp_degree(suite: Suite) -> int:
    """Processes that work on the same samples: the degree of the backbone's context parallelism."""
    return context_degree(suite.backbone.train.get("parallel"))


def refuse_context_parallel(suite: Suite, command: str) -> None:
    """Refuse a suite with context parallelism for a command that runs in one process."""
    degree = cp_degree(suite)
    if degree > 1:
        raise BenchError(
            f"{command} works in one process, but backbone.train.parallel splits each sample over {degree}: "
            "take it out of the suite, or override it with backbone.train.parallel='{}'."
        )


def check_devices(suite: Suite, processes: int) -> None:
    """Refuse more processes of one run on this machine than it has GPUs, if the backbone runs on GPUs.

    More processes than CPU cores are slow but allowed, with a note.
    """
    import torch

    gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
    if not _on_gpus(suite, gpus):
        if processes > cores:
            say(f"note: {processes} processes of one run share {cores} core(s)")
        return
    numbered = [str(device) for device in _suite_devices(suite) if ":" in str(device)]
    if processes > 1 and numbered:
        raise BenchError(
            f"a run has {processes} processes with one GPU each, but the suite names the device {numbered[0]}: "
            "write cuda in its place, or leave it out."
        )
    if processes > gpus:
        fix = f"give an --nproc of at most {gpus}" if gpus else "choose a machine that has GPUs"
        raise BenchError(
            f"a run has {processes} process(es) on this machine and each needs a GPU of its own, but "
            f"torch sees {gpus or 'none'}: {fix}, or backbone.train.device=cpu."
        )


def shared_gpus(suites: Sequence[Suite]) -> list[str]:
    """This machine's GPUs as `VISIBLE` names them, over which runs of one process each are distributed.

    None where a suite chooses among them by number.
    """
    import torch

    if any(":" in str(device) for suite in suites for device in _suite_devices(suite)):
        return []
    named = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    return (named or [str(index) for index in range(torch.cuda.device_count())])[: torch.cuda.device_count()]


def _suite_devices(suite: Suite) -> list[Any]:
    """Devices that the suite sets for the backbone, and for its evaluators while they score and while they wait."""
    params = [suite.evaluator_params.get(name, {}) for name in suite.all_evaluators]
    devices = [
        suite.backbone.train.get("device"),
        *(each.get(key) for each in params for key in ("device", "idle_device")),
    ]
    return [device for device in devices if device is not None]


def gpu_name() -> dict[str, Any]:
    """Name of this process's GPU, for a record's provenance; empty where there is none."""
    import torch

    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def _on_gpus(suite: Suite, gpus: int) -> bool:
    """Whether the backbone runs on GPUs: by the suite's `device`, by default if there are GPUs."""
    if "device" not in inspect.signature(plugins.find("backbones", suite.backbone.name)).parameters:
        return False
    device = suite.backbone.train.get("device")
    return gpus > 0 if device is None else str(device).startswith("cuda")
