"""Context parallelism: n processes share the latent tokens of one sample, for latents that one device cannot hold.

Each process holds s / n latent tokens and all text tokens. In a joint block, attention exchanges tokens for heads: a
process attends with h / n heads over the whole sequence. This is Tencent's scheme for this model; it accepts text of
any length, whereas splitting the text needs a length that n divides. Outputs are complete on every process. A gradient
is partial: the sum over all processes is the gradient, and the harness sums it with the other gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.api import BenchError, context_degree
from bench.backbones.hunyuanvideo15.options import check_even_split
from bench.backbones.hunyuanvideo15.transformer import UnmaskedJointAttention

Pair = tuple[Tensor, Tensor]
TOKENS, HEADS = 1, 2
"""Dimensions of a query, key or value [b, tokens, heads, d]."""


def share_context(
    transformer: Any, parallel: Mapping[str, int] | None, latent_shape: tuple[int, int, int, int]
) -> None:
    """Install context parallelism of degree `parallel["context"]`; processes of adjacent ranks share a sample."""
    n = context_degree(parallel)
    if n == 1:
        return
    check_even_split(transformer.config, n, latent_shape)
    if not dist.is_initialized() or dist.get_world_size() % n:
        size = dist.get_world_size() if dist.is_initialized() else 1
        raise BenchError(
            f"backbone.train.parallel.context is {n}, but the run has {size} process{'es' * (size > 1)}: "
            f"use --launcher torchrun with an --nproc that is a multiple of {n}."
        )
    group, _ = dist.new_subgroups(n)
    rank = dist.get_rank(group)

    def local_chunk(x: Tensor, dim: int) -> Tensor:
        return x.chunk(n, dim)[rank]

    def split_rotation(module: Any, args: Any, tables: Pair) -> Pair:
        return local_chunk(tables[0], 0), local_chunk(tables[1], 0)

    def split_latents(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return local_chunk(args[0], TOKENS), *args[1:]

    def gather_latents(module: Any, args: Any, out: Tensor) -> Tensor:
        gathered: Tensor = _GatherTokens.apply(out, group)
        return gathered

    transformer.rope.register_forward_hook(split_rotation)
    transformer.transformer_blocks[0].register_forward_pre_hook(split_latents)
    transformer.proj_out.register_forward_hook(gather_latents)
    for block in transformer.transformer_blocks:
        block.attn.set_processor(SharedJointAttention(group))


class SharedJointAttention(UnmaskedJointAttention):
    """Joint attention over the latent tokens of all processes of a group; the text is the same on each."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def attend(self, query: Pair, key: Pair, value: Pair) -> Pair:
        n, rank = dist.get_world_size(self._group), dist.get_rank(self._group)

        def all_tokens(pair: Pair) -> Pair:
            latents: Tensor = _Exchange.apply(pair[0], HEADS, TOKENS, self._group)
            return latents, pair[1].chunk(n, HEADS)[rank]

        latents, text = super().attend(all_tokens(query), all_tokens(key), all_tokens(value))
        local_latents: Tensor = _Exchange.apply(latents, TOKENS, HEADS, self._group)
        all_heads: Tensor = _GatherHeads.apply(text, self._group)
        return local_latents, all_heads


def _exchange(x: Tensor, split_dim: int, gather_dim: int, group: Any) -> Tensor:
    """All-to-all: keep this process's chunk of `split_dim`, and gather all processes' chunks along `gather_dim`."""
    chunks = torch.stack(x.chunk(dist.get_world_size(group), split_dim))
    received = torch.empty_like(chunks)
    dist.all_to_all_single(received, chunks, group=group)
    return torch.cat(received.unbind(), gather_dim)


def _gather(x: Tensor, dim: int, group: Any) -> Tensor:
    chunks = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(chunks, x.contiguous(), group=group)
    return torch.cat(chunks, dim)


class _Exchange(torch.autograd.Function):
    """`_exchange`; the backward pass exchanges the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, split_dim: int, gather_dim: int, group: Any) -> Tensor:
        ctx.back = gather_dim, split_dim, group
        return _exchange(x, split_dim, gather_dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(grad, *ctx.back), None, None, None


class _GatherHeads(torch.autograd.Function):
    """All heads of the text. Every process continues with all of them, so the backward pass sums their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _gather(x, HEADS, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total.chunk(dist.get_world_size(ctx.group), HEADS)[dist.get_rank(ctx.group)], None


class _GatherTokens(torch.autograd.Function):
    """All latent tokens. Every process computes the same loss, so the backward pass returns the local chunk only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _gather(x, TOKENS, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.chunk(dist.get_world_size(ctx.group), TOKENS)[dist.get_rank(ctx.group)], None
