"""FSDP2: each process stores its shard of every weight of the transformer, of its gradient and of its optimizer state.

torch's `fully_shard` (FSDP: Zhao et al. 2023, arXiv 2304.11277) gathers the weights of one block at a time.
A shard's gradient is the sum over all processes, as the harness expects. All processes must do the same number of
forward passes and of backward passes: `max_forward_passes`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bench.api import Shard


def shard_model(transformer: Any, blocks: Iterable[torch.nn.Module], shard: Shard | None) -> None:
    """Shard the transformer over all processes, block by block. Weights that are added later are not sharded."""
    if shard is None:
        return
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(transformer.parameters()).device.type
    # the transformer's class returns a view; nothing here writes into it
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    transformer.shard_groups = (*blocks, transformer)
    for module in transformer.shard_groups:
        fully_shard(module, mesh=mesh)
        module.set_gradient_divide_factor(1.0)  # a sum; torch's default is a mean
        module.set_force_sum_reduction_for_comms(True)  # otherwise NCCL scales by the factor, which gloo cannot
    transformer.shard = shard


def is_sharded(transformer: Any) -> bool:
    return getattr(transformer, "shard", None) is not None


def keep_gathered(transformer: Any) -> None:
    """Set whether the next forward pass leaves its weights gathered: with "grads", until the backward pass.

    Never without a backward pass: gathered weights would not show later changes of the shards.
    """
    if is_sharded(transformer):
        keep = transformer.shard == "grads" and torch.is_grad_enabled()
        transformer.set_reshard_after_forward(not keep)


def release(transformer: Any) -> None:
    """Free gathered weights, so that the next pass gathers the current shards."""
    if is_sharded(transformer):
        for module in transformer.shard_groups:
            module.reshard()


def max_forward_passes(transformer: Any, passes: int) -> int:
    """Forward passes that every process must do: the maximum of `passes` over the processes."""
    if not is_sharded(transformer):
        return passes
    import torch.distributed as dist

    maximum = torch.tensor(passes)
    dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return int(maximum)


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one, on every process; any other tensor unchanged.

    `bench.algorithm.gradients` has the same function: backbones import `bench.api` and `bench.flow` only.
    """
    gather = getattr(tensor, "full_tensor", None)
    full: Tensor = tensor if gather is None else gather()
    return full


def stored(tensor: Tensor) -> Tensor:
    """A full copy on the CPU. Of a sharded tensor on process 0; on other processes a tensor without data (meta)."""
    if not hasattr(tensor, "full_tensor"):
        return tensor.detach().to("cpu", copy=True)
    import torch.distributed as dist

    full = full_tensor(tensor.detach())
    return full.cpu() if dist.get_rank() == 0 else torch.empty_like(full, device="meta")


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """This process's shard of `whole`, sharded as `like` is; `whole` itself if `like` is not sharded."""
    if not hasattr(like, "full_tensor"):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    converted = whole.to(like.device, like.dtype)
    return distribute_tensor(converted, like.device_mesh, like.placements, src_data_rank=None)


def shard_like(shard: Tensor, like: Tensor) -> Tensor:
    """A tensor sharded as `like` is, of which this process holds `shard`; `shard` itself if `like` is not sharded."""
    if not hasattr(like, "full_tensor"):
        return shard
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    shard = shard.to(like.device)
    return DTensor.from_local(shard, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def local(tensor: Tensor) -> Tensor:
    """This process's shard as a plain tensor that shares its memory; any other tensor, detached."""
    to_local = getattr(tensor, "to_local", None)
    shard: Tensor = tensor.detach() if to_local is None else to_local().detach()
    return shard
