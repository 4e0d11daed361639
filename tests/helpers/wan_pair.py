"""What one process of a pair computes with the small Wan2.1 folder, and one process alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from bench.core.parallelism import Shard
from bench.core.rng import normal, stream
from bench.core.world import World
from tests.helpers.wan import BROKEN, SHAPE, SHORT, make

LORA = {"lora_rank": 2, "gradient_checkpointing": True, "text_rows": 48}
SHARDED: dict[str, tuple[dict[str, Any], Shard]] = {
    "LoRA on bfloat16": ({**LORA, "dtype": "bfloat16"}, "full"),
    "all weights": ({**LORA, "lora_rank": 0}, "grads"),
}


def velocity_and_gradients(**params: Any) -> tuple[Tensor, list[Tensor]]:
    """Guided velocity of two samples under a policy away from the base, and its gradients, whole."""
    backbone = make(**params)
    with torch.no_grad():
        for i, p in enumerate(backbone.parameters()):
            p.add_(backbone.part_of(0.05 * torch.randn(p.shape, generator=stream(1, "shake", i)), p))
    x = normal(0, [("pair", i) for i in range(2)], SHAPE)
    v = backbone.velocity(x, torch.tensor([0.9, 0.3]), backbone.encode([SHORT, BROKEN]), 5.0)
    (v * normal(0, [("weight", i) for i in range(2)], SHAPE)).sum().backward()
    grads = [p.grad for p in backbone.parameters() if p.grad is not None]
    return v.detach(), [g.full_tensor() if isinstance(g, DTensor) else g for g in grads]


def in_a_pair(world: World) -> dict[str, Any]:
    """With the context over two processes, whose partial gradients are summed, and with sharded weights."""
    v, partial = velocity_and_gradients(**LORA, parallel={"context": 2})
    results: dict[str, Any] = {"context": (v, world.all_reduce_sum(list(partial)))}
    for name, (params, shard) in SHARDED.items():
        results[name] = velocity_and_gradients(**params, shard=shard)
    return results
