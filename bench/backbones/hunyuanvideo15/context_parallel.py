"""Context parallelism: the latent tokens of one sample over n processes, for latents that one device cannot hold.

Each process keeps s / n latent tokens and all text tokens. In a joint block, attention swaps tokens for heads: a
process attends with h / n heads over the whole sequence. (Tencent's scheme for this model: text of any length, where
splitting the text too would need a length that n divides.) Outputs are whole on every process. A gradient is partial:
the sum over all processes is the gradient, and the harness adds it up with the other gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.api import BenchError
from bench.backbones.hunyuanvideo15.options import check_even_split, cp_degree
from bench.backbones.hunyuanvideo15.transformer import UnmaskedJointAttention

Pair = tuple[Tensor, Tensor]
TOKENS, HEADS = 1, 2
"""Dimensions of a query, key or value [b, tokens, heads, d]."""


def share_context(transformer: Any, parallel: Mapping[str, int], latent_shape: tuple[int, int, int, int]) -> None:
    """Install context parallelism of degree `parallel["context"]`; neighbours in rank share a sample."""
    n = cp_degree(parallel)
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
    place = dist.get_rank(group)

    def own(x: Tensor, dim: int) -> Tensor:
        return x.chunk(n, dim)[place]

    def split_rotation(module: Any, args: Any, tables: Pair) -> Pair:
        return own(tables[0], 0), own(tables[1], 0)

    def split_latents(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return own(args[0], TOKENS), *args[1:]

    def put_together(module: Any, args: Any, out: Tensor) -> Tensor:
        whole: Tensor = _Whole.apply(out, group)
        return whole

    transformer.rope.register_forward_hook(split_rotation)
    transformer.transformer_blocks[0].register_forward_pre_hook(split_latents)
    transformer.proj_out.register_forward_hook(put_together)
    for block in transformer.transformer_blocks:
        block.attn.set_processor(SharedJointAttention(group))


class SharedJointAttention(UnmaskedJointAttention):
    """Joint attention over the latent tokens of all processes of a group; the text is the same on each."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def attend(self, query: Pair, key: Pair, value: Pair) -> Pair:
        n, place = dist.get_world_size(self._group), dist.get_rank(self._group)

        def exchanged(pair: Pair) -> Pair:
            latents: Tensor = _Swap.apply(pair[0], HEADS, TOKENS, self._group)
            return latents, pair[1].chunk(n, HEADS)[place]

        latents, text = super().attend(exchanged(query), exchanged(key), exchanged(value))
        back: Tensor = _Swap.apply(latents, TOKENS, HEADS, self._group)
        heads: Tensor = _AllHeads.apply(text, self._group)
        return back, heads


def _swap(x: Tensor, give: int, take: int, group: Any) -> Tensor:
    """Give away all but this process's part of dimension `give`; take every process's part of dimension `take`."""
    parts = torch.stack(x.chunk(dist.get_world_size(group), give))
    got = torch.empty_like(parts)
    dist.all_to_all_single(got, parts, group=group)
    return torch.cat(got.unbind(), take)


def _gather(x: Tensor, dim: int, group: Any) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, dim)


class _Swap(torch.autograd.Function):
    """`_swap`; its gradient is swapped back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, give: int, take: int, group: Any) -> Tensor:
        ctx.back = take, give, group
        return _swap(x, give, take, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _swap(grad, *ctx.back), None, None, None


class _AllHeads(torch.autograd.Function):
    """All heads of the text from each process's own; every process goes on with them, so their gradients add up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _gather(x, HEADS, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total.chunk(dist.get_world_size(ctx.group), HEADS)[dist.get_rank(ctx.group)], None


class _Whole(torch.autograd.Function):
    """All latent tokens; the loss is computed alike on every process, so each takes back its own part's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _gather(x, TOKENS, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.chunk(dist.get_world_size(ctx.group), TOKENS)[dist.get_rank(ctx.group)], None
