"""What one process of a context-parallel pair computes on a random tiny transformer, and one process alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.api import BenchError
from bench.backbones.hunyuanvideo15.context_parallel import share_context
from bench.backbones.hunyuanvideo15.transformer import drop_masks, velocity
from bench.core.world import World
from tests.helpers import pair

SHAPE = (4, 2, 4, 4)
LENGTHS = (5, 5, 3)
"""Text tokens of each sample: odd numbers, which two processes cannot share evenly."""


def tiny() -> Any:
    """Random weights, 2 heads of 8, 2 joint blocks; the same on every process."""
    from diffusers import HunyuanVideo15Transformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HunyuanVideo15Transformer3DModel(
            **{"in_channels": 9, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8},
            **{"num_layers": 2, "num_refiner_layers": 1, "mlp_ratio": 2.0, "text_embed_dim": 6},
            **{"text_embed_2_dim": 6, "image_embed_dim": 4, "rope_axes_dim": (2, 2, 4)},
            **{"patch_size": 1, "patch_size_t": 1, "target_size": 64},
        )
    drop_masks(model)
    return model


def forward_and_backward(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Velocity of three samples, and the gradients of all weights for a loss that weighs every element."""
    rng, device = torch.Generator().manual_seed(1), model.device
    x, weight = (torch.randn(len(LENGTHS), *SHAPE, generator=rng).to(device) for _ in range(2))
    text = [torch.randn(length, 6, generator=rng).to(device) for length in LENGTHS]
    glyph = [torch.zeros(0, 6, device=device) for _ in LENGTHS]
    v = velocity(model, x, torch.tensor([0.9, 0.5, 0.1], device=device), text, glyph)
    (v * weight).sum().backward()
    return v.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def in_a_pair(world: World, device: str = "cpu") -> dict[str, Any]:
    """The same with the context over two processes: gradients are partial, so they are summed."""
    model = tiny().to(device)
    share_context(model, {"context": 2}, SHAPE)
    v, partial = forward_and_backward(model)
    summed = world.all_reduce_sum(list(partial.values()))
    refused = []
    for degree, shape in ((2, (4, 1, 3, 3)), (4, SHAPE)):
        try:
            share_context(tiny(), {"context": degree}, shape)
        except BenchError as error:
            refused.append(str(error))
    return {
        "v": v,
        "grads": dict(zip(partial, summed, strict=True)),
        "partial": partial,
        "refused": refused,
        "size": dist.get_world_size(),
    }


if __name__ == "__main__":  # print the differences: python -m tests.helpers.context
    import tempfile

    torch.set_num_threads(1)
    want, grads = forward_and_backward(tiny())
    with tempfile.TemporaryDirectory() as folder:
        both = pair.run_in(2, Path(folder), in_a_pair, start=sys.argv[1] if sys.argv[1:] else "spawn")
    print("same on both:", torch.equal(both[0]["v"], both[1]["v"]))
    print("velocity:", float((both[0]["v"] - want).abs().max() / want.abs().max()))
    assert grads.keys() == both[0]["grads"].keys()
    top = max(float(g.abs().max()) for g in grads.values())
    print("gradients:", max(float((both[0]["grads"][k] - g).abs().max()) for k, g in grads.items()) / top, "of", top)
    print("partial is not whole:", max(float((both[0]["partial"][k] - g).abs().max()) for k, g in grads.items()) / top)
    print(both[0]["refused"])
