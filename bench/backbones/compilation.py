"""Blocks compiled by `torch.compile`: one after the other, so that equal blocks share their code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.api import BenchError

MOST_VERSIONS = 64
"""Versions of one block's code: policy and anchors, with and without gradient, and shapes. Further ones stay eager."""


def check_compiler(device: torch.device) -> None:
    """Refuse a machine on which `torch.compile` cannot make code for the device."""
    reason = _lacking(device)
    if reason is not None:
        raise BenchError(
            f"backbone.train.execution is compiled, and {reason}: install it, or set backbone.train.execution to "
            "eager."
        )


def _lacking(device: torch.device) -> str | None:
    """What this machine lacks, in words; None if nothing."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "torch finds no Triton for this GPU"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "torch finds no C++ compiler, such as g++"
    return None


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile the forward pass of each block at its first call. Names and weights stay as they are."""
    for block in blocks:
        compiled = torch.compile(block.forward, recompile_limit=MOST_VERSIONS)  # type: ignore[call-overload]
        block.forward = partial(_with_gradient, compiled)


def _with_gradient(compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run the code of a training pass, also without gradients: other code would round otherwise.

    So a rollout computes what the update computes from it, and their ratio is exactly 1. Nothing is stored beyond the
    block: its outputs are cut off, and require a gradient for the next block as in training.
    """
    if torch.is_grad_enabled():
        return compiled(*args, **kwargs)
    with torch.enable_grad():
        outputs = compiled(*args, **kwargs)
    if isinstance(outputs, Tensor):
        return _cut_off(outputs)
    return tuple(map(_cut_off, outputs))


def _cut_off(output: Tensor) -> Tensor:
    return output.detach().requires_grad_(output.requires_grad)
