"""From a suite's names to objects: a job, its backbone, its evaluators, and its row's method."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import noise, plugins, store
from bench.api import Backbone, BenchError, Evaluator, Method
from bench.capabilities import Spreads
from bench.config import PATHS, Experiment, RowSpec, resolve
from bench.conformance import check_method
from bench.flow import sigma_schedule
from bench.processes import ALONE, World
from bench.progress import say
from bench.rollout import Settings, noisy_steps, trained_steps

STARTED = store.STARTED
"""File of a run's folder that names the digest the run was started with."""


@dataclass(frozen=True)
class Job:
    """One run to do: `row` and `seed` are None for the untrained base."""

    exp: Experiment
    row: RowSpec | None
    seed: int | None
    folder: Path
    digest: str

    @property
    def label(self) -> str:
        run = "base" if self.row is None else f"{self.row.name} seed {self.seed}"
        return f"{self.exp.variant}: {run}" if self.exp.variant else run


def refuse_shard(exp: Experiment) -> None:
    """A suite does not say how weights are spread over processes."""
    if "shard" in exp.backbone.train:
        raise BenchError(
            "backbone.train.shard belongs to the launch, as no result depends on it: "
            "take it out of the YAML and use --shard."
        )


def make_backbone(exp: Experiment, world: World = ALONE) -> Backbone:
    """The suite's backbone; its weights are spread over the processes where the launch says so."""
    name, params = exp.backbone.name, exp.backbone.train
    refuse_shard(exp)
    spread: dict[str, Any] = {}
    if world.shard is not None:
        spread["shard"] = world.shard
        if not issubclass(plugins.find("backbones", name), Spreads):
            raise BenchError(f"backbone {name} cannot spread its weights over processes: run it without --shard.")
    return plugins.backbone(name, checkpoint=resolve(exp.backbone.checkpoint), **spread, **params)


def make_evaluator(exp: Experiment, name: str) -> Evaluator:
    params = dict(exp.evaluator_params.get(name, {}))
    for key in PATHS:
        if isinstance(params.get(key), str):
            params[key] = resolve(params[key])
    if str(params.get("model", "")).endswith(".json"):  # else the name of a model
        params["model"] = resolve(params["model"])
    return plugins.evaluator(name, **params)


def copies(exp: Experiment) -> int:
    """Processes that work on the same samples: the degree of the backbone's context parallelism."""
    parallel = exp.backbone.train.get("parallel") or {}
    found = parallel.get("context", 1) if isinstance(parallel, dict) else None
    if not isinstance(found, int) or found < 1:
        raise BenchError(
            f"backbone.train.parallel is {parallel!r}: write it as {{context: 2}}, a number of processes."
        )
    return found


def need_alone(exp: Experiment, command: str) -> None:
    """Refuse a suite whose samples are spread over processes, where the command works in one."""
    if copies(exp) > 1:
        raise BenchError(
            f"{command} works in one process, but backbone.train.parallel spreads each sample over {copies(exp)}: "
            "take it out of the suite, or override it with backbone.train.parallel='{}'."
        )


def need_devices(exp: Experiment, processes: int) -> None:
    """Refuse more processes of one run on this machine than it has GPUs, where the backbone runs on GPUs.

    More of them than cores is slow but allowed, and said.
    """
    import torch

    gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
    if not _on_gpus(exp, gpus):
        if processes > cores:
            say(f"note: {processes} processes of one run share {cores} core(s)")
        return
    numbered = [str(d) for d in _devices(exp) if ":" in str(d)]
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


def _devices(exp: Experiment) -> list[Any]:
    """Devices that the suite names, for the backbone and for its evaluators."""
    named = [
        exp.backbone.train.get("device"),
        *(exp.evaluator_params.get(name, {}).get("device") for name in exp.judges),
    ]
    return [device for device in named if device is not None]


def gpu() -> dict[str, Any]:
    """Name of this process's GPU, for a record's provenance; empty where there is none."""
    import torch

    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def _on_gpus(exp: Experiment, gpus: int) -> bool:
    """Whether the backbone runs on GPUs: as the suite says, else where there are some."""
    if "device" not in inspect.signature(plugins.find("backbones", exp.backbone.name)).parameters:
        return False
    device = exp.backbone.train.get("device")
    return gpus > 0 if device is None else str(device).startswith("cuda")


def rollout_settings(exp: Experiment, seed: int, world: World = ALONE) -> Settings:
    """What a rollout needs to know of the suite."""
    return Settings(exp.budget, exp.decode, exp.group_noise, seed, exp.last_step != "untrained", world)


def make_method(exp: Experiment, row: RowSpec, latent_elements: int) -> Method:
    """The row's method under the suite's noise policy, clip range scaled to the latent's size, conformance checked."""
    method = plugins.method(row.method, **row.params)
    sigmas = sigma_schedule(exp.budget.steps, exp.budget.shift)
    settings = rollout_settings(exp, 0)
    noisy = noisy_steps(method, sigmas, settings, 0)
    trained_steps(method, sigmas, noisy, settings, 0)  # refuses what the first rollout would refuse
    method = noise.apply(method, exp.noise_policy, sigmas, noisy)
    if exp.clip_reference_size is not None:
        scale = math.sqrt(exp.clip_reference_size / latent_elements)
        method = dataclasses.replace(method, clip_range=method.clip_range * scale)
    check_method(method, sigmas)
    return method


def recorded(method: Method) -> dict[str, Any]:
    """The method's parameters as a record names them; those marked `LATE` only where they are not at their default."""
    values = dataclasses.asdict(method)
    late = [field for field in dataclasses.fields(method) if field.metadata.get("late")]
    for field in late:
        if values[field.name] == field.default:
            del values[field.name]
    return values
