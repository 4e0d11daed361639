"""A small random pipeline in the layout of the released folders: bfloat16, sharded, with a guider."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.backbones.hunyuanvideo15.backbone import HunyuanVideo15
from bench.core.rng import normal, stream
from tests.helpers.nano_suite import CHECKPOINT

SHORT, LONG = "a red circle moving left quickly", "a red circle and a blue square moving left and then up quickly"
QUOTED = 'a red circle with the words "stay here" moving left'
SHAPE = (8, 4, 4, 4)


def random_transformer() -> Any:
    """Nano's configuration with fresh weights; the output layer, which starts at nothing much, is scaled up."""
    from diffusers import HunyuanVideo15Transformer3DModel

    config = HunyuanVideo15Transformer3DModel.load_config(CHECKPOINT / "transformer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HunyuanVideo15Transformer3DModel.from_config(config)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn(p.shape))
    return model.eval()


def released(folder: Path, scale: float = 6.0) -> Path:
    """Transformer and text encoder in bfloat16 shards with an index, a guider of this scale, the rest as nano's."""
    from transformers import Qwen2_5_VLTextModel

    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("manifest.json", "report.json"))
    shutil.rmtree(folder / "transformer")
    random_transformer().bfloat16().save_pretrained(folder / "transformer", max_shard_size="2MB")
    encoder = Qwen2_5_VLTextModel.from_pretrained(CHECKPOINT / "text_encoder").bfloat16()
    (folder / "text_encoder" / "model.safetensors").unlink()
    encoder.save_pretrained(folder / "text_encoder", max_shard_size="100KB")
    (folder / "guider").mkdir()
    guider = {"_class_name": "ClassifierFreeGuidance", "guidance_scale": scale}
    (folder / "guider" / "guider_config.json").write_text(json.dumps(guider))
    index = json.loads((folder / "model_index.json").read_text())
    index["guider"] = ["diffusers", "ClassifierFreeGuidance"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def shards(folder: Path, part: str) -> list[Path]:
    return sorted((folder / part).glob("*-of-*.safetensors"))


def latents(b: int) -> tuple[Tensor, Tensor]:
    x = normal(0, [("test_full_size", i) for i in range(b)], SHAPE)
    return x, torch.linspace(0.9, 0.2, b)


def velocity(backbone: HunyuanVideo15, prompts: list[str], guidance: float = 1.0) -> Tensor:
    x, sigma = latents(len(prompts))
    return backbone.velocity(x, sigma, backbone.encode(prompts), guidance)


def shake(backbone: HunyuanVideo15, size: float = 0.05, name: str = "shake") -> None:
    """A policy away from the base."""
    with torch.no_grad():
        for i, p in enumerate(backbone.parameters()):
            p.add_((size * torch.randn(p.shape, generator=stream(1, name, i))).to(p.device))


def gradients(backbone: HunyuanVideo15) -> list[Tensor | None]:
    """Gradients of the trained parameters, which are then cleared."""
    found = [None if p.grad is None else p.grad.clone() for p in backbone.parameters()]
    for p in backbone.parameters():
        p.grad = None
    return found


def same(first: list[Tensor | None], second: list[Tensor | None]) -> bool:
    """Bit for bit, with gradients in the same places."""
    pairs = list(zip(first, second, strict=True))
    return all((a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in pairs)
