"""Check that runs fit into the memory of GPU and host, and suggestions of settings with which they fit."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.api import ModelCost
from bench.core.errors import BenchError
from bench.core.parallelism import Shard
from bench.core.progress import inform
from bench.core.world import check_divisible
from bench.plan.hardware import CPU, Hardware
from bench.plan.host_memory import available_bytes
from bench.plan.memory import Memory, host_peak, memory_use
from bench.plan.workload import suite_model
from bench.suite.prepared import PreparedSuite
from bench.suite.schema import Suite

DEGREES = (2, 4, 8, 16)
"""Degrees of context parallelism that are suggested."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
"""Endings of files with weights."""
MAX_GPUS = 1024
"""Largest number of GPUs that is suggested."""

Change = tuple[str, PreparedSuite, Hardware]
"""A change in words, and the suite and the hardware with it."""


def exceeds_memory(prepared: PreparedSuite, model: ModelCost, hardware: Hardware, memory: Memory) -> str | None:
    """A sentence with a fix if the peak is above a GPU's memory; else None."""
    if memory.peak <= hardware.memory_gb * 1e9:
        return None
    needed, available = memory.peak / 1e9, f"{hardware.gpu} x {hardware.gpus} has {hardware.memory_gb:.3g} GB each"
    fix = suggest_fix(prepared, model, hardware)
    return f"{prepared.suite.name} does not fit: each GPU needs about {needed:.0f} GB, and {available}: {fix}."


def suggest_fix(prepared: PreparedSuite, model: ModelCost, hardware: Hardware) -> str:
    """Single changes that are sufficient, else all useful changes of the suite together, on enough GPUs."""
    single = [words for words, changed, gpus in _single_changes(prepared, model, hardware) if _fits(changed, gpus)]
    if single:
        return ", or ".join(single)
    combined = prepared
    useful: list[str] = []
    for words, changed in _suite_changes(prepared, model):
        both = _combine(combined, changed)
        if _peak(both, hardware) < _peak(combined, hardware):
            combined, useful = both, [*useful, words]
        if _fits(combined, hardware):
            return " and ".join(useful)
    for number in _larger_numbers(prepared.suite, hardware):
        sharded = replace(hardware, gpus=number, shard=hardware.shard or "full")
        if _fits(combined, sharded):
            return " and ".join([*useful, f"use {number} GPUs with --shard {sharded.shard}"])
    return " and ".join([*useful, "take a smaller size or a GPU with more memory"])


def _fits(prepared: PreparedSuite, hardware: Hardware) -> bool:
    return _peak(prepared, hardware) <= hardware.memory_gb * 1e9


def _peak(prepared: PreparedSuite, hardware: Hardware) -> float:
    model = suite_model(prepared)
    assert model is not None, "a change of settings keeps the backbone"
    return memory_use(prepared, model, hardware)[0].peak


def _single_changes(prepared: PreparedSuite, model: ModelCost, hardware: Hardware) -> Iterator[Change]:
    """Every single change that applies, the cheap ones first."""
    yield from ((words, changed, hardware) for words, changed in _suite_changes(prepared, model))
    if hardware.shard != "full" and hardware.gpus > 1:
        yield "shard the weights with --shard full", prepared, replace(hardware, shard="full")
    for degree in DEGREES:
        sizes = (hardware.gpus, model.latents, model.heads)
        split = replace(hardware, context=degree)
        if (
            degree > hardware.context
            and not any(size % degree for size in sizes)
            and _splits_evenly(prepared.suite, split.groups)
        ):
            words = f"share each sample among {degree} GPUs (backbone.train.parallel='{{context: {degree}}}')"
            yield words, prepared, split
            if _fits(prepared, split):
                return


def _suite_changes(prepared: PreparedSuite, model: ModelCost) -> Iterator[tuple[str, PreparedSuite]]:
    """Changes of the suite: settings of the backbone, and the micro-batch, which changes its results."""
    for key, value in model.savings.items():
        yield _setting(prepared, **{key: value})
    if prepared.suite.budget.micro_batch > 1:
        budget = replace(prepared.suite.budget, micro_batch=1)
        yield "set budget.micro_batch=1", _changed(prepared, budget=budget)


def _changed(prepared: PreparedSuite, **changes: Any) -> PreparedSuite:
    return replace(prepared, suite=prepared.suite.model_copy(update=changes))


def _setting(prepared: PreparedSuite, **change: Any) -> tuple[str, PreparedSuite]:
    ((key, value),) = change.items()
    text = str(value).lower() if isinstance(value, bool) else f"'{value}'" if isinstance(value, list) else value
    train = {**prepared.suite.backbone.train, **change}
    backbone = prepared.suite.backbone.model_copy(update={"train": train})
    return f"set backbone.train.{key}={text}", _changed(prepared, backbone=backbone)


def _combine(prepared: PreparedSuite, other: PreparedSuite) -> PreparedSuite:
    """Both suites' changes. A change is a key of backbone.train, or a smaller micro-batch."""
    first, second = prepared.suite, other.suite
    backbone = first.backbone.model_copy(update={"train": {**first.backbone.train, **second.backbone.train}})
    budget = replace(first.budget, micro_batch=min(first.budget.micro_batch, second.budget.micro_batch))
    return _changed(prepared, backbone=backbone, budget=budget)


def _splits_evenly(suite: Suite, groups: int) -> bool:
    try:
        check_divisible(suite.budget, groups)
    except BenchError:
        return False
    return True


def _larger_numbers(suite: Suite, hardware: Hardware) -> Iterator[int]:
    """Larger numbers of GPUs, in steps of a factor two, over which a run can be distributed evenly."""
    gpus = 2 * hardware.gpus
    while gpus <= MAX_GPUS:
        if _splits_evenly(suite, gpus // hardware.context):
            yield gpus
        gpus *= 2


def on_gpu(suite: Suite) -> bool:
    """Whether the suite's backbone runs on a GPU of this machine."""
    import torch

    device = suite.backbone.train.get("device")
    return torch.cuda.is_available() and (device is None or str(device).startswith("cuda"))


def host_bytes(prepared: PreparedSuite) -> float | None:
    """Peak bytes of one run on this machine's CPU, its evaluators' files included; None for a backbone without sizes.

    Files of weights are a lower bound of what an evaluator takes.
    """
    model = suite_model(prepared)
    if model is None:
        return None
    files = {each.path for use, each in prepared.checkpoints.items() if not use.startswith("backbone")}
    evaluators = sum(_size(path) for path in files)
    return host_peak(memory_use(prepared, model, Hardware(CPU, 1, math.inf))[1]) + evaluators


def _size(path: Path) -> int:
    """Bytes of the weights in a file or folder; 0 where it does not exist."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.suffix in WEIGHTS and file.is_file())


def runs_at_once(suites: Sequence[PreparedSuite], pending: int, processes: int | None) -> int:
    """How many of the pending runs a CPU does at a time: `processes`, else one per core that the free memory allows.

    Raises `BenchError` where one run, or the given number, needs more than the memory that is free now. Runs on GPUs
    and backbones without sizes are not counted.
    """
    wanted = min(processes or len(os.sched_getaffinity(0)), pending)
    sizes = [size for each in suites if not on_gpu(each.suite) and (size := host_bytes(each)) is not None]
    free = available_bytes()
    if not sizes or free is None:
        return wanted
    fitting = int(free / max(sizes))
    if fitting >= wanted:
        return wanted
    needs = f"a run needs about {max(sizes) / 1e9:.1f} GB of the host's memory, and {free / 1e9:.1f} GB are free"
    if not fitting:
        raise BenchError(
            f"{suites[0].suite.study}: {needs}: end other programs, or take a machine with more memory; `bench plan` "
            "shows the parts."
        )
    if processes is not None:
        raise BenchError(f"{suites[0].suite.study}: {needs}: use --processes {fitting}.")
    inform(f"{fitting} runs at a time in place of {wanted}: {needs}")
    return fitting


def check_gpu_memory(
    prepared: PreparedSuite, processes: int = 1, shard: Shard | None = None, runs: int = 1, gpus: int = 1
) -> None:
    """Refuse a run over these processes that needs more memory than this machine's GPUs have (`bench.plan.memory`).

    The smallest GPU counts. `runs`: runs of one process each that share so many of the GPUs at a time. Nano, runs on a
    CPU, and backbones that state no sizes are not checked.
    """
    import torch

    suite = prepared.suite
    model = None if not on_gpu(suite) or suite.scale == "nano" else suite_model(prepared)
    if model is None:
        return
    cards = [torch.cuda.get_device_properties(index) for index in range(max(1, torch.cuda.device_count()))]
    card = min(cards, key=lambda each: each.total_memory)
    hardware = Hardware(card.name, processes, card.total_memory / 1e9, context=prepared.cp_degree, shard=shard)
    memory = memory_use(prepared, model, hardware)[0]
    refused = exceeds_memory(prepared, model, hardware, memory)
    if refused:
        raise BenchError(refused)
    on_one = -(-runs // gpus)
    if on_one * memory.peak > card.total_memory:
        raise BenchError(
            f"{suite.name}: {on_one} runs at a time need about {on_one * memory.peak / 1e9:.0f} GB, and the "
            f"{card.name} has {card.total_memory / 1e9:.0f} GB: use --processes "
            f"{gpus * int(card.total_memory / memory.peak)}."
        )
