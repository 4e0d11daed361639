"""Held-out videos, sampled by the ODE without any code of a method; settings and helpers that rollouts share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import Backbone, Conditioning, RoundsLatents
from bench.core.budget import Budget
from bench.core.rng import normal
from bench.core.world import SINGLE_PROCESS, World
from bench.flow import euler, sigma_schedule


def rounded_latents(backbone: Backbone, x: Float[Tensor, "b ..."], first: bool = False) -> Float[Tensor, "b ..."]:
    """The latents that sampling continues with. `first`: x is the initial noise, else the result of a step.

    Log-probabilities are those of the rounded latents, so that rollout and update score the same numbers.
    """
    return backbone.round_latents(x, first) if isinstance(backbone, RoundsLatents) else x


def micro_batches(b: int, size: int) -> list[slice]:
    """Slices of at most `size` out of b samples. The suite sets the size, so it is the same on every machine."""
    return [slice(start, min(start + size, b)) for start in range(0, b, size)]


@dataclass(frozen=True)
class RolloutConfig:
    """The settings of a suite that a rollout depends on."""

    budget: Budget
    decode: Literal["predicted_x0", "final_latent"]
    group_noise: Literal["distinct", "shared"]
    seed: int
    train_last: bool = True
    """Whether the last step may train if it is noisy."""
    world: World = SINGLE_PROCESS
    """The processes over which the samples are distributed."""


@dataclass(frozen=True)
class HeldOutBatch:
    """A batch of held-out videos."""

    prompt_index: list[int]
    """Index of each video's prompt in the list of held-out prompts."""
    video: list[int]
    """Number of each video among those of its prompt."""
    pixels: Float[Tensor, "b 3 F H W"]
    """In [0, 1]."""
    counts: bool = True
    """False for a padding batch, computed so that collective calls match and then discarded."""


@dataclass(frozen=True)
class HeldOutConfig:
    """Settings of the sampling of held-out videos."""

    videos_per_prompt: int
    seed: int
    """Seed of the noise, independent of the training seed."""
    steps: int
    """Steps of the ODE."""
    shift: float
    """Shift of the sigma schedule."""
    guidance: float
    """Classifier-free guidance scale."""
    micro_batch: int
    """Videos per forward pass."""


@torch.no_grad()
def sample_held_out(
    backbone: Backbone,
    cond: Conditioning,
    config: HeldOutConfig,
    world: World = SINGLE_PROCESS,
) -> Iterator[HeldOutBatch]:
    """Videos of all prompts in their order; each process yields its batches.

    The noise depends on (seed, prompt, video) only, so it is the same for all rows and training seeds. Whole batches
    are distributed over the processes, so the shape of a forward pass does not depend on their number.
    """
    pairs = [(p, k) for p in range(len(cond)) for k in range(config.videos_per_prompt)]
    sigmas = sigma_schedule(config.steps, config.shift)
    for start, counts in world.padded_turns(range(0, len(pairs), config.micro_batch)):
        part = pairs[start : start + config.micro_batch]
        x = normal(config.seed, [("heldout", p, k) for p, k in part], backbone.latent_shape)
        x = rounded_latents(backbone, x, first=True)
        text = cond.take(p for p, _ in part)
        for i in range(config.steps):
            sigma, sigma_next = sigmas[i].expand(len(x)), sigmas[i + 1].expand(len(x))
            v = backbone.velocity(x, sigma, text, config.guidance)
            x = rounded_latents(backbone, euler(x, v, sigma, sigma_next))
        yield HeldOutBatch([p for p, _ in part], [k for _, k in part], backbone.decode(x), counts)
