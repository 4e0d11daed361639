"""Context parallelism of the joint blocks: latent tokens are split over the processes, the text is whole on each.

This is Tencent's scheme for this model; it accepts text of any length, whereas splitting the text needs a length that
the number of processes divides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.api import context_degree
from bench.backbones.context_parallel import (
    all_heads,
    all_tokens,
    check_even_split,
    context_group,
    local_heads,
    local_tokens,
    split_tokens,
)
from bench.backbones.hunyuanvideo15.options import latent_tokens
from bench.backbones.hunyuanvideo15.transformer import UnmaskedJointAttention

Pair = tuple[Tensor, Tensor]
ROTATION_DIM = 0
"""Dimension of the tokens in the rotary tables [tokens, d]."""


def share_context(
    transformer: Any, parallel: Mapping[str, int] | None, latent_shape: tuple[int, int, int, int]
) -> None:
    """Install context parallelism of degree `parallel["context"]`; processes of adjacent ranks share a sample."""
    config = transformer.config
    check_even_split(context_degree(parallel), latent_tokens(config, latent_shape), config.num_attention_heads)
    group = context_group(parallel)
    if group is None:
        return
    split_tokens(transformer, transformer.transformer_blocks, ROTATION_DIM, group)
    for block in transformer.transformer_blocks:
        block.attn.set_processor(SharedJointAttention(group))


class SharedJointAttention(UnmaskedJointAttention):
    """Joint attention over the latent tokens of all processes of a group; the text is the same on each."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def attend(self, query: Pair, key: Pair, value: Pair) -> Pair:
        def exchanged(pair: Pair) -> Pair:
            return all_tokens(pair[0], self._group), local_heads(pair[1], self._group)

        latents, text = super().attend(exchanged(query), exchanged(key), exchanged(value))
        return local_tokens(latents, self._group), all_heads(text, self._group)
