"""The velocity of `HunyuanVideo15Transformer3DModel` on valid text tokens only, without an attention mask."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from bench.backbones import fsdp
from bench.backbones.attention import attend, heads
from bench.flow import TIMESTEPS


class UnmaskedJointAttention:
    """Joint attention of latent and text tokens without a mask, so that fused kernels apply: every token is valid.

    diffusers' own processor builds an [s, s] mask in each block; on valid tokens the result is the same.
    """

    _attention_backend: str | None = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        from diffusers.models.embeddings import apply_rotary_emb

        query = attn.norm_q(heads(attn, attn.to_q(hidden_states)))
        key = attn.norm_k(heads(attn, attn.to_k(hidden_states)))
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        text_query = attn.norm_added_q(heads(attn, attn.add_q_proj(encoder_hidden_states)))
        text_key = attn.norm_added_k(heads(attn, attn.add_k_proj(encoder_hidden_states)))
        value, text_value = heads(attn, attn.to_v(hidden_states)), heads(attn, attn.add_v_proj(encoder_hidden_states))
        mixed, text = self.attend((query, text_query), (key, text_key), (value, text_value))
        mixed, text = mixed.flatten(2).to(query.dtype), text.flatten(2).to(query.dtype)
        return attn.to_out[1](attn.to_out[0](mixed)), attn.to_add_out(text)

    def attend(
        self, query: tuple[Tensor, Tensor], key: tuple[Tensor, Tensor], value: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Attention over latent and text tokens together: pairs (latents, text) of [b, tokens, heads, d]."""
        whole_query, whole_key, whole_value = (torch.cat(pair, 1) for pair in (query, key, value))
        mixed = attend(whole_query, whole_key, whole_value, self._attention_backend)
        latents = query[0].shape[1]
        return mixed[:, :latents], mixed[:, latents:]


def drop_masks(transformer: Any) -> None:
    """Install `UnmaskedJointAttention` in the joint blocks; the text refiner keeps its own attention."""
    for block in transformer.transformer_blocks:
        block.attn.set_processor(UnmaskedJointAttention())


def use_attention(transformer: Any, backend: str) -> None:
    """Compute the attention of the joint blocks with diffusers' implementation `backend`."""
    for block in transformer.transformer_blocks:
        block.attn.processor._attention_backend = backend


def velocity(
    transformer: Any,
    x: Tensor,
    sigma: Tensor,
    text: Sequence[Tensor],
    glyph: Sequence[Tensor],
    exact_timestep: bool = False,
) -> Tensor:
    """Velocity `noise - x0` [b, c, f, h, w] in float32 for x at noise levels sigma [b].

    `text` and `glyph` hold one tensor [length, dim] per sample. Samples with equal text lengths share a forward pass.
    `exact_timestep` keeps the timestep in float32 under autocast, as Tencent's sampler does; otherwise it is rounded
    to the transformer's dtype, as in diffusers' pipeline (in bfloat16 by up to 2 of 1000).
    """
    lengths = [(len(t), len(g)) for t, g in zip(text, glyph, strict=True)]
    groups = [[i for i, other in enumerate(lengths) if other == length] for length in sorted(set(lengths))]

    def forward_rows(rows: list[int]) -> Tensor:
        texts, glyphs = (torch.stack([stream[i] for i in rows]) for stream in (text, glyph))
        return _forward(transformer, x[rows], sigma[rows], texts, glyphs, exact_timestep)

    fsdp.keep_gathered(transformer)
    padding = fsdp.max_forward_passes(transformer, len(groups)) - len(groups)
    if len(groups) == 1:
        out = _forward(transformer, x, sigma, torch.stack(list(text)), torch.stack(list(glyph)), exact_timestep)
    else:
        out = torch.empty_like(x, dtype=torch.float32)
        for rows in groups:
            out = out.index_put((torch.tensor(rows, device=x.device),), forward_rows(rows))
    for _ in range(padding):  # processes with more lengths do more passes; every pass has collective operations
        out = out + 0 * forward_rows([0]).sum()
    return out


def _forward(transformer: Any, x: Tensor, sigma: Tensor, text: Tensor, glyph: Tensor, exact_timestep: bool) -> Tensor:
    dtype = transformer.x_embedder.proj.weight.dtype  # the base's dtype: LoRA weights are float32
    b, channels, *rest = x.shape
    extra = transformer.config.in_channels - channels  # condition latent and mask: zeros for text to video
    padded = torch.cat([x, x.new_zeros(b, extra, *rest)], 1).to(dtype)
    image = torch.zeros(b, 0, transformer.config.image_embed_dim, dtype=dtype, device=x.device)
    rounded = dtype == torch.float32 or not exact_timestep
    timestep = TIMESTEPS * sigma
    with nullcontext() if rounded else torch.autocast(x.device.type, dtype):
        predicted: Tensor = transformer(
            hidden_states=padded,
            timestep=timestep.to(dtype) if rounded else timestep,
            encoder_hidden_states=text.to(dtype),
            encoder_attention_mask=torch.ones(text.shape[:2], dtype=torch.bool, device=x.device),
            encoder_hidden_states_2=glyph.to(dtype),
            encoder_attention_mask_2=torch.ones(glyph.shape[:2], dtype=torch.bool, device=x.device),
            image_embeds=image,
            return_dict=False,
        )[0]
    return predicted.float()
