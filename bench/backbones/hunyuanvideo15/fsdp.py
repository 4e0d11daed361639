"""FSDP2: each process keeps its part of every weight of the transformer, of its gradient and of its optimizer state.

torch's `fully_shard` (its predecessor: Zhao et al. 2023, arXiv 2304.11277) gathers the weights of one joint block at a
time. The gradient that it leaves in a part is the sum over all processes, as the harness wants it. All processes must
do the same number of forward passes, and of backward passes: `forwards` says how many.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor

Shard = Literal["full", "grads"]


def shard_model(transformer: Any, shard: Shard | None) -> None:
    """Spread the transformer over all processes, block by block; what is added to it later stays whole on each."""
    if shard is None:
        return
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(transformer.parameters()).device.type
    # the class returns a view; nothing here writes into it
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for part in (*transformer.transformer_blocks, transformer):
        fully_shard(part, mesh=mesh)
        part.set_gradient_divide_factor(1.0)  # a sum, where torch averages
        part.set_force_sum_reduction_for_comms(True)  # else NCCL scales by the factor, which gloo cannot
    transformer.shard = shard


def is_sharded(transformer: Any) -> bool:
    return getattr(transformer, "shard", None) is not None


def keep_gathered(transformer: Any) -> None:
    """Whether the next forward pass leaves its weights gathered: "grads" does, until the backward pass.

    Never without a backward pass to come: later changes of the parts would not reach them.
    """
    if is_sharded(transformer):
        kept = transformer.shard == "grads" and torch.is_grad_enabled()
        transformer.set_reshard_after_forward(not kept)


def release(transformer: Any) -> None:
    """Drop gathered weights, so that the next pass gathers the parts as they are now."""
    if is_sharded(transformer):
        for part in (*transformer.transformer_blocks, transformer):
            part.reshard()


def forwards(transformer: Any, wanted: int) -> int:
    """Forward passes that every process has to do: the largest number that one wants."""
    if not is_sharded(transformer):
        return wanted
    import torch.distributed as dist

    most = torch.tensor(wanted)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a spread tensor, on every process; any other tensor as it is."""
    gather = getattr(tensor, "full_tensor", None)
    whole: Tensor = tensor if gather is None else gather()
    return whole


def stored(tensor: Tensor) -> Tensor:
    """A copy of the whole tensor; of a spread one on process 0 only and on the CPU, elsewhere without data (meta)."""
    if not hasattr(tensor, "full_tensor"):
        return tensor.detach().clone()
    import torch.distributed as dist

    whole = full_tensor(tensor.detach())
    return whole.cpu() if dist.get_rank() == 0 else torch.empty_like(whole, device="meta")


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of `whole`, spread as `like` is; `whole` itself where that is not spread."""
    if not hasattr(like, "full_tensor"):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    there = whole.to(like.device, like.dtype)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)


def shard_like(mine: Tensor, like: Tensor) -> Tensor:
    """A tensor spread as `like` is, of which this process holds `mine`; `mine` itself where that is not spread."""
    if not hasattr(like, "full_tensor"):
        return mine
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    here = mine.to(like.device)
    return DTensor.from_local(here, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def local(tensor: Tensor) -> Tensor:
    """The numbers that this process holds, sharing their memory."""
    mine = getattr(tensor, "to_local", None)
    held: Tensor = tensor.detach() if mine is None else mine().detach()
    return held
