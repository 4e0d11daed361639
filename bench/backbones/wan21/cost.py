"""Parameters, FLOPs and activations of Wan2.1, by arithmetic from a transformer's config.json.

A multiplication with its addition counts as 2 FLOPs, as in `torch.utils.flop_counter`. Norms, rotary embeddings,
activations and the products of LoRA weights are not counted. Without a folder the sizes are those of the 1.3B model,
or of the 14B model where the folder's name has "14B".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.api import ModelCost
from bench.backbones.folder import part_config, stored_parameters
from bench.backbones.quantization import int8_bytes
from bench.backbones.wan21.options import PATCH, WanOptions, check_vae, latent_shape, latent_tokens, transformer_config

VAE_PARAMETERS, TEXT_PARAMETERS = 126_892_531, 5_680_910_336
"""Released sizes: the VAE, UMT5."""
RELEASED_VAE: dict[str, Any] = {
    "z_dim": 16,
    "base_dim": 96,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
}
FIRST_FRAME_FLOPS, FRAME_FLOPS = 4.4e12 / (480 * 832), 13.53e12 / (480 * 832)
"""Decoding by the released VAE, per pixel of a frame: of the first latent frame, and of each later one, which gives 4
frames. 275 TFLOP for 81 frames of 480 x 832, counted by fake tensors."""
VAE_TILED = 454 / 275
"""Factor for tiles of 256 pixels at distances of 192."""
DECODE_BYTES = 19_500
"""Feature maps of the released decoder in float32, in bytes per pixel of a tile or frame: it decodes one latent frame
at a time. Measured with fake tensors: 8.2 GB for 480 x 832, with the video itself; work space of kernels not counted.
"""
CHECKPOINTED, STORED = (82.0, 8.9), (64.0, 6.2)
"""Bytes per token and unit of width of a float32 LoRA on a bfloat16 base, measured with fake tensors: constant, and
per ratio of the feed-forward width to the width. Of all buffers beside the checkpoints with gradient checkpointing; of
a block's stored activations without."""
FORWARD_BUFFERS = 30.0
"""Those of a forward pass among the former, which `bench plan` counts by itself."""
TEXT_BYTES = 16.3
"""Activations of a block's cross-attention per row of text and unit of width, without gradient checkpointing."""
ATTENTION_COPIES = 16.6
"""Float32 copies of the inputs of the attention's LoRA, in bytes per token and unit of width (`lora_copies`)."""
FLOAT32 = 107.4 / 99.8
"""The same with a float32 base, over those with a bfloat16 base; measured without gradient checkpointing."""
TILES = [256, 256, 192, 192]
"""Suggested tiles, diffusers' default."""


@dataclass(frozen=True)
class Transformer:
    """Sizes of `WanTransformer3DModel`; the defaults are those of the released 1.3B model."""

    num_attention_heads: int = 12
    attention_head_dim: int = 128
    ffn_dim: int = 8960
    num_layers: int = 30
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Transformer:
        """From a config.json; other keys are ignored."""
        return cls(**{key: config[key] for key in cls.__dataclass_fields__ if config.get(key) is not None})

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def block_parameters(self) -> int:
        """Parameters of one block: two attentions with norms, feed-forward, a norm, the modulation table."""
        w, f = self.width, self.ffn_dim
        return 2 * (4 * (w * w + w) + 2 * w) + (2 * w * f + f + w) + 2 * w + 6 * w

    def quantized_block(self, dtype_bytes: int) -> int:
        """Bytes of one block with int8 weights, the rest in a type of `dtype_bytes`."""
        w = self.width
        return int8_bytes(self.block_parameters, 9 * w + self.ffn_dim, 12 * w, dtype_bytes)

    @property
    def parameters(self) -> int:
        """Parameters of the transformer."""
        w, patch = self.width, math.prod(PATCH)
        time = self.freq_dim * w + w + w * w + w + 6 * (w * w + w)
        text = self.text_dim * w + w + w * w + w
        ends = self.in_channels * patch * w + w + (w + 1) * self.out_channels * patch + 2 * w
        return self.num_layers * self.block_parameters + time + text + ends

    def lora_parameters(self, rank: int, targets: str) -> int:
        """Parameters of a LoRA on all blocks; `targets`: "attention" or "attention+ff"."""
        feed_forward = 2 * (self.width + self.ffn_dim) if targets == "attention+ff" else 0
        return self.num_layers * rank * (16 * self.width + feed_forward)

    def attention(self, tokens: int, text: int) -> float:
        """FLOPs of self- and cross-attention, without their projections."""
        return 4.0 * self.num_layers * self.width * tokens * (tokens + text)

    def linear(self, tokens: int, text: int) -> float:
        """FLOPs of the blocks' matrix products."""
        w = self.width
        return float(self.num_layers * ((12 * w**2 + 4 * w * self.ffn_dim) * tokens + 4 * w**2 * text))

    def ends(self, tokens: int, text: int) -> float:
        """FLOPs outside of the blocks: patches, text and time embedding, output map."""
        w, patch = self.width, math.prod(PATCH)
        patches = 2 * patch * (self.in_channels + self.out_channels) * w * tokens
        return float(patches + text * 2 * (self.text_dim * w + w**2) + 2 * (self.freq_dim * w + 7 * w**2))

    def forward(self, tokens: int, text: int) -> float:
        """FLOPs of one function evaluation with `tokens` latent tokens and `text` rows of text."""
        return self.linear(tokens, text) + self.attention(tokens, text) + self.ends(tokens, text)

    def backward(self, tokens: int, text: int, checkpointing: bool, full: bool) -> float:
        """FLOPs of the backward pass of one function evaluation.

        Input gradients cost one more pass of the linear layers and 2.5 passes of attention (fused kernels compute the
        scores again). Gradient checkpointing adds a forward pass; training all weights (`full`) adds their gradients.
        """
        cost = self.linear(tokens, text) + 2.5 * self.attention(tokens, text)
        if full:
            cost += self.linear(tokens, text) + 2 * self.ends(tokens, text)
        return cost + (self.forward(tokens, text) if checkpointing else 0)

    def block_bytes(self, options: WanOptions, tokens: int) -> float:
        """Activations of one block that a backward pass needs, in bytes per token and unit of width."""
        constant, per_ratio = CHECKPOINTED if options.gradient_checkpointing else STORED
        ratio = self.ffn_dim / self.width
        size = constant + per_ratio * ratio - options.lora_copies(ATTENTION_COPIES, ratio)
        scale = FLOAT32 if options.dtype == "float32" else 1.0
        if options.gradient_checkpointing:
            return size * scale - FORWARD_BUFFERS
        return (size + TEXT_BYTES * options.text_rows / tokens) * scale


RELEASED = {"14B": Transformer(num_attention_heads=40, ffn_dim=13824, num_layers=40), "1.3B": Transformer()}


def decode_flops(vae: Mapping[str, Any], size: Sequence[int], tiled: bool) -> float | None:
    """FLOPs of decoding one video of `size` (frames, height, width) by the released VAE; None for any other."""
    if any(vae.get(key) != value for key, value in RELEASED_VAE.items()):
        return None
    frames, height, width = size
    later = (frames - 1) // 4
    return height * width * (FIRST_FRAME_FLOPS + later * FRAME_FLOPS) * (VAE_TILED if tiled else 1)


def decode_bytes(vae: Mapping[str, Any], size: Sequence[int], tile: tuple[int, int] | None) -> float:
    """Memory of decoding one video in float32: feature maps of a frame or of a tile, and the video."""
    frames, height, width = size
    maps = DECODE_BYTES * vae["base_dim"] / RELEASED_VAE["base_dim"]
    tile_height, tile_width = (height, width) if tile is None else (min(height, tile[0]), min(width, tile[1]))
    return float(maps * tile_height * tile_width + 3 * 4 * frames * height * width)


def model_cost(folder: Path | None, params: Mapping[str, Any]) -> ModelCost:
    """Sizes from the checkpoint's configs, or those of a released model if the folder does not exist."""
    options, vae = WanOptions(**params), part_config(folder, "vae")
    if folder is None or vae is None or part_config(folder, "transformer") is None:
        name = next(name for name in RELEASED if name in str(folder) or name == "1.3B")
        net, vae, source = RELEASED[name], RELEASED_VAE, f"checkpoint folder not found: the released {name} is assumed"
        vae_parameters, text_parameters = VAE_PARAMETERS, TEXT_PARAMETERS
    else:
        net, source = Transformer.from_config(transformer_config(folder)), "configs of the checkpoint folder"
        check_vae(folder, vae)
        vae_parameters, text_parameters = (stored_parameters(folder / part) for part in ("vae", "text_encoder"))
    shape = latent_shape(options.size, vae)
    tokens, full = latent_tokens(shape), options.lora_rank == 0
    return ModelCost(
        source=source,
        **options.cost_settings(),
        latent_shape=shape,
        latents=tokens,
        text=0,
        layers=net.num_layers,
        width=net.width,
        heads=net.num_attention_heads,
        parameters=net.parameters,
        block_parameters=net.block_parameters,
        adapter_parameters=0 if full else net.lora_parameters(options.lora_rank, options.lora_targets),
        vae_parameters=vae_parameters,
        text_parameters=text_parameters,
        forward=net.forward(tokens, options.text_rows),
        backward=net.backward(tokens, options.text_rows, options.gradient_checkpointing, full),
        decode=decode_flops(vae, options.size, options.tile is not None),
        block_bytes=net.block_bytes(options, tokens),
        decode_bytes=decode_bytes(vae, options.size, options.tile),
        joint_branches=options.guidance_branches == "joint",
        savings=options.savings(TILES),
        quantized_block=None if options.base_weights == "as_dtype" else net.quantized_block(options.dtype_bytes),
    )
