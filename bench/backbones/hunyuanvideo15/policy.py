"""Which weights of the transformer train: the layers of a LoRA, and the weights that full training leaves out.

Nothing reads the last block's text output, so the layers that compute only this output (`gradient_free_layers`) get no
gradient. Full training leaves these weights out. A LoRA has matrices there, so that an adapter has the same layers in
every block: those of `to_add_out` and `ff_context` have the gradient None, those of `add_q_proj` zeros.
"""

from __future__ import annotations

import re
from typing import Any

import torch

BLOCKS = "transformer_blocks"
"""The transformer's list of joint blocks."""
_ATTENTION = r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_FEED_FORWARD = r"(ff|ff_context)\.net\.(0\.proj|2)"
LORA_TARGETS = {"attention": _ATTENTION, "attention+ff": f"({_ATTENTION}|{_FEED_FORWARD})"}
"""Patterns of the joint blocks' layers in both streams. Bare names such as `to_q` would match the text refiner too."""
UNTRAINED = ("image_embedder.", "context_embedder_2.")
"""Weights that full training leaves out: streams for image features and glyphs, empty for prompts without quotes."""


def gradient_free_layers(transformer: Any) -> re.Pattern[str]:
    """Pattern of the last block's weights that compute only its text output, which nothing reads."""
    last = len(transformer.transformer_blocks) - 1
    return re.compile(rf"{BLOCKS}\.{last}\.(attn\.(add_q_proj|norm_added_q|to_add_out)|ff_context)\.")


def fully_trained(transformer: Any) -> dict[str, torch.nn.Parameter]:
    """The weights that full training trains: all but `UNTRAINED` and `gradient_free_layers`."""
    dead = gradient_free_layers(transformer)
    return {
        name: p
        for name, p in transformer.named_parameters()
        if not name.startswith(UNTRAINED) and not dead.match(name)
    }
