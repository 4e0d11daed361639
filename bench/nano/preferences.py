"""Clips with gold scores for the nano reward models: their sources, what is known of them, and preference losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from bench.api import Backbone
from bench.core.rng import stream
from bench.flow import predicted_noise, predicted_x0, sigma_schedule
from bench.nano import gold, world

if TYPE_CHECKING:
    from diffusers import AutoencoderKLHunyuanVideo15


Source = Callable[[world.Captions, int, torch.Generator], tuple[Tensor, world.Captions]]
"""(captions to draw from, number of clips, rng) to clips [n, 3, f, h, w] in [0, 1] and the captions asked for."""

AXES = ("VQ", "MQ", "TA")
WORDS = tuple(field.name for field in fields(world.Captions))
FIT = tuple(field.name for field in fields(gold.Fit))


@dataclass(frozen=True)
class ScoredClips:
    """Clips, the captions that they were made for, and the world's parameters as read from their pixels."""

    clips: UInt8[Tensor, "n 3 f h w"]
    captions: world.Captions
    found: gold.Fit

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: Tensor) -> ScoredClips:
        found = self.found
        return ScoredClips(self.clips[index], self.captions[index], gold.Fit(*(getattr(found, k)[index] for k in FIT)))

    def scores(self, captions: world.Captions | None = None) -> dict[str, Tensor]:
        """Gold VQ, MQ and TA; TA with respect to `captions`, by default the clips' own."""
        return {
            "VQ": gold.visual_quality(self.found),
            "MQ": gold.motion_quality(self.found),
            "TA": gold.text_alignment(self.found, captions or self.captions),
        }

    def seen(self) -> world.Captions:
        """The caption that fits what the clips show best."""
        velocity = self.found.velocity()
        direction = (velocity @ torch.tensor(list(world.DIRECTIONS.values())).T).argmax(1)
        ratio = torch.log(velocity.norm(dim=1).clamp(min=0.01)[:, None] / torch.tensor(list(world.SPEEDS.values())))
        return world.Captions(self.found.colour, self.found.shape, direction, ratio.abs().argmin(1))

    def turned(self, mirror: Bool[Tensor, "n"], backwards: Bool[Tensor, "n"]) -> ScoredClips:
        """Some clips mirrored left to right, some played backwards, with captions and fits to match.

        The triangle's pixels are symmetric about its vertical axis, so that both leave VQ and MQ as they are.
        """
        flip, back = mirror[:, None, None, None, None], backwards[:, None, None, None, None]
        clips = torch.where(flip, self.clips.flip(-1), self.clips)
        centre = self.found.centre
        mirrored = torch.tensor([world.SIZE, 0.0]) + centre * torch.tensor([-1.0, 1.0])
        centre = torch.where(mirror[:, None, None], mirrored, centre)
        horizontal = self.captions.direction < 2  # left, right, up, down: a partner's index differs in the last bit
        turned = backwards ^ (mirror & horizontal)
        captions = world.Captions(
            self.captions.colour, self.captions.shape, self.captions.direction ^ turned.long(), self.captions.speed
        )
        centre = torch.where(backwards[:, None, None], centre.flip(1), centre)
        found = gold.Fit(self.found.error, self.found.colour, self.found.shape, centre, self.found.residual)
        return ScoredClips(torch.where(back, clips.flip(2), clips), captions, found)


def pools(
    source: Source, exam: Source | None, n: int, tests: int, seed: int, cache: Path | None = None, workers: int = 0
) -> tuple[ScoredClips, ScoredClips]:
    """n clips of training captions, and `tests` clips of held-out ones from `exam` (by default the same source).

    `cache`: a file that keeps both from one recipe to the next; `workers`: processes that make them.
    """
    if cache is not None and cache.exists():
        return restore(cache)
    training, held = world.split()
    made = (
        judge(Parts(source, training, n, (seed, "rewards", "clips")), workers),
        judge(Parts(exam or source, held, tests, (seed, "rewards", "exam")), workers),
    )
    if cache is not None:
        torch.save([[j.clips, *vars(j.captions).values(), *vars(j.found).values()] for j in made], cache)
    return made


def restore(cache: Path) -> tuple[ScoredClips, ScoredClips]:
    """The pools that `pools` stored."""
    first, second = (
        ScoredClips(clips, world.Captions(*rest[:4]), gold.Fit(*rest[4:]))
        for clips, *rest in torch.load(cache, weights_only=True)
    )
    return first, second


class Parts(Dataset[ScoredClips]):
    """n clips of a source in parts of `size`, rounded to 256 levels, with their fits; each part has its own stream."""

    def __init__(self, source: Source, pool: world.Captions, n: int, name: tuple[int, str, str], size: int = 64):
        self.source, self.pool, self.n, self.name, self.size = source, pool, n, name, size

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def __getitem__(self, part: int) -> ScoredClips:
        seed, *names = self.name
        many = min(self.size, self.n - part * self.size)
        clips, captions = self.source(self.pool, many, stream(seed, *names, part))
        pixels = (clips.clamp(0, 1) * 255).round().to(torch.uint8)
        return ScoredClips(pixels, captions, gold.fit(pixels.float() / 255))


def judge(parts: Parts, workers: int = 0) -> ScoredClips:
    """All parts as one; the number of processes changes nothing but the time."""
    rows = []
    for part in DataLoader(parts, batch_size=None, num_workers=workers):
        rows.append(part[torch.arange(len(part))])  # a copy: a worker's tensors live in shared memory
    return join(rows)


def join(rows: list[ScoredClips]) -> ScoredClips:
    """Several batches as one."""

    words = (torch.cat([getattr(row.captions, name) for row in rows]) for name in WORDS)
    fits = (torch.cat([getattr(row.found, name) for row in rows]) for name in FIT)
    return ScoredClips(torch.cat([row.clips for row in rows]), world.Captions(*words), gold.Fit(*fits))


def choose(kind: Tensor, options: Sequence[world.Captions]) -> world.Captions:
    """Row i of option `kind[i]`."""
    at = torch.arange(len(kind))
    return world.Captions(*(torch.stack([getattr(o, name) for o in options])[kind, at] for name in WORDS))


def renders(pool: world.Captions, n: int, rng: torch.Generator) -> tuple[Tensor, world.Captions]:
    """Clips of the noisy corpus with graded corruptions, a third of them for a caption with a wrong word."""
    truth = world.random_captions(pool, n, rng)
    return world.render(truth, world.random_corruption(n, rng, share=0.7), rng), world.wrong_word(truth, 0.35, rng)


class Decodes:
    """Decodes of disturbed latents: what a weak generator makes, before there is one.

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
            made: Tensor = self.vae.decode(latent).sample
        return ((made + 1) / 2).clamp(0, 1), captions

    def _disturb(self, first: Tensor, second: Tensor, rng: torch.Generator) -> Float[Tensor, "n c f h w"]:
        n, _, frames = first.shape[:3]

        def draw(share: float) -> Tensor:
            """Strengths in [0, 1], 0 for all but a `share` of the clips."""
            return ((torch.rand(n, generator=rng) < share) * torch.rand(n, generator=rng)).reshape(-1, 1, 1, 1, 1)

        spread = first.std()
        time = torch.arange(frames)
        when = torch.randint(0, frames, (n, 1, 1, 1, 1), generator=rng)
        late = (time.reshape(1, 1, -1, 1, 1) >= when).float()  # from then on, or throughout
        latent = torch.lerp(first, second, draw(0.3) * late)
        stuck = torch.randint(0, frames, (n, 1), generator=rng) == time
        stuck &= torch.rand(n, 1, generator=rng) < 0.25
        order = (time - stuck.long()).clamp(min=0)  # a latent frame comes twice, the next one never
        latent = latent[torch.arange(n)[:, None], :, order].transpose(1, 2)
        latent = torch.lerp(latent, _smooth(latent, (1, 3, 3)), draw(0.3))
        latent = torch.lerp(latent, _smooth(latent, (3, 1, 1)), draw(0.3))
        fine = torch.randn(latent.shape, generator=rng)
        coarse = _smooth(torch.randn(latent.shape, generator=rng), (1, 3, 3)) * 3
        noise = torch.where(torch.rand(n, 1, 1, 1, 1, generator=rng) < 0.5, fine, coarse)
        return latent + noise * spread * self.spread * draw(0.5)


def _smooth(latent: Tensor, size: tuple[int, int, int]) -> Tensor:
    pads = [p for side in reversed(size) for p in (side // 2, side // 2)]
    return F.avg_pool3d(F.pad(latent, pads, mode="replicate"), size, stride=1)


class Samples:
    """Clips of the base model: half by the plain ODE, half with noise that is put back at each step, as in a rollout.

    A share of the predicted noise is replaced by fresh noise, which keeps each step's noise level (CPS's idea).
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
    """Several sources, one drawn for each batch; a source that is given twice is drawn twice as often."""

    def mixed(pool: world.Captions, n: int, rng: torch.Generator) -> tuple[Tensor, world.Captions]:
        return sources[int(torch.randint(len(sources), (), generator=rng))](pool, n, rng)

    mixed.__name__ = " + ".join(describe(source) for source in sources)
    return mixed


def describe(source: Source) -> str:
    """The source's name, for reports."""
    return str(getattr(source, "__name__", type(source).__name__))


def preference_loss(scores: Float[Tensor, "n"], truth: Float[Tensor, "n"], temperature: float) -> Tensor:
    """Bradley-Terry loss over all pairs; a preference is drawn with sigmoid(gold difference / temperature)."""
    n = len(scores)
    i, j = torch.triu_indices(n, n, 1)
    wanted = torch.sigmoid((truth[i] - truth[j]) / temperature)
    return F.binary_cross_entropy_with_logits(scores[i] - scores[j], wanted)


def pair_accuracy(scores: Float[Tensor, "n"], truth: Float[Tensor, "n"], apart: float = 0.5) -> float:
    """Share of pairs in the right order, over all pairs whose gold differs by at least `apart` standard deviations."""
    n = len(scores)
    i, j = torch.triu_indices(n, n, 1)
    gap = truth[i] - truth[j]
    far = gap.abs() >= apart * truth.std()
    return ((scores[i] - scores[j]) * gap > 0)[far].double().mean().item()
