"""A frozen base in 8 bits: the linear layers of the blocks store int8 weights with one scale per row.

Weight only: a product takes the weights back into the base's dtype, so that activations, gradients and LoRA are as
before. This is our own layer and no package's, since it is a page of code, has no version to pin, computes the same on
CPU and GPU, and is a `torch.nn.Linear` to peft and a plain parameter to FSDP2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 127
"""Largest weight in int8; -128 is not used, so that the range is symmetric."""
SCALE_BYTES = 4
"""Bytes of a row's scale, in float32."""
CPU_PART = 2**18
"""Weights that a CPU takes back from int8 at a time: it makes copies in float32, which so stay in its cache. A GPU
makes none."""


def quantize_blocks(blocks: Iterable[nn.Module]) -> None:
    """Replace every linear layer of the blocks by an `Int8Linear`; one layer at a time is held twice."""
    for block in blocks:
        for module in list(block.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, Int8Linear(child))


def int8_bytes(parameters: int, rows: int, others: int, dtype_bytes: int) -> int:
    """Bytes of a block after `quantize_blocks`. `rows`: those of its linear layers, which have a bias each.

    `others`: its parameters beside linear layers. `dtype_bytes`: of a bias and of these.
    """
    return parameters - rows - others + rows * SCALE_BYTES + (rows + others) * dtype_bytes


class Int8Linear(nn.Linear):
    """A frozen linear layer with weights in int8.

    A row of `weight` [outputs, inputs] times its `scale` is the row of the layer that it replaces, rounded to a
    multiple of its largest value / 127. So a weight is off by at most 1/254 of its row's largest value. The bias stays
    as it is.
    """

    scale: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        rows = linear.weight.detach().float()
        scale = rows.abs().amax(1) / LEVELS
        scale[scale == 0] = 1.0  # a row of zeros
        self.weight = nn.Parameter((rows / scale[:, None]).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self.base_dtype = linear.weight.dtype

    def forward(self, input: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], computed with the weights in the dtype of the base."""
        product: Tensor = _Product.apply(input, self.weight, self.scale, self.bias, self.base_dtype)
        return product


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights [outputs, inputs] in `dtype`, rounded once."""
    rows = len(weight) if weight.is_cuda else max(1, CPU_PART // weight.shape[1])
    restored = torch.empty_like(weight, dtype=dtype)
    for part, factor, out in zip(weight.split(rows), scale.split(rows), restored.split(rows), strict=True):
        torch.mul(part, factor[:, None], out=out)
    return restored


class _Product(torch.autograd.Function):
    """The layer's product; the backward pass takes the weights from int8 again, so that none are kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.dtype = dtype
        return F.linear(x, dequantize(weight, scale, dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        weight, scale = ctx.saved_tensors
        return grad @ dequantize(weight, scale, ctx.dtype).to(grad.dtype), None, None, None, None
