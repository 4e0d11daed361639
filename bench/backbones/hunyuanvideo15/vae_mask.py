"""A batched, vectorised causal mask for the attention blocks of diffusers' `AutoencoderKLHunyuanVideo15`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKLHunyuanVideo15


def causal_mask(
    n_frame: int, n_hw: int, dtype: torch.dtype, device: torch.device, batch_size: int | None = None
) -> Tensor:
    """[1, 1, s, s] additive mask: a token sees its own frame and the earlier ones. `batch_size` broadcasts."""
    frame = torch.arange(n_frame * n_hw, device=device) // n_hw
    mask = torch.zeros(n_frame * n_hw, n_frame * n_hw, dtype=dtype, device=device)
    return mask.masked_fill_(frame[None] > frame[:, None], float("-inf"))[None, None]


def allow_batches(vae: AutoencoderKLHunyuanVideo15) -> AutoencoderKLHunyuanVideo15:
    """Let `vae` encode and decode several videos in one call.

    diffusers 0.42 builds a three-dimensional mask that scaled_dot_product_attention refuses for more than one video,
    and fills it in a Python loop over the tokens; slicing one video at a time costs five times the training time at
    nano's size.
    """
    for module in vae.modules():
        if type(module).__name__ == "HunyuanVideo15AttnBlock":
            module.prepare_causal_attention_mask = causal_mask
    return vae
