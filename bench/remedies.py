"""What to change where a run does not fit into a GPU's memory: only what is enough is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bench.base import BenchError
from bench.config import Experiment
from bench.machines import Machine
from bench.memory import Memory, memory
from bench.processes import need_fit
from bench.workload import Model, model

TILE = 16
"""Latents of a tile's side, as in the full-size suites."""
DEGREES = (2, 4, 8, 16)
"""Degrees of context parallelism that are tried."""
MOST = 1024
"""GPUs; more are not proposed."""

Change = tuple[str, Experiment, Machine]
"""A change in words, and what it makes of suite and machine."""


def too_large(exp: Experiment, found: Model, where: Machine, used: Memory) -> str | None:
    """One sentence where the plan's peak is above a GPU's memory, with what mends it; else None."""
    if used.peak <= where.memory_gb * 1e9:
        return None
    return (
        f"{exp.suite} does not fit: each GPU needs about {used.peak / 1e9:.0f} GB, and {where.gpu} x {where.gpus} has "
        f"{where.memory_gb:.3g} GB each: {mend(exp, found, where)}."
    )


def mend(exp: Experiment, found: Model, where: Machine) -> str:
    """Single changes that are enough, else all changes of the suite together on enough GPUs."""
    single = [words for words, changed, there in changes(exp, found, where) if fits(changed, there)]
    if single:
        return ", or ".join(single)
    changed = exp
    said: list[str] = []
    for words, other in _settings(exp, found):
        both = _both(changed, other)
        if _peak(both, where) < _peak(changed, where):
            changed, said = both, [*said, words]
    if said and fits(changed, where):
        return " and ".join(said)
    for gpus in _numbers(exp, where):
        spread = replace(where, gpus=gpus, shard=where.shard or "full")
        if fits(changed, spread):
            return " and ".join([*said, f"use {gpus} GPUs with --shard {spread.shard}"])
    return " and ".join([*said, "take a smaller size or a GPU with more memory"])


def fits(exp: Experiment, where: Machine) -> bool:
    return _peak(exp, where) <= where.memory_gb * 1e9


def _peak(exp: Experiment, where: Machine) -> float:
    return memory(exp, model(exp), where)[0].peak


def changes(exp: Experiment, found: Model, where: Machine) -> Iterator[Change]:
    """Every single change that applies here, the cheap ones first."""
    yield from ((words, changed, where) for words, changed in _settings(exp, found))
    if where.shard != "full" and where.gpus > 1:
        yield "spread the weights with --shard full", exp, replace(where, shard="full")
    for degree in DEGREES:
        sizes = (where.gpus, found.latents, found.transformer.num_attention_heads)
        split = replace(where, context=degree)
        if degree > where.context and not any(size % degree for size in sizes) and _dealt(exp, split.groups):
            words = f"share each sample among {degree} GPUs (backbone.train.parallel='{{context: {degree}}}')"
            yield words, exp, split
            if fits(exp, split):
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


def _dealt(exp: Experiment, groups: int) -> bool:
    try:
        need_fit(exp.budget, groups)
    except BenchError:
        return False
    return True


def _numbers(exp: Experiment, where: Machine) -> Iterator[int]:
    """Larger numbers of GPUs, by powers of two, over which a run can be dealt."""
    gpus = 2 * where.gpus
    while gpus <= MOST:
        if _dealt(exp, gpus // where.context):
            yield gpus
        gpus *= 2
