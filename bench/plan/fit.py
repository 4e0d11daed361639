"""Whether a run fits into GPU memory, and which change of settings would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from bench.core.errors import BenchError
from bench.core.parallelism import Shard
from bench.core.world import check_divisible
from bench.plan.hardware import Hardware
from bench.plan.memory import Memory, memory_use
from bench.plan.workload import BACKBONE, Model, suite_model
from bench.suite.devices import cp_degree
from bench.suite.schema import Experiment

TILE = 16
"""Latents of a tile's side, as in the full-size suites."""
DEGREES = (2, 4, 8, 16)
"""Degrees of context parallelism that are tried."""
MOST = 1024
"""GPUs; more are not proposed."""

Change = tuple[str, Experiment, Hardware]
"""A change in words, and what it makes of suite and machine."""


def exceeds_memory(exp: Experiment, found: Model, where: Hardware, used: Memory) -> str | None:
    """One sentence where the plan's peak is above a GPU's memory, with what mends it; else None."""
    if used.peak <= where.memory_gb * 1e9:
        return None
    return (
        f"{exp.suite} does not fit: each GPU needs about {used.peak / 1e9:.0f} GB, and {where.gpu} x {where.gpus} has "
        f"{where.memory_gb:.3g} GB each: {suggest_fix(exp, found, where)}."
    )


def suggest_fix(exp: Experiment, found: Model, where: Hardware) -> str:
    """Single changes that are enough, else all changes of the suite together on enough GPUs."""
    single = [words for words, changed, there in _suggestions(exp, found, where) if _fits(changed, there)]
    if single:
        return ", or ".join(single)
    changed = exp
    said: list[str] = []
    for words, other in _settings(exp, found):
        both = _both(changed, other)
        if _peak(both, where) < _peak(changed, where):
            changed, said = both, [*said, words]
    if said and _fits(changed, where):
        return " and ".join(said)
    for gpus in _numbers(exp, where):
        spread = replace(where, gpus=gpus, shard=where.shard or "full")
        if _fits(changed, spread):
            return " and ".join([*said, f"use {gpus} GPUs with --shard {spread.shard}"])
    return " and ".join([*said, "take a smaller size or a GPU with more memory"])


def _fits(exp: Experiment, where: Hardware) -> bool:
    return _peak(exp, where) <= where.memory_gb * 1e9


def _peak(exp: Experiment, where: Hardware) -> float:
    return memory_use(exp, suite_model(exp), where)[0].peak


def _suggestions(exp: Experiment, found: Model, where: Hardware) -> Iterator[Change]:
    """Every single change that applies here, the cheap ones first."""
    yield from ((words, changed, where) for words, changed in _settings(exp, found))
    if where.shard != "full" and where.gpus > 1:
        yield "spread the weights with --shard full", exp, replace(where, shard="full")
    for degree in DEGREES:
        sizes = (where.gpus, found.latents, found.transformer.num_attention_heads)
        split = replace(where, context=degree)
        if degree > where.context and not any(size % degree for size in sizes) and _splits_evenly(exp, split.groups):
            words = f"share each sample among {degree} GPUs (backbone.train.parallel='{{context: {degree}}}')"
            yield words, exp, split
            if _fits(exp, split):
                return


def _settings(exp: Experiment, found: Model) -> Iterator[tuple[str, Experiment]]:
    """Changes of the suite. Only the micro-batch and the tiles change its numbers."""
    if not found.checkpointing:
        yield _setting(exp, gradient_checkpointing=True)
    if found.settings["text_encoders"] != "released":
        yield _setting(exp, text_encoders="released")
    if found.full and found.settings["anchors_on"] != "cpu":
        yield _setting(exp, anchors_on="cpu")
    if found.tile is None:
        side = TILE * found.vae["spatial_compression_ratio"]
        yield _setting(exp, vae_tiling=[side, side, TILE, TILE])
    if int(found.settings["decode_batch"]) > 1 and exp.budget.micro_batch > 1:
        yield _setting(exp, decode_batch=1)
    if exp.budget.micro_batch > 1:
        budget = replace(exp.budget, micro_batch=1)
        yield "set budget.micro_batch=1", exp.model_copy(update={"budget": budget})


def _setting(exp: Experiment, **change: Any) -> tuple[str, Experiment]:
    ((key, value),) = change.items()
    text = str(value).lower() if isinstance(value, bool) else f"'{value}'" if isinstance(value, list) else value
    backbone = exp.backbone.model_copy(update={"train": {**exp.backbone.train, **change}})
    return f"set backbone.train.{key}={text}", exp.model_copy(update={"backbone": backbone})


def _both(exp: Experiment, other: Experiment) -> Experiment:
    """One change on top of others: each is a key of backbone.train, or the micro-batch."""
    train = {**exp.backbone.train, **other.backbone.train}
    backbone = exp.backbone.model_copy(update={"train": train})
    budget = replace(exp.budget, micro_batch=min(exp.budget.micro_batch, other.budget.micro_batch))
    return exp.model_copy(update={"backbone": backbone, "budget": budget})


def _splits_evenly(exp: Experiment, groups: int) -> bool:
    try:
        check_divisible(exp.budget, groups)
    except BenchError:
        return False
    return True


def _numbers(exp: Experiment, where: Hardware) -> Iterator[int]:
    """Larger numbers of GPUs, by powers of two, over which a run can be dealt."""
    gpus = 2 * where.gpus
    while gpus <= MOST:
        if _splits_evenly(exp, gpus // where.context):
            yield gpus
        gpus *= 2


def check_gpu_memory(exp: Experiment, processes: int = 1, shard: Shard | None = None, runs: int = 1) -> None:
    """Refuse a run over these processes that needs more memory than this machine's GPU has, by `bench.plan.memory`.

    `runs`: how many of them share the one GPU at a time. Not for nano, a CPU, or another backbone.
    """
    device = exp.backbone.train.get("device")
    here = torch.cuda.is_available() and (device is None or str(device).startswith("cuda"))
    if not here or exp.scale == "nano" or exp.backbone.name != BACKBONE:
        return
    card = torch.cuda.get_device_properties(0)
    where = Hardware(card.name, processes, card.total_memory / 1e9, context=cp_degree(exp), shard=shard)
    found = suite_model(exp)
    used = memory_use(exp, found, where)[0]
    refused = exceeds_memory(exp, found, where, used)
    if refused:
        raise BenchError(refused)
    if runs * used.peak > card.total_memory:
        raise BenchError(
            f"{exp.suite}: {runs} runs at a time need about {runs * used.peak / 1e9:.0f} GB, and their one "
            f"{card.name} has {card.total_memory / 1e9:.0f} GB: use --processes {int(card.total_memory / used.peak)}."
        )
