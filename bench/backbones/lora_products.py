"""Matrix products of a LoRA in the type of the base, with weights, gradients and optimizer states in float32."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class RoundedLinear(nn.Linear):
    """A linear layer without a bias whose weights are rounded to the type of its input for each product."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs] in the type of the input."""
        return F.linear(input, self.weight.to(input.dtype))


def use_input_dtype(transformer: Any, adapter: str) -> None:
    """Compute the products of this adapter in the type of the layers' inputs. Its weights stay the same tensors."""
    from peft.tuners.lora import LoraLayer

    for layer in transformer.modules():
        if isinstance(layer, LoraLayer) and adapter in layer.lora_A:
            layer.cast_input_dtype_enabled = False  # peft would cast the input to the weights' type
            for matrices in (layer.lora_A, layer.lora_B):
                matrices[adapter] = _rounded(matrices[adapter])


def _rounded(linear: nn.Linear) -> RoundedLinear:
    rounded = RoundedLinear(linear.in_features, linear.out_features, bias=False, device="meta")
    rounded.weight = linear.weight
    return rounded
