"""Where the clips of the nano reward models come from: renders, decodes of disturbed latents, and generated clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bench.api import Backbone
from bench.flow import predicted_noise, predicted_x0, sigma_schedule
from bench.nano import world

if TYPE_CHECKING:
    from diffusers import AutoencoderKLHunyuanVideo15


Source = Callable[[world.Captions, int, torch.Generator], tuple[Tensor, world.Captions]]
"""(captions to draw from, number of clips, rng) to clips [n, 3, f, h, w] in [0, 1] and the captions they are for."""


def renders(pool: world.Captions, n: int, rng: torch.Generator) -> tuple[Tensor, world.Captions]:
    """Clips of the noisy corpus with graded corruptions, a third of them for a caption with a wrong word."""
    truth = world.random_captions(pool, n, rng)
    return world.render(truth, world.random_corruption(n, rng, share=0.7), rng), world.wrong_word(truth, 0.35, rng)


class Decodes:
    """Decodes of disturbed latents: they resemble the clips of a weak generator, before there is one.

    A third of the clips are plain round trips. The others mix with a second clip's latent (all of it, or one half of
    the time), lose detail to smoothing, or get Gaussian noise, singly and together.
    """

    def __init__(self, vae: AutoencoderKLHunyuanVideo15, spread: float = 0.8):
        """`spread`: largest standard deviation of the noise, in units of the latent's own."""
        self.vae, self.spread = vae, spread

    def __call__(self, pool: world.Captions, n: int, rng: torch.Generator) -> tuple[Tensor, world.Captions]:
        clips, captions = renders(pool, n, rng)
        other, _ = renders(pool, n, rng)
        with torch.no_grad():
            first, second = self.vae.encode(torch.cat([clips, other]) * 2 - 1).latent_dist.mean.chunk(2)
            latent = self._disturb(first, second, rng)
            decoded: Tensor = self.vae.decode(latent).sample
        return ((decoded + 1) / 2).clamp(0, 1), captions

    def _disturb(self, first: Tensor, second: Tensor, rng: torch.Generator) -> Float[Tensor, "n c f h w"]:
        n, _, frames = first.shape[:3]

        def draw(share: float) -> Tensor:
            """Strengths in [0, 1], 0 for all but a `share` of the clips."""
            return ((torch.rand(n, generator=rng) < share) * torch.rand(n, generator=rng)).reshape(-1, 1, 1, 1, 1)

        latent_std = first.std()
        time = torch.arange(frames)
        start = torch.randint(0, frames, (n, 1, 1, 1, 1), generator=rng)
        late = (time.reshape(1, 1, -1, 1, 1) >= start).float()  # from `start` on, or throughout
        latent = torch.lerp(first, second, draw(0.3) * late)
        repeated = torch.randint(0, frames, (n, 1), generator=rng) == time
        repeated &= torch.rand(n, 1, generator=rng) < 0.25
        order = (time - repeated.long()).clamp(min=0)  # a latent frame comes twice, the next one never
        latent = latent[torch.arange(n)[:, None], :, order].transpose(1, 2)
        latent = torch.lerp(latent, _smooth(latent, (1, 3, 3)), draw(0.3))
        latent = torch.lerp(latent, _smooth(latent, (3, 1, 1)), draw(0.3))
        fine = torch.randn(latent.shape, generator=rng)
        coarse = _smooth(torch.randn(latent.shape, generator=rng), (1, 3, 3)) * 3
        noise = torch.where(torch.rand(n, 1, 1, 1, 1, generator=rng) < 0.5, fine, coarse)
        return latent + noise * latent_std * self.spread * draw(0.5)


def _smooth(latent: Tensor, size: tuple[int, int, int]) -> Tensor:
    pads = [p for side in reversed(size) for p in (side // 2, side // 2)]
    return F.avg_pool3d(F.pad(latent, pads, mode="replicate"), size, stride=1)


class Samples:
    """Clips of the base model: half by the plain ODE, half with fresh noise at each step, as in a rollout.

    A share of the predicted noise is replaced by fresh noise, which keeps each step's noise level (as CPS does).
    """

    def __init__(self, backbone: Backbone, shift: float = 5.0, steps: Sequence[int] = (8, 10, 20)):
        """`steps`: numbers of sampling steps, one drawn for each batch."""
        self.backbone, self.shift, self.steps = backbone, shift, tuple(steps)

    def __call__(self, pool: world.Captions, n: int, rng: torch.Generator) -> tuple[Tensor, world.Captions]:
        captions = world.random_captions(pool, n, rng)
        steps = self.steps[int(torch.randint(len(self.steps), (), generator=rng))]
        angle = (torch.rand(n, generator=rng) < 0.5) * torch.rand(n, generator=rng) * torch.pi / 2
        angle = angle.reshape(-1, 1, 1, 1, 1)
        sigmas = sigma_schedule(steps, self.shift)
        with torch.no_grad():
            cond = self.backbone.encode(captions.texts())
            x = torch.randn(n, *self.backbone.latent_shape, generator=rng)
            for i in range(steps):
                sigma = sigmas[i].expand(n)
                v = self.backbone.velocity(x, sigma, cond, 1.0)
                fresh = torch.randn(x.shape, generator=rng)
                noise = torch.cos(angle) * predicted_noise(x, v, sigma) + torch.sin(angle) * fresh
                x = (1 - sigmas[i + 1]) * predicted_x0(x, v, sigma) + sigmas[i + 1] * noise
            return self.backbone.decode(x), captions


def mixture(*sources: Source) -> Source:
    """Several sources, one drawn for each batch; a source that is passed twice is drawn twice as often."""

    def mixed(pool: world.Captions, n: int, rng: torch.Generator) -> tuple[Tensor, world.Captions]:
        return sources[int(torch.randint(len(sources), (), generator=rng))](pool, n, rng)

    mixed.__name__ = " + ".join(describe(source) for source in sources)
    return mixed


def describe(source: Source) -> str:
    """The source's name in reports."""
    return str(getattr(source, "__name__", type(source).__name__))
