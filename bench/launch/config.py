"""Launch settings: launcher, processes, sharding, nodes; from options, a YAML file or accelerate's file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from bench.core.errors import BenchError
from bench.core.parallelism import SHARDS, ProcessLayout, Shard
from bench.core.text import shown

Launcher = Literal["local", "torchrun", "slurm"]
LAUNCHERS: tuple[Launcher, ...] = get_args(Launcher)
TRACKERS: Mapping[str, str] = {
    "tensorboard": "pip install 'grpo-video-bench[tensorboard]'",
    "wandb": "pip install 'grpo-video-bench[wandb]'",
    "trackio": "pip install trackio",
}
"""Tracker to the command that installs its package, which has the same name."""

_TYPES: Mapping[str, type] = {"launcher": str, "slurm": dict, "shard": str, "trackers": list}
"""Types of the keys of a launch file; all others are integers."""
_SLURM_RESERVED = ("nodes", "tasks_per_node", "slurm_nodes", "slurm_tasks_per_node", "slurm_ntasks_per_node")
"""Keys of submitit that the launcher sets itself, from `nodes` and `nproc`."""

_UNSET: tuple[object, ...] = (None, False, "no", "NO", "", {}, [])
"""Values of accelerate's file that leave a feature off."""
_UNSHARDED = ("NO", "MULTI_GPU", "MULTI_CPU")
"""accelerate's names for processes that each hold all weights."""
_REFUSED = {
    "mixed_precision": "precision belongs to the suite, backbone.train.dtype",
    "downcast_bf16": "precision belongs to the suite, backbone.train.dtype",
    "fp8_config": "precision belongs to the suite, backbone.train.dtype",
    "dynamo_config": "runs are not compiled",
    "deepspeed_config": "DeepSpeed is not supported: choose FSDP with fsdp_version 2",
    "megatron_lm_config": "Megatron is not supported: choose FSDP with fsdp_version 2",
    "parallelism_config": "context parallelism belongs to the suite, backbone.train.parallel",
    "mpirun_config": "the processes are started by torchrun",
    "enable_cpu_affinity": "processes are not bound to cores",
}
"""Keys of accelerate's file that are refused, and why: they would change numbers, or have no effect on a run.

Keys that are not listed have no meaning on one machine: ports and ranks, TPUs, the name of a function."""
_FSDP_REFUSED = {
    "fsdp_offload_params": "weights stay on their GPU",
    "fsdp_activation_checkpointing": "it belongs to the suite, backbone.train.gradient_checkpointing",
    "fsdp_transformer_layer_cls_to_wrap": "the backbone chooses its blocks itself",
}
"""Why some keys of `fsdp_config` are refused; so is every other key that is not in `_FSDP_ACCEPTED`."""
_FSDP_ACCEPTED = {
    *("fsdp_version", "fsdp_reshard_after_forward", "fsdp_auto_wrap_policy"),
    *("fsdp_state_dict_type", "fsdp_cpu_ram_efficient_loading"),
}
"""Keys of `fsdp_config` that are accepted; the last two have no effect, since runs load and save in their own way."""


@dataclass(frozen=True)
class LaunchConfig:
    """Launch settings. They never change a result, up to the order of sums over processes."""

    launcher: Launcher = "local"
    processes: int | None = None
    """Runs at a time, for the local launcher, at least 1; None: one per core."""
    nproc: int = 1
    """Processes of one run on each of its nodes, at least 1."""
    slurm: dict[str, Any] = field(default_factory=dict)
    """submitit's parameters of the Slurm job, such as slurm_partition and timeout_min."""
    shard: Shard | None = None
    """How the model's weights are sharded over the processes of one run; None: each process holds all of them."""
    nodes: int = 1
    """Machines of one run, at least 1; several need the Slurm launcher."""
    trackers: Sequence[str] = ()
    """Trackers that show each run live, of `TRACKERS`; they are started by the run's main process."""

    def __post_init__(self) -> None:
        if self.launcher not in LAUNCHERS:
            raise BenchError(f"launcher is {self.launcher!r}: choose one of {', '.join(LAUNCHERS)}.")
        self._check_processes()
        if self.shard is not None:
            self._check_shard(self.shard)
        self._check_nodes()
        self._check_trackers()
        if self.launcher != "slurm" and self.slurm:
            raise BenchError(f"slurm settings are given, but the launcher is {self.launcher}: set launcher: slurm.")

    @property
    def layout(self) -> ProcessLayout:
        """Processes, nodes and sharding of one run."""
        return ProcessLayout(self.nproc, self.shard, self.nodes)

    def _check_processes(self) -> None:
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
                f"--processes belongs to the local launcher: with {self.launcher}, --nproc sets the number of "
                "processes of one run."
            )

    def _check_shard(self, shard: str) -> None:
        if shard not in SHARDS:
            raise BenchError(f"shard is {shard!r}: choose one of {', '.join(SHARDS)}.")
        if self.layout.size == 1:
            raise BenchError(
                f"--shard is {shard}, but each run has one process: use --launcher torchrun with an --nproc above 1."
            )

    def _check_trackers(self) -> None:
        for name in self.trackers:
            if name not in TRACKERS:
                raise BenchError(f"tracker is {shown(repr(name), 60)}: choose one of {', '.join(TRACKERS)}.")
            try:
                metadata.version(name)
            except metadata.PackageNotFoundError as cause:
                raise BenchError(
                    f"--tracker {name} needs the package {name!r}: install it with `{TRACKERS[name]}`."
                ) from cause

    def _check_nodes(self) -> None:
        if self.nodes < 1:
            raise BenchError(f"nodes is {self.nodes}: give at least 1.")
        if self.nodes > 1 and (self.launcher != "slurm" or self.slurm.get("cluster") == "debug"):
            raise BenchError(
                f"nodes is {self.nodes}, but several nodes for one run need jobs of Slurm: set launcher: slurm in the "
                "launch file, and remove cluster: debug."
            )
        for key in _SLURM_RESERVED:
            if key in self.slurm:
                raise BenchError(f"slurm.{key} is set by the launcher: write nodes and nproc beside 'slurm:' instead.")


def load_launch_config(path: Path | None, **options: Any) -> LaunchConfig:
    """The settings of a launch file (ours or accelerate's, `path` may be None), overridden by the options not None."""
    settings = {} if path is None else _read_file(path)
    return LaunchConfig(**settings | {key: value for key, value in options.items() if value is not None})


def _read_file(path: Path) -> dict[str, Any]:
    from bench.suite.load import read_mapping  # imports pydantic, which the command line's parser does without

    settings = read_mapping(path, "launch file", "examples/launch/torchrun.yaml")
    if "distributed_type" in settings:
        return _read_accelerate(path)
    keys = [field.name for field in dataclasses.fields(LaunchConfig)]
    for key, value in settings.items():
        if key not in keys:
            raise BenchError(f"launch file {path}: unknown key {key!r}; the keys are {', '.join(keys)}.")
        if type(value) is not _TYPES.get(key, int):
            raise BenchError(
                f"launch file {path}: {key} is {shown(repr(value), 60)}; see examples/launch for its values."
            )
    return settings


def _read_accelerate(path: Path) -> dict[str, Any]:
    """Our settings for accelerate's file; keys that a run would not follow are refused."""
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        config = load_config_from_file(str(path)).to_dict()  # enumerations become their values, None is left out
    except (ValueError, TypeError, KeyError, AttributeError) as cause:
        problem = shown(" ".join(str(cause).split()), 500)
        raise BenchError(
            f"launch file {path}: accelerate cannot read it ({problem}): write it again with `accelerate config`."
        ) from cause
    distributed_type = config.get("distributed_type")
    if distributed_type in (None, False):  # NO without quotes
        distributed_type = "NO"
    _check_machines(path, config)
    for key, reason in _REFUSED.items():
        if config.get(key) not in _UNSET:
            raise _refusal(path, key, config[key], reason)
    settings = {"launcher": "torchrun", "nproc": config["num_processes"]}
    fsdp = config.get("fsdp_config") or {}
    if distributed_type == "FSDP":
        return {**settings, "shard": _shard(path, fsdp)}
    if distributed_type not in _UNSHARDED:
        raise BenchError(
            f"launch file {path}: distributed_type is {distributed_type!r}: choose one of {', '.join(_UNSHARDED)}, or "
            "FSDP with fsdp_version 2."
        )
    if fsdp:
        raise _refusal(path, "fsdp_config", fsdp, f"distributed_type is {distributed_type}")
    return settings


def _check_machines(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse other settings than one machine, all its GPUs and a number of processes."""
    if config["compute_environment"] != "LOCAL_MACHINE":
        raise _refusal(path, "compute_environment", config["compute_environment"], "only LOCAL_MACHINE is supported")
    if config["num_machines"] != 1:
        reason = "torchrun works on one machine: use the slurm launcher with its key 'nodes'"
        raise _refusal(path, "num_machines", config["num_machines"], reason)
    if config.get("gpu_ids", "all") != "all":
        reason = "a run takes the GPUs that it sees: set CUDA_VISIBLE_DEVICES"
        raise _refusal(path, "gpu_ids", config["gpu_ids"], reason)
    if type(config["num_processes"]) is not int or config["num_processes"] < 1:
        raise BenchError(
            f"launch file {path}: num_processes is {config['num_processes']!r}: give the number of processes of a run."
        )


def _shard(path: Path, fsdp: Mapping[str, Any]) -> Shard:
    """The kind of sharding for the settings of `fsdp_config`."""
    version, policy = fsdp.get("fsdp_version", 1), fsdp.get("fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP")
    if version != 2:
        raise BenchError(
            f"launch file {path}: fsdp_config.fsdp_version is {shown(repr(version), 60)}, but only version 2 is "
            "supported: write the number 2, without quotes."
        )
    if policy != "TRANSFORMER_BASED_WRAP":
        raise _refusal(path, "fsdp_config.fsdp_auto_wrap_policy", policy, "weights are gathered block by block")
    for key, value in fsdp.items():
        if key not in _FSDP_ACCEPTED and value not in _UNSET:
            raise _refusal(path, f"fsdp_config.{key}", value, _FSDP_REFUSED.get(key, "it has no effect on a run"))
    reshard = fsdp.get("fsdp_reshard_after_forward", True)
    if not isinstance(reshard, bool):
        raise BenchError(
            f"launch file {path}: fsdp_config.fsdp_reshard_after_forward is {reshard!r}: write true or false."
        )
    return "full" if reshard else "grads"


def _refusal(path: Path, key: str, value: object, reason: str) -> BenchError:
    return BenchError(f"launch file {path}: {key} is {shown(repr(value), 60)}, but {reason}; remove the key.")
