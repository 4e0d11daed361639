"""`bench export`: the trained policy of a run as files for diffusers.

A LoRA becomes `pytorch_lora_weights.safetensors` and `adapter_config.json`, for `load_lora_adapter` of the transformer
and for peft. A policy of all weights becomes a folder for `from_pretrained`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bench import store
from bench.core.errors import BenchError
from bench.store.policy import read_policy
from bench.store.record import POLICY, RunRecord
from bench.suite.paths import resolve

LORA_WEIGHTS, LORA_CONFIG = "pytorch_lora_weights.safetensors", "adapter_config.json"
LORA_METADATA = "lora_adapter_metadata"
"""Entry of the safetensors header with rank, alpha and layers, as diffusers 0.42 writes and reads it."""
FULL_WEIGHTS = "diffusion_pytorch_model.safetensors"


def export(run: Path, out: Path) -> list[Path]:
    """Write the policy of a finished run to the folder `out`; returns the paths of the files."""
    record, state = store.read_record(run), read_policy(run)
    settings = _settings(record, run)
    if settings["r"] == 0:
        return _full(record, state, out)
    _check_rank(state, settings, run)
    config = _lora_config(settings)
    header = {"format": "pt", LORA_METADATA: json.dumps(config, indent=2, sort_keys=True)}
    from safetensors.torch import save

    store.write_bytes(out / LORA_WEIGHTS, save(state, header))
    store.write_text(out / LORA_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return [out / LORA_WEIGHTS, out / LORA_CONFIG]


def _settings(record: RunRecord, run: Path) -> dict[str, Any]:
    """Settings of the policy from the record: r, lora_alpha and pattern of a LoRA; r = 0 without a LoRA."""
    settings: dict[str, Any] = json.loads(record.backbone.get("settings", "{}"))
    if "r" not in settings:
        raise BenchError(
            f"record {run / store.RUN} contains no LoRA rank: only runs of hunyuanvideo15 can be exported."
        )
    return settings


def _check_rank(state: Mapping[str, Tensor], settings: Mapping[str, Any], run: Path) -> None:
    ranks = sorted({len(tensor) for key, tensor in state.items() if "lora_A" in key})
    if ranks != [settings["r"]]:
        raise BenchError(
            f"policy {run / POLICY} has rank {', '.join(map(str, ranks)) or '0 (no LoRA)'}, but its record has "
            f"rank {settings['r']}: restore both files of this run together."
        )


def _lora_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that peft saves with such an adapter."""
    from peft import LoraConfig

    config: dict[str, Any] = LoraConfig(
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        target_modules=rf"transformer_blocks\.\d+\.{settings['pattern']}",
        inference_mode=True,
    ).to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def _full(record: RunRecord, state: Mapping[str, Tensor], out: Path) -> list[Path]:
    """Write the transformer of the checkpoint with the trained weights."""
    from safetensors.torch import load_file, save

    source = resolve(record.config["backbone"]["checkpoint"]) / "transformer"
    if not (source / "config.json").is_file():
        raise BenchError(
            f"checkpoint {source} is missing: a policy of all weights is exported together with its base model, so "
            "put the checkpoint there."
        )
    weights: dict[str, Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        weights |= load_file(path)
    unknown = sorted(key for key, value in state.items() if key not in weights or weights[key].shape != value.shape)
    if unknown:
        raise BenchError(
            f"checkpoint {source} has no weight {unknown[0]} of this shape: restore the checkpoint that the run "
            "started from."
        )
    dtype = next(iter(state.values())).dtype
    merged = {key: state.get(key, value.to(dtype)).contiguous() for key, value in weights.items()}
    store.write_bytes(out / FULL_WEIGHTS, save(merged, {"format": "pt"}))
    store.write_text(out / "config.json", (source / "config.json").read_text(encoding="utf-8"))
    return [out / FULL_WEIGHTS, out / "config.json"]
