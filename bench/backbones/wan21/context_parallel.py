"""Context parallelism of Wan2.1: self-attention exchanges tokens for heads, the text is whole on each process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.api import context_degree
from bench.backbones.context_parallel import (
    all_tokens,
    check_even_split,
    context_group,
    local_tokens,
    split_tokens,
)
from bench.backbones.wan21.options import latent_tokens

ROTATION_DIM = 1
"""Dimension of the tokens in the rotary tables [1, tokens, 1, d]."""


def share_context(
    transformer: Any, parallel: Mapping[str, int] | None, latent_shape: tuple[int, int, int, int]
) -> None:
    """Install context parallelism of degree `parallel["context"]`; processes of adjacent ranks share a sample."""
    n = context_degree(parallel)
    check_even_split(n, latent_tokens(latent_shape), transformer.config.num_attention_heads)
    group = context_group(parallel)
    if group is None:
        return
    split_tokens(transformer, transformer.blocks, ROTATION_DIM, group)
    for block in transformer.blocks:
        block.attn1.set_processor(SharedSelfAttention(group))


class SharedSelfAttention:
    """Self-attention over the tokens of all processes of a group; as diffusers' processor otherwise."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __init__(self, group: Any) -> None:
        self._group = group

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        rotary_emb: tuple[Tensor, Tensor],
    ) -> Tensor:
        """[b, local tokens, d] to the same; the second and third argument, of other kinds of attention, are None."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        def heads(x: Tensor) -> Tensor:
            split: Tensor = x.unflatten(2, (attn.heads, -1))
            return split

        query = _rotated(heads(attn.norm_q(attn.to_q(hidden_states))), *rotary_emb)
        key = _rotated(heads(attn.norm_k(attn.to_k(hidden_states))), *rotary_emb)
        value = heads(attn.to_v(hidden_states))
        mixed = dispatch_attention_fn(
            *(all_tokens(x, self._group) for x in (query, key, value)), backend=self._attention_backend
        )
        out: Tensor = local_tokens(mixed, self._group).flatten(2).type_as(query)
        return attn.to_out[1](attn.to_out[0](out))  # type: ignore[no-any-return]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[b, tokens, heads, d] turned by the angles of the tables [1, tokens, 1, d], in pairs of neighbours."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([even * c - odd * s, even * s + odd * c], -1).flatten(-2).type_as(x)
