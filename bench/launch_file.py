"""A launch file: our own settings, or the file that `accelerate config` writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.base import BenchError
from bench.config import read_mapping
from bench.launchers import How

TYPES: Mapping[str, type] = {"launcher": str, "slurm": dict, "shard": str}
"""What a setting of our own is; all others are whole numbers."""
UNSET: tuple[object, ...] = (None, False, "no", "NO", "", {}, [])
"""How accelerate says that something is not wanted."""
PLAIN = ("NO", "MULTI_GPU", "MULTI_CPU")
"""accelerate's names for processes that each hold all weights."""
MIND = {
    "mixed_precision": "precision belongs to the suite, backbone.train.dtype",
    "downcast_bf16": "precision belongs to the suite, backbone.train.dtype",
    "fp8_config": "precision belongs to the suite, backbone.train.dtype",
    "dynamo_config": "runs are not compiled",
    "deepspeed_config": "runs know no DeepSpeed: choose FSDP with fsdp_version 2",
    "megatron_lm_config": "runs know no Megatron: choose FSDP with fsdp_version 2",
    "parallelism_config": "context parallelism belongs to the suite, backbone.train.parallel",
    "mpirun_config": "the processes are started by torchrun",
    "enable_cpu_affinity": "processes are not bound to cores",
}
"""Keys that would change numbers or that a run does not follow, and why. Keys that are not named mean nothing on one
machine: ports and ranks, TPUs, the name of a function."""
FSDP_MIND = {
    "fsdp_offload_params": "weights stay on their GPU",
    "fsdp_activation_checkpointing": "it belongs to the suite, backbone.train.gradient_checkpointing",
    "fsdp_transformer_layer_cls_to_wrap": "the backbone knows its blocks",
}
FSDP_FOLLOWED = {
    *("fsdp_version", "fsdp_reshard_after_forward", "fsdp_auto_wrap_policy"),
    *("fsdp_state_dict_type", "fsdp_cpu_ram_efficient_loading"),  # checkpoints and loading are the run's own
}


def how(path: Path | None, **given: Any) -> How:
    """The launcher's settings: those of a file, with what the command line gives on top."""
    settings = {} if path is None else _read(path)
    return How(**settings | {key: value for key, value in given.items() if value is not None})


def _read(path: Path) -> dict[str, Any]:
    settings = read_mapping(path, "launch file", "examples/launch/torchrun.yaml")
    if "distributed_type" in settings:
        return _from_accelerate(path)
    known = [field.name for field in dataclasses.fields(How)]
    for key, value in settings.items():
        if key not in known:
            raise BenchError(f"launch file {path}: unknown key {key!r}; it takes {', '.join(known)}.")
        if type(value) is not TYPES.get(key, int):
            raise BenchError(f"launch file {path}: {key} is {value!r}; see examples/launch for what it takes.")
    return settings


# accelerate's file -------------------------------------------------------------------------------------------
def _from_accelerate(path: Path) -> dict[str, Any]:
    """What accelerate's file asks for, in our words; what a run would not follow is refused."""
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        config = load_config_from_file(str(path)).to_dict()  # its enumerations as their values, no None
    except (ValueError, TypeError) as cause:
        raise BenchError(f"launch file {path}: accelerate cannot read it: {' '.join(str(cause).split())}") from cause
    kind = config["distributed_type"]
    _check_machines(path, config)
    for key, why in MIND.items():
        if config.get(key) not in UNSET:
            raise _refusal(path, key, config[key], why)
    settings = {"launcher": "torchrun", "nproc": config["num_processes"]}
    fsdp = config.get("fsdp_config") or {}
    if kind == "FSDP":
        return {**settings, "shard": _shard(path, fsdp)}
    if kind not in PLAIN:
        raise BenchError(
            f"launch file {path}: distributed_type is {kind!r}, runs know {', '.join(PLAIN)} and FSDP (version 2)."
        )
    if fsdp:
        raise _refusal(path, "fsdp_config", fsdp, f"distributed_type is {kind}")
    return settings


def _check_machines(path: Path, config: Mapping[str, Any]) -> None:
    """One machine, all its GPUs, a number of processes."""
    if config["compute_environment"] != "LOCAL_MACHINE":
        raise _refusal(path, "compute_environment", config["compute_environment"], "runs know LOCAL_MACHINE only")
    if config["num_machines"] != 1:
        why = "torchrun works on one machine: use the slurm launcher with its key 'nodes'"
        raise _refusal(path, "num_machines", config["num_machines"], why)
    if config.get("gpu_ids", "all") != "all":
        why = "a run takes the GPUs that it sees: set CUDA_VISIBLE_DEVICES"
        raise _refusal(path, "gpu_ids", config["gpu_ids"], why)
    if type(config["num_processes"]) is not int or config["num_processes"] < 1:
        raise BenchError(
            f"launch file {path}: num_processes is {config['num_processes']!r}: give the number of processes of a run."
        )


def _shard(path: Path, fsdp: Mapping[str, Any]) -> str:
    """Which of our two ways to spread weights `fsdp_config` asks for."""
    version, policy = fsdp.get("fsdp_version", 1), fsdp.get("fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP")
    if version != 2:
        raise BenchError(f"launch file {path}: fsdp_config.fsdp_version is {version!r}, but runs know version 2 only.")
    if policy != "TRANSFORMER_BASED_WRAP":
        raise _refusal(path, "fsdp_config.fsdp_auto_wrap_policy", policy, "weights are gathered block by block")
    for key, value in fsdp.items():
        if key not in FSDP_FOLLOWED and value not in UNSET:
            raise _refusal(path, f"fsdp_config.{key}", value, FSDP_MIND.get(key, "runs do not follow it"))
    reshard = fsdp.get("fsdp_reshard_after_forward", True)
    if not isinstance(reshard, bool):
        raise BenchError(
            f"launch file {path}: fsdp_config.fsdp_reshard_after_forward is {reshard!r}: write true or false."
        )
    return "full" if reshard else "grads"


def _refusal(path: Path, key: str, value: object, why: str) -> BenchError:
    return BenchError(f"launch file {path}: {key} is {value!r}, but {why}; take the key out.")
