"""The policy of a run as files for diffusers and peft. Shared by the backbones.

A LoRA becomes `pytorch_lora_weights.safetensors` for `load_lora_adapter` of diffusers' transformer, and
`adapter_model.safetensors` with `adapter_config.json` for peft's `PeftModel.from_pretrained`. A policy of all weights
becomes a folder for `from_pretrained` of the transformer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.api import BenchError
from bench.backbones.lora_files import HEADER_ENTRY, LORA_WEIGHTS, PEFT_CONFIG, PEFT_PREFIX, PEFT_WEIGHTS

FULL_WEIGHTS = "diffusion_pytorch_model.safetensors"


def exported_files(
    policy: Mapping[str, Tensor], settings: Mapping[str, Any], folder: Path, blocks: str, prefix: str = ""
) -> dict[str, bytes]:
    """File name to content.

    `settings`: those of the policy in the fingerprint; r = 0 without a LoRA. `blocks`: name of the transformer's list
    of blocks. `prefix`: start of the LoRA's keys, "transformer." for a file that a pipeline's `load_lora_weights`
    takes; without it `load_lora_adapter` needs `prefix=None`.
    """
    if settings["r"] == 0:
        return _full(policy, folder / "transformer")
    from safetensors.torch import save

    _check_rank(policy, settings)
    config = _lora_config(settings, blocks)
    metadata = json.dumps({prefix + key: value for key, value in config.items()}, indent=2, sort_keys=True)
    lora = {prefix + key: value for key, value in policy.items()}
    return {
        LORA_WEIGHTS: save(lora, {"format": "pt", HEADER_ENTRY: metadata}),
        PEFT_WEIGHTS: save({PEFT_PREFIX + key: value for key, value in policy.items()}, {"format": "pt"}),
        PEFT_CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
    }


def _check_rank(policy: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    ranks = sorted({len(tensor) for key, tensor in policy.items() if "lora_A" in key})
    if ranks != [settings["r"]]:
        raise BenchError(
            f"the stored policy has rank {', '.join(map(str, ranks)) or '0 (no LoRA)'}, but its record has "
            f"rank {settings['r']}: restore both files of this run together."
        )


def _lora_config(settings: Mapping[str, Any], blocks: str) -> dict[str, Any]:
    """The configuration that peft saves with such an adapter."""
    from peft import LoraConfig

    config: dict[str, Any] = LoraConfig(
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        target_modules=rf"{blocks}\.\d+\.{settings['pattern']}",
        inference_mode=True,
    ).to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def _full(policy: Mapping[str, Tensor], source: Path) -> dict[str, bytes]:
    """The transformer of the checkpoint with the trained weights."""
    from safetensors.torch import load_file, save

    if not (source / "config.json").is_file():
        raise BenchError(
            f"checkpoint {source} is missing: a policy of all weights is exported together with its base model, so "
            "put the checkpoint there."
        )
    weights: dict[str, Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        weights |= load_file(path)
    unknown = sorted(key for key, value in policy.items() if key not in weights or weights[key].shape != value.shape)
    if unknown:
        raise BenchError(
            f"checkpoint {source} has no weight {unknown[0]} of this shape: restore the checkpoint that the run "
            "started from."
        )
    dtype = next(iter(policy.values())).dtype
    merged = {key: policy.get(key, value.to(dtype)).contiguous() for key, value in weights.items()}
    return {FULL_WEIGHTS: save(merged, {"format": "pt"}), "config.json": (source / "config.json").read_bytes()}
