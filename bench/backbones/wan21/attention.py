"""Attention of a block that takes a named implementation; as diffusers' processor otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.backbones.attention import attend, heads


class BlockAttention:
    """Self-attention, or cross-attention to the text, without a mask."""

    _attention_backend: str | None = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        rotary_emb: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """[b, tokens, d] to the same. The text is None in self-attention, the rotary tables in cross-attention."""

        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key = heads(attn, attn.norm_q(attn.to_q(hidden_states))), heads(attn, attn.norm_k(attn.to_k(source)))
        if rotary_emb is not None:
            query, key = _rotated(query, *rotary_emb), _rotated(key, *rotary_emb)
        mixed = self.attend(query, key, heads(attn, attn.to_v(source)))
        out: Tensor = attn.to_out[1](attn.to_out[0](mixed.flatten(2).type_as(query)))
        return out

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention over [b, tokens, heads, d]."""
        return attend(query, key, value, self._attention_backend)


def use_attention(transformer: Any, backend: str) -> None:
    """Compute all attention of the blocks with diffusers' implementation `backend`."""
    for block in transformer.blocks:
        for attn in (block.attn1, block.attn2):
            if not isinstance(attn.processor, BlockAttention):
                attn.set_processor(BlockAttention())
            attn.processor._attention_backend = backend


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[b, tokens, heads, d] turned by the angles of the tables [1, tokens, 1, d], in pairs of neighbours."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([even * c - odd * s, even * s + odd * c], -1).flatten(-2).type_as(x)
