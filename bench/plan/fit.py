"""Check that a run fits into GPU memory, and suggestions of settings with which it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bench.api import ModelCost
from bench.core.errors import BenchError
from bench.core.parallelism import Shard
from bench.core.world import check_divisible
from bench.plan.hardware import Hardware
from bench.plan.memory import Memory, memory_use
from bench.plan.workload import suite_model
from bench.suite.prepared import PreparedSuite
from bench.suite.schema import Suite

DEGREES = (2, 4, 8, 16)
"""Degrees of context parallelism that are suggested."""
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
    if useful and _fits(combined, hardware):
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


def check_gpu_memory(prepared: PreparedSuite, processes: int = 1, shard: Shard | None = None, runs: int = 1) -> None:
    """Refuse a run over these processes that needs more memory than this machine's GPU has (`bench.plan.memory`).

    `runs`: runs that share the GPU at a time. Nano, runs on a CPU, and backbones that state no sizes are not checked.
    """
    import torch

    suite = prepared.suite
    device = suite.backbone.train.get("device")
    on_gpu = torch.cuda.is_available() and (device is None or str(device).startswith("cuda"))
    model = None if not on_gpu or suite.scale == "nano" else suite_model(prepared)
    if model is None:
        return
    card = torch.cuda.get_device_properties(0)
    hardware = Hardware(card.name, processes, card.total_memory / 1e9, context=prepared.cp_degree, shard=shard)
    memory = memory_use(prepared, model, hardware)[0]
    refused = exceeds_memory(prepared, model, hardware, memory)
    if refused:
        raise BenchError(refused)
    if runs * memory.peak > card.total_memory:
        raise BenchError(
            f"{suite.name}: {runs} runs at a time need about {runs * memory.peak / 1e9:.0f} GB, and the {card.name} "
            f"has {card.total_memory / 1e9:.0f} GB: use --processes {int(card.total_memory / memory.peak)}."
        )
