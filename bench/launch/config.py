"""Launch settings: launcher, processes, sharding, nodes; from options, a YAML file or accelerate's file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.core.errors import BenchError
from bench.core.parallelism import ProcessLayout, Shard
from bench.suite.load import read_mapping

TYPES: Mapping[str, type] = {"launcher": str, "slurm": dict, "shard": str}
"""What a setting of our own is; all others are whole numbers."""
_UNSET: tuple[object, ...] = (None, False, "no", "NO", "", {}, [])
"""How accelerate says that something is not wanted."""
_PLAIN = ("NO", "MULTI_GPU", "MULTI_CPU")
"""accelerate's names for processes that each hold all weights."""
_RULES = {
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
_FSDP_RULES = {
    "fsdp_offload_params": "weights stay on their GPU",
    "fsdp_activation_checkpointing": "it belongs to the suite, backbone.train.gradient_checkpointing",
    "fsdp_transformer_layer_cls_to_wrap": "the backbone knows its blocks",
}
_FSDP_USED = {
    *("fsdp_version", "fsdp_reshard_after_forward", "fsdp_auto_wrap_policy"),
    *("fsdp_state_dict_type", "fsdp_cpu_ram_efficient_loading"),  # checkpoints and loading are the run's own
}


def load_launch_config(path: Path | None, **given: Any) -> LaunchConfig:
    """The launcher's settings: those of a file, with what the command line gives on top."""
    settings = {} if path is None else _read(path)
    return LaunchConfig(**settings | {key: value for key, value in given.items() if value is not None})


def _read(path: Path) -> dict[str, Any]:
    settings = read_mapping(path, "launch file", "examples/launch/torchrun.yaml")
    if "distributed_type" in settings:
        return _from_accelerate(path)
    known = [field.name for field in dataclasses.fields(LaunchConfig)]
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
    for key, why in _RULES.items():
        if config.get(key) not in _UNSET:
            raise _refusal(path, key, config[key], why)
    settings = {"launcher": "torchrun", "nproc": config["num_processes"]}
    fsdp = config.get("fsdp_config") or {}
    if kind == "FSDP":
        return {**settings, "shard": _shard(path, fsdp)}
    if kind not in _PLAIN:
        raise BenchError(
            f"launch file {path}: distributed_type is {kind!r}, runs know {', '.join(_PLAIN)} and FSDP (version 2)."
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
        if key not in _FSDP_USED and value not in _UNSET:
            raise _refusal(path, f"fsdp_config.{key}", value, _FSDP_RULES.get(key, "runs do not follow it"))
    reshard = fsdp.get("fsdp_reshard_after_forward", True)
    if not isinstance(reshard, bool):
        raise BenchError(
            f"launch file {path}: fsdp_config.fsdp_reshard_after_forward is {reshard!r}: write true or false."
        )
    return "full" if reshard else "grads"


def _refusal(path: Path, key: str, value: object, why: str) -> BenchError:
    return BenchError(f"launch file {path}: {key} is {value!r}, but {why}; take the key out.")


LAUNCHERS = ("local", "torchrun", "slurm")
SHARDS = ("full", "grads")


@dataclass(frozen=True)
class LaunchConfig:
    """How runs are done; no number of a run depends on it."""

    launcher: Literal["local", "torchrun", "slurm"] = "local"
    processes: int | None = None
    """Runs at a time, for the local launcher; by default one per core."""
    nproc: int = 1
    """Processes of one run, on each of its nodes."""
    slurm: dict[str, Any] = field(default_factory=dict)
    """submitit's parameters of the Slurm job, such as slurm_partition and timeout_min."""
    shard: Shard | None = None
    """How the model's weights are spread over the processes of one run; None: each holds them all."""
    nodes: int = 1
    """Machines that share one run."""

    def __post_init__(self) -> None:
        if self.launcher not in LAUNCHERS:
            raise BenchError(f"launcher is {self.launcher!r}: choose one of {', '.join(LAUNCHERS)}.")
        if self.processes is not None and self.processes < 1:
            raise BenchError(f"--processes is {self.processes}: give at least 1.")
        if self.nproc < 1:
            raise BenchError(f"--nproc is {self.nproc}: give at least 1.")
        if self.launcher == "local" and self.nproc > 1:
            raise BenchError(
                f"--nproc is {self.nproc}, but the local launcher does each run in one process: "
                "use --launcher torchrun, or --processes for several runs at a time."
            )
        if self.launcher != "local" and self.processes is not None:
            raise BenchError(
                f"--processes belongs to the local launcher: with {self.launcher}, --nproc says how many processes "
                "do one run."
            )
        if self.shard is not None:
            self._check_shard(self.shard)
        self._check_nodes()
        if self.launcher != "slurm" and self.slurm:
            raise BenchError(f"slurm settings are given, but the launcher is {self.launcher}: set launcher: slurm.")

    def _check_nodes(self) -> None:
        if self.nodes < 1:
            raise BenchError(f"nodes is {self.nodes}: give at least 1.")
        if self.nodes > 1 and (self.launcher != "slurm" or self.slurm.get("cluster") == "debug"):
            raise BenchError(
                f"nodes is {self.nodes}, but several nodes for one run need jobs of Slurm: set launcher: slurm in the "
                "launch file, and no cluster: debug."
            )
        for key in ("nodes", "tasks_per_node", "slurm_nodes", "slurm_tasks_per_node", "slurm_ntasks_per_node"):
            if key in self.slurm:
                raise BenchError(f"slurm.{key} is the launcher's own: write nodes and nproc beside 'slurm:' instead.")

    def _check_shard(self, shard: str) -> None:
        if shard not in SHARDS:
            raise BenchError(f"shard is {shard!r}: choose one of {', '.join(SHARDS)}.")
        if self.spread.size == 1:
            raise BenchError(
                f"--shard is {shard}, but each run has one process: use --launcher torchrun with an --nproc above 1."
            )

    @property
    def spread(self) -> ProcessLayout:
        """How one run is spread over processes."""
        return ProcessLayout(self.nproc, self.shard, self.nodes)
