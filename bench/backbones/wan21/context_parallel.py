"""Context parallelism of Wan2.1: self-attention exchanges tokens for heads, the text is whole on each process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.api import context_degree
from bench.backbones.context_parallel import (
    all_tokens,
    check_even_split,
    context_group,
    local_tokens,
    split_tokens,
)
from bench.backbones.wan21.attention import BlockAttention
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


class SharedSelfAttention(BlockAttention):
    """Self-attention over the tokens of all processes of a group: [b, local tokens, d] to the same."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return local_tokens(super().attend(*(all_tokens(x, self._group) for x in (query, key, value))), self._group)
