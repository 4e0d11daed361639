"""What HunyuanVideo-1.5 costs: parameters and FLOPs from a transformer's config.json; plain arithmetic.

A multiplication with its addition counts as 2 FLOPs, as in `torch.utils.flop_counter`. Norms, rotary
embeddings, activations and the LoRA products themselves (1.5 % of a forward pass at rank 32) are not counted. Bytes
are `bench.plan.memory`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}

REFINER_MLP_RATIO = 4
"""Of the text refiner's blocks, fixed in diffusers' class."""
GLYPH_WIDTH = 2048
"""Width of the glyph map's hidden layers, fixed in diffusers' class."""
TIME_CHANNELS = 256
"""Sinusoids of the time embedding, fixed in diffusers' class."""

VAE_PARAMETERS, TEXT_PARAMETERS = 1.261e9, 7.07e9 + 0.22e9
"""Released sizes: the VAE; Qwen2.5-VL and the glyph encoder."""
VAE_FLOPS_PER_PIXEL = 829e12 / (81 * 480 * 848)
"""Decoding by the released VAE without tiles: 829 TFLOP for 81 frames of 480 x 848 (on paper)."""
VAE_TILED = 1361 / 829
"""The same in tiles of 256 pixels, which overlap."""
RELEASED_VAE: dict[str, Any] = {
    "latent_channels": 32,
    "block_out_channels": [128, 256, 512, 1024, 1024],
    "spatial_compression_ratio": 16,
    "temporal_compression_ratio": 4,
}


@dataclass(frozen=True)
class Transformer:
    """Sizes of `HunyuanVideo15Transformer3DModel`; the defaults are those of the released models."""

    in_channels: int = 65
    out_channels: int = 32
    num_attention_heads: int = 16
    attention_head_dim: int = 128
    num_layers: int = 54
    num_refiner_layers: int = 2
    mlp_ratio: float = 4.0
    patch_size: int = 1
    patch_size_t: int = 1
    text_embed_dim: int = 3584
    text_embed_2_dim: int = 1472
    image_embed_dim: int = 1152

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Transformer:
        """From a config.json; keys that cost nothing are left aside."""
        known = {key: config[key] for key in cls.__dataclass_fields__ if config.get(key) is not None}
        return cls(**known)

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def patch(self) -> int:
        return self.patch_size_t * self.patch_size**2

    def tokens(self, latent_shape: Sequence[int]) -> int:
        """Latent tokens of a latent (c, f, h, w)."""
        _, f, h, w = latent_shape
        return (f // self.patch_size_t) * (h // self.patch_size) * (w // self.patch_size)

    @property
    def block_parameters(self) -> int:
        """Of one joint block, both streams."""
        w, mlp = self.width, int(self.mlp_ratio * self.width)
        return 2 * (4 * (w * w + w) + 2 * self.attention_head_dim + (2 * w * mlp + mlp + w) + 6 * (w * w + w))

    @property
    def parameters(self) -> int:
        w, text, image = self.width, self.text_embed_dim, self.image_embed_dim
        refined = REFINER_MLP_RATIO * w
        refiner = 4 * (w * w + w) + (2 * w * refined + refined + w) + 4 * w + 2 * (w * w + w)
        time = TIME_CHANNELS * w + w + w * w + w
        context = time + (text * w + w) + (w * w + w) + (text * w + w) + self.num_refiner_layers * refiner
        glyph = 2 * self.text_embed_2_dim + (self.text_embed_2_dim + 1) * GLYPH_WIDTH
        glyph += (GLYPH_WIDTH + 1) * GLYPH_WIDTH + (GLYPH_WIDTH + 1) * w
        picture = 2 * image + (image * image + image) + (image * w + w) + 2 * w
        ends = (self.in_channels * self.patch + 1) * w + 2 * (w * w + w) + (w + 1) * self.patch * self.out_channels
        return self.num_layers * self.block_parameters + context + glyph + picture + time + 3 * w + ends

    def lora_parameters(self, rank: int, targets: str) -> int:
        """Of a LoRA on both streams of all joint blocks: "attention" or "attention+ff"."""
        attention, feed_forward = 8 * 2 * self.width, 4 * (1 + self.mlp_ratio) * self.width
        each = attention + (feed_forward if targets == "attention+ff" else 0)
        return int(self.num_layers * rank * each)

    # FLOPs of one sample ----------------------------------------------------------------------------------------
    def linear(self, tokens: int) -> float:
        """The joint blocks' matrix products: 5.436e9 per latent or text token in the released model."""
        return self.num_layers * (8 + 4 * self.mlp_ratio) * self.width**2 * tokens

    def attention(self, tokens: int) -> float:
        """The joint blocks' attention without a mask: 442,368 times tokens squared in the released model."""
        return 4.0 * self.num_layers * self.width * tokens**2

    def ends(self, latents: int, text: int) -> float:
        """Everything outside: embedders, modulation, text refiner and the output map; no glyph and image tokens."""
        w = self.width
        modulation = self.num_layers * 24 * w**2 + 4 * w**2
        time = 2 * (TIME_CHANNELS * w + w * w)
        pooled = time + 2 * (self.text_embed_dim * w + w * w)
        block = (8 + 4 * REFINER_MLP_RATIO) * w**2 * text + 4 * w * text**2 + 4 * w**2
        refiner = pooled + 2 * self.text_embed_dim * w * text + self.num_refiner_layers * block
        return modulation + time + refiner + 2 * self.patch * (self.in_channels + self.out_channels) * w * latents

    def forward(self, latents: int, text: int) -> float:
        """One function evaluation."""
        both = latents + text
        return self.linear(both) + self.attention(both) + self.ends(latents, text)

    def backward(self, latents: int, text: int, checkpointing: bool, full: bool) -> float:
        """Gradients of one function evaluation.

        Input gradients cost one more pass of the linear layers, attention 2.5 passes (fused kernels compute their
        scores again); gradient checkpointing adds a forward pass, full fine-tuning the weights' own gradients.
        """
        both = latents + text
        cost = self.linear(both) + 2.5 * self.attention(both)
        if full:
            cost += self.linear(both) + 2 * self.ends(latents, text)
        return cost + (self.forward(latents, text) if checkpointing else 0)


def decode_flops(vae: Mapping[str, Any], size: Sequence[int], tiled: bool) -> float | None:
    """FLOPs of decoding one video of `size` (frames, height, width) by the released VAE; None for any other."""
    if any(list_of(vae[key]) != list_of(value) for key, value in RELEASED_VAE.items()):
        return None
    return VAE_FLOPS_PER_PIXEL * math.prod(size) * (VAE_TILED if tiled else 1)


def list_of(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


# what lies in a checkpoint folder -----------------------------------------------------------------------------
def read_config(folder: Path) -> dict[str, Any] | None:
    """config.json of one part of a pipeline folder; None where the folder is absent."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise BenchError(f"{path} is not JSON ({cause}): restore the checkpoint from its source.") from cause
    return dict(found)


def stored_parameters(folder: Path) -> int:
    """Parameters in a folder's safetensors files, read from their headers."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total
