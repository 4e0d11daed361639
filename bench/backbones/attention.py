"""Implementations of attention: PyTorch's choice, or a named one through diffusers' dispatch.

Shared by the backbones, whose processors call `attend`. A model's text refiner, which has a mask, keeps its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.api import BenchError

NATIVE = "native"
BACKENDS = {NATIVE: "native", "cudnn": "_native_cudnn", "flash": "flash", "flash3": "_flash_3", "sage": "sage"}
"""Value of `backbone.train.attention` to diffusers' name."""
PACKAGES = {"flash": "flash-attn", "flash3": "flash_attn_interface (FlashAttention 3)", "sage": "sageattention"}
"""Package that an implementation needs beside torch."""
WITHOUT_BACKWARD = ("_flash_3", "sage")
"""Names of diffusers whose operators have no backward pass. SageAttention's would give no gradient, and no error."""
HOPPER = 9
"""Major compute capability of the GPUs that FlashAttention 3 is written for."""


def check_attention(name: str, device: torch.device) -> None:
    """Refuse an implementation that this machine lacks: diffusers' check of packages, and a GPU of the right kind."""
    if name == NATIVE:
        return
    reason = _lacking(name, device)
    if reason is not None:
        raise BenchError(
            f"backbone.train.attention is {name}, and {reason}: install what is missing, or set "
            "backbone.train.attention to native."
        )


def _lacking(name: str, device: torch.device) -> str | None:
    """What this machine lacks, in words; None if nothing."""
    from diffusers.models import attention_dispatch as dispatch

    if device.type != "cuda" or not torch.cuda.is_available():
        return f"it needs a GPU, but the models would run on {device.type}"
    try:
        dispatch._check_attention_backend_requirements(dispatch.AttentionBackendName(BACKENDS[name]))
    except RuntimeError:
        return f"diffusers finds no usable package {PACKAGES[name]}"
    if name == "cudnn" and not torch.backends.cudnn.is_available():
        return "this torch has no cuDNN"
    if name == "flash3" and torch.cuda.get_device_capability(device)[0] != HOPPER:
        return f"it needs a Hopper GPU, and this is {torch.cuda.get_device_name(device)}"
    return None


def heads(attn: Any, x: Tensor) -> Tensor:
    """[b, tokens, d] of an attention module to [b, tokens, heads, d / heads]."""
    split: Tensor = x.unflatten(2, (attn.heads, -1))
    return split


def attend(query: Tensor, key: Tensor, value: Tensor, backend: str | None) -> Tensor:
    """Attention without a mask over [b, tokens, heads, d].

    `backend`: diffusers' name; None is PyTorch's choice. Where an implementation has no backward pass, the gradient is
    that of PyTorch's attention at the same query, key and value.
    """
    from diffusers.models import attention_dispatch as dispatch

    if backend is None:
        out: Tensor = dispatch.dispatch_attention_fn(query, key, value)
        return out
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast norms leave them in float32
    if backend in WITHOUT_BACKWARD and torch.is_grad_enabled():
        out = _BorrowedGradient.apply(query, key, value, backend)
        return out
    out = dispatch.dispatch_attention_fn(query, key, value, backend=dispatch.AttentionBackendName(backend))
    return out


class _BorrowedGradient(torch.autograd.Function):
    """Attention of one implementation, with the gradient of PyTorch's, computed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(query, key, value)
        with torch.no_grad():
            return attend(query, key, value, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            out = attend(inputs[0], inputs[1], inputs[2], BACKENDS[NATIVE])
        query, key, value = torch.autograd.grad(out, inputs, grad)
        return query, key, value, None
