"""Context parallelism: n processes share the latent tokens of one sample, for latents that one device cannot hold.

Shared by the backbones. Each process holds s / n latent tokens and all text tokens. Attention among the latent tokens
exchanges tokens for heads: a process attends with h / n heads over the whole sequence (Ulysses: Jacobs et al. 2023,
arXiv 2309.14509). Outputs are complete on every process. A gradient is partial: the sum over all processes is the
gradient, and the harness sums it with the other gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.api import COLLECTIVE_TIMEOUT, BenchError, context_degree

TOKENS, HEADS = 1, 2
"""Dimensions of a query, key or value [b, tokens, heads, d]."""
LATENTS = "hidden_states"
"""diffusers' name of a block's latent tokens, by which some models pass them."""


def check_even_split(n: int, tokens: int, heads: int) -> None:
    """Refuse n processes that cannot share the latent tokens of a sample, or the attention heads, evenly."""
    for count, unit, fix in (
        (tokens, "latent tokens", "choose another degree, or a backbone.train.size with a multiple of it"),
        (heads, "attention heads", "choose another degree"),
    ):
        if count % n:
            raise BenchError(
                f"backbone.train.parallel.context is {n}, which does not divide the {count} {unit}: {fix}."
            )


def context_group(parallel: Mapping[str, int] | None) -> Any:
    """The processes that share this one's samples, of adjacent ranks; None without context parallelism."""
    n = context_degree(parallel)
    if n == 1:
        return None
    if not dist.is_initialized() or dist.get_world_size() % n:
        size = dist.get_world_size() if dist.is_initialized() else 1
        raise BenchError(
            f"backbone.train.parallel.context is {n}, but the run has {size} process{'es' * (size > 1)}: "
            f"use --launcher torchrun with an --nproc that is a multiple of {n}."
        )
    group, _ = dist.new_subgroups(n, timeout=COLLECTIVE_TIMEOUT)
    return group


def split_tokens(transformer: Any, blocks: Any, rotation_dim: int, group: Any) -> None:
    """Split the latent tokens over the group between the first of the `blocks` and the output map `proj_out`.

    The rotary tables, the two outputs of the module `rope`, are split in their dimension `rotation_dim`. Attention in
    the blocks must exchange tokens for heads (`all_tokens`, `local_tokens`).
    """

    def split_rotation(module: Any, args: Any, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return _local_chunk(tables[0], rotation_dim, group), _local_chunk(tables[1], rotation_dim, group)

    def split_latents(module: Any, args: tuple[Tensor, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (_local_chunk(args[0], TOKENS, group), *args[1:]), named
        return args, {**named, LATENTS: _local_chunk(named[LATENTS], TOKENS, group)}

    def gather_latents(module: Any, args: Any, out: Tensor) -> Tensor:
        gathered: Tensor = _Gather.apply(out, TOKENS, False, group)
        return gathered

    transformer.rope.register_forward_hook(split_rotation)
    blocks[0].register_forward_pre_hook(split_latents, with_kwargs=True)
    transformer.proj_out.register_forward_hook(gather_latents)


def all_tokens(x: Tensor, group: Any) -> Tensor:
    """All tokens for this process's heads, from this process's tokens for all heads."""
    tokens: Tensor = _Exchange.apply(x, HEADS, TOKENS, group)
    return tokens


def local_tokens(x: Tensor, group: Any) -> Tensor:
    """This process's tokens for all heads, from all tokens for this process's heads."""
    tokens: Tensor = _Exchange.apply(x, TOKENS, HEADS, group)
    return tokens


def local_heads(x: Tensor, group: Any) -> Tensor:
    """This process's heads of tokens that every process holds."""
    return _local_chunk(x, HEADS, group)


def all_heads(x: Tensor, group: Any) -> Tensor:
    """All heads of tokens that every process holds, from this process's heads."""
    heads: Tensor = _Gather.apply(x, HEADS, True, group)
    return heads


def _local_chunk(x: Tensor, dim: int, group: Any) -> Tensor:
    """This process's chunk along `dim` of what every process holds."""
    return x.chunk(dist.get_world_size(group), dim)[dist.get_rank(group)]


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


class _Gather(torch.autograd.Function):
    """The chunks of all processes along `dim`; the backward pass returns the local chunk of the gradient.

    `summed`: every process continues with all chunks, as with the text's heads, so that their gradients are added up
    first. Otherwise every process computes the same loss from them, as from all latent tokens.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, summed: bool, group: Any) -> Tensor:
        ctx.settings = dim, summed, group
        return _gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        dim, summed, group = ctx.settings
        if summed:
            grad = grad.contiguous().clone()
            dist.all_reduce(grad, group=group)
        return _local_chunk(grad, dim, group), None, None, None
