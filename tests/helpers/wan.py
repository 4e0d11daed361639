"""The small Wan2.1 folder of the fixtures: written by the libraries of its time, with the keys of the releases."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.api import Backbone
from bench.backbones.wan21 import Wan21
from bench.core.rng import normal, stream
from bench.flow import sigma_schedule
from tests.helpers.paths import FIXTURES_ROOT

FOLDER = FIXTURES_ROOT / "wan21"
REFERENCE = FIXTURES_ROOT / "wan21_reference.safetensors"
SIZE = (9, 32, 48)
SHAPE = (16, 3, 4, 6)
SHORT = "a red circle moving left quickly"
BROKEN = "two  dogs <b>\n&amp;amp; a cat \u00e2\u20ac\u201d run on the grass \ufb01rst"
"""Broken UTF-8, an HTML entity twice escaped, white space, and a ligature."""
NEGATIVE = "静止\uff0cblurred , worst quality"


def make(folder: Path = FOLDER, **params: Any) -> Wan21:
    backbone = Wan21(folder, **{"size": SIZE, "device": "cpu", **params})
    backbone.reset(stream(0, "initial_policy"))
    return backbone


def reference() -> dict[str, Tensor]:
    """What the pipeline of 2025 made of the folder: text states, latents after 4 steps, pixels."""
    return load_file(REFERENCE)


@torch.no_grad()
def sampled(backbone: Backbone, prompt: str, x: Tensor, steps: int = 4, guidance: float = 5.0) -> Tensor:
    """Latents after Euler steps at shift 5."""
    cond, sigmas = backbone.encode([prompt]), sigma_schedule(steps, 5.0)
    for now, after in itertools.pairwise(sigmas):
        x = x + (after - now) * backbone.velocity(x, now[None], cond, guidance)
    return x


def latents(b: int) -> tuple[Tensor, Tensor]:
    return normal(0, [("wan", i) for i in range(b)], SHAPE), torch.linspace(0.9, 0.2, b)


def velocity(backbone: Wan21, prompts: list[str], guidance: float = 1.0, **more: Any) -> Tensor:
    x, sigma = latents(len(prompts))
    return backbone.velocity(x, sigma, backbone.encode(prompts), guidance, **more)


def shake(backbone: Wan21, size: float = 0.05) -> None:
    """A policy away from the base."""
    with torch.no_grad():
        for i, p in enumerate(backbone.parameters()):
            p.add_(size * torch.randn(p.shape, generator=stream(1, "shake", i)))
