"""Launch files: our own settings, and the file that `accelerate config` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config import config_args

from bench.api import BenchError
from bench.core.parallelism import ProcessLayout
from bench.launch.config import LaunchConfig, load_launch_config
from tests.helpers.paths import PROJECT


def test_a_launch_file_gives_the_settings_and_the_command_line_changes_them(tmp_path: Path) -> None:
    path = tmp_path / "launch.yaml"
    path.write_text("launcher: slurm\nnproc: 8\nshard: full\nslurm: {slurm_partition: gpu}\n", encoding="utf-8")
    assert load_launch_config(path, launcher=None, nproc=4, processes=None) == LaunchConfig(
        "slurm", None, 4, {"slurm_partition": "gpu"}, "full"
    )
    assert load_launch_config(path, shard="grads").layout == ProcessLayout(8, "grads")
    for text, message in {
        "launcher: slurm\nnprocs: 8\n": "unknown key 'nprocs'",
        "launcher: torchrun\nnproc: many\n": "nproc is 'many'",
        "launcher: torchrun\nnproc: true\n": "nproc is True",
        "[]\n": "is not a mapping",
    }.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(BenchError, match=message):
            load_launch_config(path)
    with pytest.raises(BenchError, match=r"launch file .* cannot be read"):
        load_launch_config(tmp_path / "none.yaml")


EXAMPLES = PROJECT / "examples" / "launch"


@pytest.mark.parametrize("name", ["local", "torchrun", "slurm", "slurm_nodes"])
def test_the_examples_are_read(name: str) -> None:
    config = load_launch_config(EXAMPLES / f"{name}.yaml")
    assert config.launcher == name.partition("_")[0]
    assert config.nodes == (2 if name == "slurm_nodes" else 1)


@pytest.mark.parametrize(("name", "shard"), [("accelerate_ddp", None), ("accelerate_fsdp2", "full")])
def test_accelerates_own_file_is_a_launch_file(name: str, shard: str | None, tmp_path: Path) -> None:
    path, copy = EXAMPLES / f"{name}.yaml", tmp_path / "copy.yaml"
    assert load_launch_config(path) == LaunchConfig("torchrun", nproc=8, shard=shard)
    assert load_launch_config(path, nproc=2) == LaunchConfig("torchrun", nproc=2, shard=shard)
    config_args.load_config_from_file(str(path)).to_yaml_file(copy)
    assert yaml.safe_load(copy.read_text()) == yaml.safe_load(path.read_text())  # the example is what it would write


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixed_precision": "bf16"}, "mixed_precision is 'bf16', but precision belongs to the suite"),
        ({"num_machines": 2}, "num_machines is 2, .*use the slurm launcher with its key 'nodes'"),
        ({"num_processes": None}, "num_processes is -1: give the number of processes"),
        ({"num_processes": "8"}, "num_processes is '8': give the number of processes"),
        ({"gpu_ids": "0,1"}, "gpu_ids is '0,1', .*set CUDA_VISIBLE_DEVICES"),
        ({"enable_cpu_affinity": True}, "enable_cpu_affinity is True, but processes are not bound to cores"),
        ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "dynamo_config is .*INDUCTOR.*but runs are not compiled"),
        ({"deepspeed_config": {"zero_stage": 3}}, "deepspeed_config is .*choose FSDP with fsdp_version 2"),
        ({"parallelism_config": {"parallelism_config_cp_size": 2}}, "parallelism_config is .*backbone.train.parallel"),
        ({"distributed_type": "MULTI_GPU"}, "fsdp_config is .*but distributed_type is MULTI_GPU"),
        (
            {"distributed_type": "MULTI_NPU"},
            "distributed_type is 'MULTI_NPU': choose one of NO, MULTI_GPU, MULTI_CPU, or FSDP",
        ),
        ({"distributed_type": "FSPD"}, r"accelerate cannot read it \('FSPD' is not a valid"),
        ({"num_procs": 8}, r"accelerate cannot read it .*unknown keys \(\['num_procs'\]\)"),
        ({"compute_environment": "AMAZON_SAGEMAKER"}, "accelerate cannot read it"),
        ({"fsdp_version": 1}, r"fsdp_config\.fsdp_version is 1, but only version 2 is supported"),
        ({"fsdp_version": None}, r"fsdp_config\.fsdp_version is 1, but only version 2 is supported"),
        ({"fsdp_offload_params": True}, r"fsdp_config\.fsdp_offload_params is True, but weights stay on their GPU"),
        ({"fsdp_activation_checkpointing": True}, "it belongs to the suite, backbone.train.gradient_checkpointing"),
        ({"fsdp_auto_wrap_policy": "SIZE_BASED_WRAP"}, "weights are gathered block by block"),
        ({"fsdp_transformer_layer_cls_to_wrap": "Block"}, "is 'Block', but the backbone chooses its blocks itself"),
        ({"fsdp_reshard_after_forward": "FULL_SHARD"}, "is 'FULL_SHARD': write true or false"),
        ({"fsdp_min_num_params": 100}, r"fsdp_config\.fsdp_min_num_params is 100, but it has no effect on a run"),
    ],
)
def test_keys_of_accelerates_file_that_a_run_would_not_follow_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match=message) as refused:
        load_launch_config(changed(tmp_path, change))
    assert str(refused.value).startswith(f"launch file {tmp_path}")
    assert "\n" not in str(refused.value)


def changed(folder: Path, change: dict[str, Any]) -> Path:
    """The FSDP example with other values; None takes a key out."""
    config = yaml.safe_load((EXAMPLES / "accelerate_fsdp2.yaml").read_text(encoding="utf-8"))
    for key, value in change.items():
        part = config["fsdp_config"] if key.startswith("fsdp_") and key != "fsdp_config" else config
        part.pop(key, None)
        if value is not None:
            part[key] = value
    path = folder / "accelerate.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "layout"),
    [
        ({"fsdp_reshard_after_forward": False}, ProcessLayout(8, "grads")),
        ({"fsdp_reshard_after_forward": None}, ProcessLayout(8, "full")),
        (
            {"debug": True, "main_process_port": 29501, "fsdp_state_dict_type": "FULL_STATE_DICT"},
            ProcessLayout(8, "full"),
        ),
        (
            {"distributed_type": "MULTI_CPU", "use_cpu": True, "num_processes": 2, "fsdp_config": None},
            ProcessLayout(2, None),
        ),
    ],
)
def test_accelerates_settings_become_a_process_layout(
    change: dict[str, Any], layout: ProcessLayout, tmp_path: Path
) -> None:
    assert load_launch_config(changed(tmp_path, change)).layout == layout
