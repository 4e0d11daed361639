"""Clips with their captions and gold fits: the data of the nano reward models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.core.rng import stream
from bench.nano import gold, world
from bench.nano.sources import Source

AXES = ("VQ", "MQ", "TA")
CAPTION_FIELDS = tuple(field.name for field in fields(world.Captions))
FIT_FIELDS = tuple(field.name for field in fields(gold.Fit))


@dataclass(frozen=True)
class ScoredClips:
    """Clips, the captions that they were made for, and the world's parameters as fitted to their pixels."""

    clips: UInt8[Tensor, "n 3 f h w"]
    captions: world.Captions
    fits: gold.Fit

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: Tensor) -> ScoredClips:
        fits = gold.Fit(*(getattr(self.fits, name)[index] for name in FIT_FIELDS))
        return ScoredClips(self.clips[index], self.captions[index], fits)

    def scores(self, captions: world.Captions | None = None) -> dict[str, Float[Tensor, "n"]]:
        """Gold VQ, MQ and TA; TA with respect to `captions`, by default the clips' own."""
        return {
            "VQ": gold.visual_quality(self.fits),
            "MQ": gold.motion_quality(self.fits),
            "TA": gold.text_alignment(self.fits, captions or self.captions),
        }

    def overall(self, captions: world.Captions | None = None) -> Float[Tensor, "n"]:
        """Gold Overall: the plain sum of VQ, MQ and TA."""
        return torch.stack(list(self.scores(captions).values())).sum(0)

    def fitted_captions(self) -> world.Captions:
        """The captions that describe the clips best."""
        velocity = self.fits.velocity()
        direction = (velocity @ torch.tensor(list(world.DIRECTIONS.values())).T).argmax(1)
        ratio = torch.log(velocity.norm(dim=1).clamp(min=0.01)[:, None] / torch.tensor(list(world.SPEEDS.values())))
        return world.Captions(self.fits.colour, self.fits.shape, direction, ratio.abs().argmin(1))

    def flipped(self, mirror: Bool[Tensor, "n"], backwards: Bool[Tensor, "n"]) -> ScoredClips:
        """The clips, some mirrored left to right, some played backwards, with captions and fits to match.

        The triangle's pixels are symmetric about its vertical axis, so both leave VQ and MQ unchanged.
        """
        flip, back = mirror[:, None, None, None, None], backwards[:, None, None, None, None]
        clips = torch.where(flip, self.clips.flip(-1), self.clips)
        centre = self.fits.centre
        mirrored = torch.tensor([world.SIZE, 0.0]) + centre * torch.tensor([-1.0, 1.0])
        centre = torch.where(mirror[:, None, None], mirrored, centre)
        horizontal = self.captions.direction < 2  # left, right, up, down: opposites differ in the last bit
        reverse = backwards ^ (mirror & horizontal)
        captions = world.Captions(
            self.captions.colour, self.captions.shape, self.captions.direction ^ reverse.long(), self.captions.speed
        )
        centre = torch.where(backwards[:, None, None], centre.flip(1), centre)
        fits = gold.Fit(self.fits.error, self.fits.colour, self.fits.shape, centre, self.fits.residual)
        return ScoredClips(torch.where(back, clips.flip(2), clips), captions, fits)


class ClipBatches(Dataset[ScoredClips]):
    """n clips of a source in batches of `size`, rounded to 256 levels, with their fits.

    Each batch has its own random stream.
    """

    def __init__(self, source: Source, pool: world.Captions, n: int, name: tuple[int, str, str], size: int = 64):
        """`pool`: captions to draw from; `name`: seed and names of the random streams."""
        self.source, self.pool, self.n, self.name, self.size = source, pool, n, name, size

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def __getitem__(self, index: int) -> ScoredClips:
        seed, *names = self.name
        count = min(self.size, self.n - index * self.size)
        clips, captions = self.source(self.pool, count, stream(seed, *names, index))
        pixels = (clips.clamp(0, 1) * 255).round().to(torch.uint8)
        return ScoredClips(pixels, captions, gold.fit(pixels.float() / 255))


def load_all(batches: ClipBatches, workers: int = 0) -> ScoredClips:
    """All clips of a dataset; the number of worker processes does not change them."""
    rows = []
    for batch in DataLoader(batches, batch_size=None, num_workers=workers):
        rows.append(batch[torch.arange(len(batch))])  # a copy: a worker's tensors lie in shared memory
    captions = (torch.cat([getattr(row.captions, name) for row in rows]) for name in CAPTION_FIELDS)
    fits = (torch.cat([getattr(row.fits, name) for row in rows]) for name in FIT_FIELDS)
    return ScoredClips(torch.cat([row.clips for row in rows]), world.Captions(*captions), gold.Fit(*fits))


def select_captions(option: Tensor, options: Sequence[world.Captions]) -> world.Captions:
    """Row i of `options[option[i]]`."""
    rows = torch.arange(len(option))
    columns = (torch.stack([getattr(o, name) for o in options])[option, rows] for name in CAPTION_FIELDS)
    return world.Captions(*columns)
