"""The harness's HunyuanVideo-1.5 backbone with random weights, without a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Conditioning
from bench.backbones.hunyuanvideo15.backbone import HunyuanVideo15
from bench.backbones.hunyuanvideo15.cost import Transformer
from bench.backbones.hunyuanvideo15.policy import BLOCKS, LORA_TARGETS
from bench.backbones.hunyuanvideo15.transformer import drop_masks
from bench.backbones.policy import LoRAPolicy
from bench.core.rng import normal, stream

EMPTY_TOKENS = 6
"""Text tokens of the empty prompt: the end of the chat template."""
PERTURBATION = 0.02
"""Standard deviation of the noise on the LoRA weights, which makes the policy differ from its reference."""

SMALL = Transformer(
    in_channels=9,
    out_channels=4,
    num_attention_heads=1,
    attention_head_dim=32,
    num_layers=2,
    num_refiner_layers=1,
    text_embed_dim=16,
    text_embed_2_dim=8,
    image_embed_dim=8,
)
"""For tests: all code in a fraction of a second."""


def rope_axes(head: int) -> tuple[int, int, int]:
    """Rotary dimensions of frames, rows and columns: 1/8, 7/16 and 7/16 of the head, as released (16, 56, 56)."""
    if head % 32:
        raise BenchError(f"attention_head_dim is {head}: give a multiple of 32, so that its rotary parts are even.")
    return head // 8, 7 * head // 16, 7 * head // 16


def random_transformer(sizes: Transformer, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Any:
    """diffusers' transformer with its initial weights in `dtype` on `device`, without attention masks."""
    from diffusers import HunyuanVideo15Transformer3DModel

    before = torch.get_default_dtype()
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), torch.device(device):
        torch.manual_seed(seed)  # diffusers accepts no generator for initial weights
        torch.set_default_dtype(dtype)
        try:
            config = {**asdict(sizes), "rope_axes_dim": rope_axes(sizes.attention_head_dim), "task_type": "t2v"}
            model = HunyuanVideo15Transformer3DModel(**config)
        finally:
            torch.set_default_dtype(before)
    drop_masks(model)
    return model.eval().requires_grad_(False)


class RandomVideo15(HunyuanVideo15):
    """The backbone's velocity, LoRA policy and anchors on a random transformer; text states are random too.

    It has no VAE and no text encoders. `text`: tokens of every prompt except the empty one. `rank`: of the LoRA.
    """

    def __init__(
        self,
        sizes: Transformer,
        latent_shape: tuple[int, int, int, int],
        text: int,
        rank: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.folder, self.device, self.dtype = Path("random"), device, dtype
        self.convention, self.tiling, self.fps, self._joint = None, None, 24.0, False
        self.sizes, self.latent_shape, self.tokens = sizes, latent_shape, text
        self.transformer = random_transformer(sizes, dtype, device)
        self.policy = LoRAPolicy(
            self.transformer, device, rank=rank, alpha=rank, blocks=BLOCKS, pattern=LORA_TARGETS["attention+ff"]
        )
        self.reset(stream(0, "initial_policy"))

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Random states that depend on the prompt only, without glyph tokens."""
        width = self.sizes.text_embed_dim
        text = [normal(0, [("speed", "text", prompt)], (self._length(prompt), width))[0] for prompt in prompts]
        none = torch.zeros(0, self.sizes.text_embed_2_dim)
        return Conditioning(
            [t.to(self.device, self.dtype) for t in text], {"glyph": [none.to(self.device) for _ in prompts]}
        )

    def _length(self, prompt: str) -> int:
        return EMPTY_TOKENS if prompt == self.uncond_prompt else self.tokens

    def decode(self, x0: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b 3 F H W"]:
        """Not possible: there is no VAE."""
        raise BenchError("a random transformer has no VAE: measure decoding on a checkpoint, such as nano.")


def perturb_policy(backbone: HunyuanVideo15, size: float = PERTURBATION) -> None:
    """Add named noise to the policy's weights, so that every KL term has a value and a gradient."""
    with torch.no_grad():
        for i, p in enumerate(backbone.parameters()):
            p.add_(size * normal(0, [("speed", "shake", i)], p.shape)[0].to(p.device))
