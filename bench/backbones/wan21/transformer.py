"""The velocity of `WanTransformer3DModel`, with the text padded to a fixed number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bench.backbones import fsdp
from bench.flow import TIMESTEPS


def padded(text: Sequence[Tensor], rows: int) -> Tensor:
    """[b, rows, d]: the states of each prompt [tokens, d], then zeros.

    The model has no mask in cross-attention and attends to the zeros, as in its training: fewer of them give another
    velocity.
    """
    out = text[0].new_zeros(len(text), rows, text[0].shape[1])
    for row, states in zip(out, text, strict=True):
        row[: len(states)] = states
    return out


def velocity(transformer: Any, x: Tensor, sigma: Tensor, text: Sequence[Tensor], rows: int) -> Tensor:
    """Velocity `noise - x0` [b, c, f, h, w] in float32 for x at noise levels sigma [b].

    `text` holds one tensor [tokens, d] per sample. The timestep stays in float32 whatever the dtype of the base: the
    model's time embedder is in float32, and bfloat16 would round 937 to 936.
    """
    dtype = transformer.patch_embedding.weight.dtype  # `transformer.dtype` and LoRA weights may differ
    fsdp.keep_gathered(transformer)
    predicted: Tensor = transformer(
        hidden_states=x.to(dtype),
        timestep=TIMESTEPS * sigma.float(),
        encoder_hidden_states=padded(text, rows).to(dtype),
        return_dict=False,
    )[0]
    return predicted.float()
