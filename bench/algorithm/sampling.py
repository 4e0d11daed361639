"""Held-out videos by the plain ODE, without method code, and what this sampler shares with the rollout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import Backbone, Conditioning, RoundsLatents
from bench.core.rng import normal
from bench.core.world import SINGLE_PROCESS, World
from bench.flow import euler, sigma_schedule


def rounded_latents(backbone: Backbone, x: Float[Tensor, "b ..."], first: bool = False) -> Float[Tensor, "b ..."]:
    """Latents as the sampler hands them on: the first noise, or the result of a step.

    A log-probability is that of what this returns, so that rollout and update score the same numbers.
    """
    return backbone.round_latents(x, first) if isinstance(backbone, RoundsLatents) else x


def micro_batches(b: int, size: int) -> list[slice]:
    """Slices of at most `size` samples; the shape of a forward pass is the suite's choice, never the machine's."""
    return [slice(start, min(start + size, b)) for start in range(0, b, size)]


@dataclass(frozen=True)
class HeldOutBatch:
    """Some held-out videos: which prompt, which of its videos, and the pixels in [0, 1]."""

    prompt_index: list[int]
    video: list[int]
    pixels: Float[Tensor, "b 3 F H W"]
    counts: bool = True
    """False for a batch that another process has too: it only keeps step with the others."""


@torch.no_grad()
def sample_held_out(
    backbone: Backbone,
    cond: Conditioning,
    *,
    videos: int,
    seed: int,
    steps: int,
    shift: float,
    guidance: float,
    batch: int,
    only: Sequence[int] | None = None,
    world: World = SINGLE_PROCESS,
) -> Iterator[HeldOutBatch]:
    """`videos` per prompt, in prompt order; of the prompts with an index in `only`, by default of all.

    Noise is keyed by (seed, prompt, video) alone, so it is paired over rows and training seeds. Processes share whole
    batches, so that the shape of a forward pass does not depend on their number.
    """
    pairs = [(p, k) for p in (range(len(cond.text)) if only is None else only) for k in range(videos)]
    sigmas = sigma_schedule(steps, shift)
    for start, counts in world.turns(range(0, len(pairs), batch)):
        part = pairs[start : start + batch]
        x = normal(seed, [("heldout", p, k) for p, k in part], backbone.latent_shape)
        x = rounded_latents(backbone, x, first=True)
        text = cond.take(p for p, _ in part)
        for i in range(steps):
            sigma, sigma_next = sigmas[i].expand(len(x)), sigmas[i + 1].expand(len(x))
            x = rounded_latents(backbone, euler(x, backbone.velocity(x, sigma, text, guidance), sigma, sigma_next))
        yield HeldOutBatch([p for p, _ in part], [k for _, k in part], backbone.decode(x), counts)
