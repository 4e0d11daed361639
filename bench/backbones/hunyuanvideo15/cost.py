"""Parameters, FLOPs and activations of HunyuanVideo-1.5, by arithmetic from a transformer's config.json.

A multiplication with its addition counts as 2 FLOPs, as in `torch.utils.flop_counter`. Norms, rotary embeddings,
activations and the products of LoRA weights (1.5 % of a forward pass at rank 32) are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.api import ModelCost
from bench.backbones.folder import part_config, stored_parameters
from bench.backbones.hunyuanvideo15.options import HunyuanOptions, latent_shape
from bench.backbones.quantization import int8_bytes

REFINER_MLP_RATIO = 4
"""Width of the text refiner's feed-forward layers over the model's, fixed in diffusers' class."""
GLYPH_WIDTH = 2048
"""Width of the glyph map's hidden layers, fixed in diffusers' class."""
TIME_CHANNELS = 256
"""Channels of the sinusoidal time embedding, fixed in diffusers' class."""

VAE_PARAMETERS, TEXT_PARAMETERS = 1.261e9, 7.07e9 + 0.22e9
"""Released sizes: the VAE; Qwen2.5-VL and the glyph encoder."""
VAE_FLOPS_PER_PIXEL = 829e12 / (81 * 480 * 848)
"""Decoding by the released VAE without tiles: 829 TFLOP for 81 frames of 480 x 848, by arithmetic."""
VAE_TILED = 1361 / 829
"""Factor for tiles of 256 pixels, which overlap."""
RELEASED_VAE: dict[str, Any] = {
    "latent_channels": 32,
    "block_out_channels": [128, 256, 512, 1024, 1024],
    "spatial_compression_ratio": 16,
    "temporal_compression_ratio": 4,
}
TOKENS_PER_WORD, TEMPLATE_TOKENS = 4 / 3, 5
"""Estimate of a prompt's text tokens: so many per word, and the chat template's closing tokens."""
BLOCK_BYTES = {"bfloat16": 141_000 / 2048, "float32": 184_000 / 2048}
"""Activations of one joint block in bytes per token and unit of width, by the dtype of the base.

Measured on a CPU at width 2048 for float32 LoRA weights on a bfloat16 base without autocast: 141 kB per token. With
everything in bfloat16 it is 92 kB; in float32 twice that, 184 kB.
"""
ATTENTION_COPIES = 11.9
"""Float32 copies of the inputs of the attention's LoRA, in bytes per token and unit of width (`lora_copies`)."""
VAE_MAPS = 7
"""Full-resolution feature maps that a decoder needs room for.

It holds six at once, in the second norm of a block of its last stage: the block's input twice, the first convolution's
output, and three of the norm (counted from the sizes of all tensors, diffusers 0.42). The seventh is for the workspace
of a convolution, which no GPU has shown yet.
"""
TILE = 16
"""Side of a suggested tile in latents, as in the full-size suites."""


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
    def from_config(cls, config: Mapping[str, Any]) -> Transformer:
        """From a config.json; other keys are ignored."""
        known = {key: config[key] for key in cls.__dataclass_fields__ if config.get(key) is not None}
        return cls(**known)

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def patch(self) -> int:
        """Latents of one token."""
        return self.patch_size_t * self.patch_size**2

    def tokens(self, latent_shape: Sequence[int]) -> int:
        """Latent tokens of a latent (c, f, h, w)."""
        _, f, h, w = latent_shape
        return (f // self.patch_size_t) * (h // self.patch_size) * (w // self.patch_size)

    @property
    def block_parameters(self) -> int:
        """Parameters of one joint block, both streams."""
        w, mlp = self.width, int(self.mlp_ratio * self.width)
        return 2 * (4 * (w * w + w) + 2 * self.attention_head_dim + (2 * w * mlp + mlp + w) + 6 * (w * w + w))

    def quantized_block(self, dtype_bytes: int) -> int:
        """Bytes of one joint block with int8 weights, the rest in a type of `dtype_bytes`."""
        w, mlp = self.width, int(self.mlp_ratio * self.width)
        rows = 2 * (4 * w + mlp + w + 6 * w)
        return int8_bytes(self.block_parameters, rows, 4 * self.attention_head_dim, dtype_bytes)

    @property
    def parameters(self) -> int:
        """Parameters of the transformer."""
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
        """Parameters of a LoRA on both streams of all joint blocks; `targets`: "attention" or "attention+ff"."""
        attention, feed_forward = 8 * 2 * self.width, 4 * (1 + self.mlp_ratio) * self.width
        per_block = attention + (feed_forward if targets == "attention+ff" else 0)
        return int(self.num_layers * rank * per_block)

    def linear(self, tokens: int) -> float:
        """FLOPs of the joint blocks' matrix products: 5.436e9 per latent or text token in the released model."""
        return self.num_layers * (8 + 4 * self.mlp_ratio) * self.width**2 * tokens

    def attention(self, tokens: int) -> float:
        """FLOPs of the joint blocks' attention without a mask: 442,368 times tokens squared in the released model."""
        return 4.0 * self.num_layers * self.width * tokens**2

    def ends(self, latents: int, text: int) -> float:
        """FLOPs outside the joint blocks' products: embedders, modulation, text refiner, output map.

        Glyph and image tokens are not counted.
        """
        w = self.width
        modulation = self.num_layers * 24 * w**2 + 4 * w**2
        time = 2 * (TIME_CHANNELS * w + w * w)
        pooled = time + 2 * (self.text_embed_dim * w + w * w)
        block = (8 + 4 * REFINER_MLP_RATIO) * w**2 * text + 4 * w * text**2 + 4 * w**2
        refiner = pooled + 2 * self.text_embed_dim * w * text + self.num_refiner_layers * block
        return modulation + time + refiner + 2 * self.patch * (self.in_channels + self.out_channels) * w * latents

    def forward(self, latents: int, text: int) -> float:
        """FLOPs of one function evaluation with `latents` latent tokens and `text` text tokens."""
        tokens = latents + text
        return self.linear(tokens) + self.attention(tokens) + self.ends(latents, text)

    def backward(self, latents: int, text: int, checkpointing: bool, full: bool) -> float:
        """FLOPs of the backward pass of one function evaluation.

        Input gradients cost one more pass of the linear layers and 2.5 passes of attention (fused kernels compute
        the scores again). Gradient checkpointing adds a forward pass; training all weights (`full`) adds their
        gradients.
        """
        tokens = latents + text
        cost = self.linear(tokens) + 2.5 * self.attention(tokens)
        if full:
            cost += self.linear(tokens) + 2 * self.ends(latents, text)
        return cost + (self.forward(latents, text) if checkpointing else 0)


def decode_flops(vae: Mapping[str, Any], size: Sequence[int], tiled: bool) -> float | None:
    """FLOPs of decoding one video of `size` (frames, height, width) by the released VAE; None for any other."""
    if any(vae[key] != value for key, value in RELEASED_VAE.items()):
        return None
    return VAE_FLOPS_PER_PIXEL * math.prod(size) * (VAE_TILED if tiled else 1)


def decode_bytes(vae: Mapping[str, Any], size: Sequence[int], tile: tuple[int, int] | None = None) -> float:
    """A float32 decoder's memory for one video: `VAE_MAPS` maps of its last stage at full resolution.

    `size`: frames, height and width in pixels; `tile`: height and width of a tile.
    """
    frames, height, width = size
    if tile is not None:
        height, width = min(height, tile[0]), min(width, tile[1])
    return VAE_MAPS * float(vae["block_out_channels"][0]) * frames * height * width * 4


def side_parameters(folder: Path | None) -> tuple[float, float]:
    """Parameters of the VAE and of both text encoders: of the folder's files, or the released numbers."""
    if folder is None or not (folder / "vae" / "config.json").is_file():
        return VAE_PARAMETERS, TEXT_PARAMETERS
    text = sum(stored_parameters(folder / part) for part in ("text_encoder", "text_encoder_2"))
    return stored_parameters(folder / "vae"), text


def model_cost(folder: Path | None, params: Mapping[str, Any], words: float) -> ModelCost:
    """Sizes from the checkpoint's configs, or those of the released model if the folder does not exist."""
    config, vae = part_config(folder, "transformer"), part_config(folder, "vae")
    source = "configs of the checkpoint folder"
    if config is None or vae is None:
        config, vae = {}, RELEASED_VAE
        source = "checkpoint folder not found: the released 480p model is assumed"
    options, net = HunyuanOptions(**params), Transformer.from_config(config)
    shape = latent_shape(options.size, vae)
    latents, text = net.tokens(shape), round(TOKENS_PER_WORD * words) + TEMPLATE_TOKENS
    full, (vae_parameters, text_parameters) = options.lora_rank == 0, side_parameters(folder)
    space = vae["spatial_compression_ratio"]
    return ModelCost(
        source=source,
        **options.cost_settings(),
        latent_shape=shape,
        latents=latents,
        text=text,
        layers=net.num_layers,
        width=net.width,
        heads=net.num_attention_heads,
        parameters=net.parameters,
        block_parameters=net.block_parameters,
        adapter_parameters=0 if full else net.lora_parameters(options.lora_rank, options.lora_targets),
        vae_parameters=vae_parameters,
        text_parameters=text_parameters,
        forward=net.forward(latents, text),
        backward=net.backward(latents, text, options.gradient_checkpointing, full),
        decode=decode_flops(vae, options.size, options.tile is not None),
        block_bytes=BLOCK_BYTES[options.dtype] - options.lora_copies(ATTENTION_COPIES, net.mlp_ratio),
        decode_bytes=decode_bytes(vae, options.size, options.tile),
        savings=options.savings([TILE * space, TILE * space, TILE, TILE]),
        quantized_block=None if options.base_weights == "as_dtype" else net.quantized_block(options.dtype_bytes),
    )
