"""The transformer as diffusers calls it: its attention processor with a mask, and text padded to a fixed length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.backbones.hunyuanvideo15.transformer import drop_masks
from bench.flow import TIMESTEPS


@dataclass(frozen=True)
class Slots:
    """Token counts to which each prompt is padded."""

    text: int
    glyph: int
    image: int

    @property
    def total(self) -> int:
        return self.text + self.glyph + self.image


PIPELINE = Slots(1000, 256, 729)
"""Of diffusers' HunyuanVideo15Pipeline, for every video size."""
PIPELINE_LATENTS = 33_390
"""Latent tokens of 81 frames at 480 x 848, where the padding is 6 % of them."""


def scaled(latents: int, text: int) -> Slots:
    """The pipeline's padding scaled to a smaller latent, at least the longest prompt (`text` tokens).

    The pipeline's 1985 tokens would dominate the time of a small model, unlike that of a large one.
    """
    text_slots, glyph, image = (
        round(slots * latents / PIPELINE_LATENTS) for slots in (PIPELINE.text, PIPELINE.glyph, PIPELINE.image)
    )
    return Slots(max(text, text_slots), max(1, glyph), max(1, image))


def use_stock(transformer: Any) -> None:
    """Install diffusers' processor in the joint blocks."""
    from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15AttnProcessor2_0

    for block in transformer.transformer_blocks:
        block.attn.set_processor(HunyuanVideo15AttnProcessor2_0())


@contextmanager
def stock_attention(transformer: Any) -> Iterator[None]:
    """Use diffusers' attention in the joint blocks within the context, the harness's attention afterwards."""
    use_stock(transformer)
    try:
        yield
    finally:
        drop_masks(transformer)


def pad_states(rows: Sequence[Tensor], slots: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """States [b, slots, width], each row padded with zeros, and the mask [b, slots] of valid tokens."""
    states = like.new_zeros(len(rows), slots, width)
    mask = torch.zeros(len(rows), slots, dtype=torch.bool, device=like.device)
    for i, row in enumerate(rows):
        states[i, : len(row)] = row.to(like)
        mask[i, : len(row)] = True
    return states, mask


def padded_velocity(
    transformer: Any, x: Tensor, sigma: Tensor, text: Sequence[Tensor], glyph: Sequence[Tensor], slots: Slots
) -> Tensor:
    """Velocity [b, c, f, h, w] in float32 of one padded batch, as the pipeline calls the transformer."""
    config, dtype = transformer.config, transformer.x_embedder.proj.weight.dtype
    b, channels, *rest = x.shape
    like = torch.empty(0, dtype=dtype, device=x.device)
    words, word_mask = pad_states(text, slots.text, config.text_embed_dim, like)
    letters, letter_mask = pad_states(glyph, slots.glyph, config.text_embed_2_dim, like)
    predicted: Tensor = transformer(
        hidden_states=torch.cat([x, x.new_zeros(b, config.in_channels - channels, *rest)], 1).to(dtype),
        timestep=(TIMESTEPS * sigma).to(dtype),
        encoder_hidden_states=words,
        encoder_attention_mask=word_mask,
        encoder_hidden_states_2=letters,
        encoder_attention_mask_2=letter_mask,
        image_embeds=like.new_zeros(b, slots.image, config.image_embed_dim),
        return_dict=False,
    )[0]
    return predicted.float()
