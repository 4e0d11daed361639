"""The nano world: short clips of one coloured shape moving over a dark background, their captions and corruptions.

Everything is a pure function of its arguments and vectorised over clips. Positions are in pixels, x to the right and
y downwards; pixel (row i, column j) has its centre at (j + 0.5, i + 0.5).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SIZE = 16
"""Height and width of a clip, pixels."""
FRAMES = 13
FPS = 8.0
BACKGROUND = 0.08
"""Level of all three channels behind the shape, in [0, 1]."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.92, 0.16, 0.14),
    "green": (0.14, 0.80, 0.22),
    "blue": (0.20, 0.32, 0.96),
    "yellow": (0.92, 0.86, 0.14),
    "magenta": (0.86, 0.20, 0.86),
    "cyan": (0.14, 0.84, 0.90),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}
SPEEDS: dict[str, float] = {"slowly": 0.25, "quickly": 0.60}
"""Pixels per frame."""

RADIUS = 3.1
"""Radius of the circle; square and (equilateral) triangle have the same area."""
_HALF_SIDE = RADIUS * (torch.pi**0.5) / 2
_INRADIUS = RADIUS * (torch.pi / (3 * 3**0.5)) ** 0.5
MARGIN = 3.4
"""The centre of a clean clip keeps this distance from the border."""


@dataclass(frozen=True)
class Captions:
    """Attributes of a batch of clips: indices into COLOURS, SHAPES, DIRECTIONS and SPEEDS, each [b], int64."""

    colour: Tensor
    shape: Tensor
    direction: Tensor
    speed: Tensor

    def __len__(self) -> int:
        return len(self.colour)

    def __getitem__(self, index: Tensor | slice) -> Captions:
        return Captions(self.colour[index], self.shape[index], self.direction[index], self.speed[index])

    def texts(self) -> list[str]:
        """Captions such as "a red circle moving left quickly"."""
        names = (tuple(COLOURS), SHAPES, tuple(DIRECTIONS), tuple(SPEEDS))
        rows = zip(*(t.tolist() for t in (self.colour, self.shape, self.direction, self.speed)), strict=True)
        return [f"a {names[0][c]} {names[1][s]} moving {names[2][d]} {names[3][v]}" for c, s, d, v in rows]


def parse(texts: list[str]) -> Captions:
    """Captions of texts such as "a red circle moving left quickly"; a text outside the world raises ValueError."""
    rows = []
    for text in texts:
        words = text.split()
        try:
            if len(words) != 6 or (words[0], words[3]) != ("a", "moving"):
                raise ValueError("wrong form")
            colour, shape = tuple(COLOURS).index(words[1]), SHAPES.index(words[2])
            rows.append((colour, shape, tuple(DIRECTIONS).index(words[4]), tuple(SPEEDS).index(words[5])))
        except ValueError as cause:
            raise ValueError(
                f"prompt {text!r} is not a caption of the nano world: write it as 'a <colour> <shape> moving "
                f"<direction> <speed>' with {', '.join(COLOURS)}; {', '.join(SHAPES)}; {', '.join(DIRECTIONS)}; "
                f"{', '.join(SPEEDS)}."
            ) from cause
    return Captions(*torch.tensor(rows, dtype=torch.long).reshape(-1, 4).unbind(1))


def all_captions() -> Captions:
    """The 144 captions of the world, in a fixed order."""
    grid = itertools.product(range(len(COLOURS)), range(len(SHAPES)), range(len(DIRECTIONS)), range(len(SPEEDS)))
    return Captions(*torch.tensor(list(grid)).unbind(1))


def split() -> tuple[Captions, Captions]:
    """Training captions (108) and held-out captions (36), disjoint; every attribute is equally frequent in both."""
    captions = all_captions()
    held_out = (captions.colour + captions.shape + captions.direction + 2 * captions.speed) % 4 == 0
    return captions[~held_out], captions[held_out]


@dataclass(frozen=True)
class Corruption:
    """Strengths of the corruptions of a batch of clips; each tensor is [b] and 0 means none."""

    blur: Tensor
    """Standard deviation of a Gaussian blur, pixels."""
    grain: Tensor
    """Standard deviation of coarse noise (cells of 2 x 2 pixels and 4 frames), in units of the [0, 1] range."""
    jitter: Tensor
    """Standard deviation of the centre's displacement in each frame, pixels."""
    warp: Tensor
    """Change of speed: time runs as t ** exp(warp)."""

    @classmethod
    def none(cls, b: int) -> Corruption:
        """No corruption, for b clips."""
        return cls(*(torch.zeros(b) for _ in range(4)))


def signed_distance(dx: Tensor, dy: Tensor) -> Float[Tensor, "3 ..."]:
    """Signed distance (negative inside, pixels) of offsets from the centre to the edge of each of SHAPES."""
    circle = torch.sqrt(dx**2 + dy**2) - RADIUS
    square = torch.maximum(dx.abs(), dy.abs()) - _HALF_SIDE
    slope = 3**0.5 / 2
    triangle = torch.maximum(dy, torch.maximum(slope * dx - dy / 2, -slope * dx - dy / 2)) - _INRADIUS
    return torch.stack([circle, square, triangle])


def coverage(centre: Float[Tensor, "... 2"]) -> Float[Tensor, "3 ... h w"]:
    """Share of each pixel that each of SHAPES covers when centred at `centre` (linear ramp of a pixel at the edge)."""
    axis = torch.arange(SIZE, dtype=centre.dtype) + 0.5
    dx = axis[None, :] - centre[..., 0, None, None]
    dy = axis[:, None] - centre[..., 1, None, None]
    return (0.5 - signed_distance(dx.expand(*dx.shape[:-2], SIZE, SIZE), dy.expand(*dy.shape[:-2], SIZE, SIZE))).clamp(
        0, 1
    )


def palette() -> Float[Tensor, "6 3"]:
    """RGB of COLOURS, in [0, 1]."""
    return torch.tensor(list(COLOURS.values()))


def paint(cover: Float[Tensor, "b f h w"], colour: Tensor) -> Float[Tensor, "b 3 f h w"]:
    """Clips in [0, 1] of a coverage painted in the palette's colour [b] over the dark background."""
    ink = palette()[colour][:, :, None, None, None] - BACKGROUND
    return BACKGROUND + ink * cover[:, None]


def paths(captions: Captions, corruption: Corruption, rng: torch.Generator) -> Float[Tensor, "b f 2"]:
    """Centres per frame: a random start from which the clean path stays inside, then jitter and change of speed."""
    b = len(captions)
    unit = torch.tensor(list(DIRECTIONS.values()))[captions.direction]
    travel = unit * torch.tensor(list(SPEEDS.values()))[captions.speed][:, None] * (FRAMES - 1)
    low = MARGIN + (-travel).clamp(min=0)
    high = SIZE - MARGIN - travel.clamp(min=0)
    start = low + (high - low) * torch.rand(b, 2, generator=rng)
    time = torch.linspace(0, 1, FRAMES)[None] ** torch.exp(corruption.warp)[:, None]
    shake = torch.randn(b, FRAMES, 2, generator=rng) * corruption.jitter[:, None, None]
    return (start[:, None] + time[..., None] * travel[:, None] + shake).clamp(2.0, SIZE - 2.0)


def render(captions: Captions, corruption: Corruption, rng: torch.Generator) -> Float[Tensor, "b 3 f h w"]:
    """Clips with pixels in [0, 1]. All randomness (start, jitter, grain) comes from `rng`."""
    b = len(captions)
    cover = coverage(paths(captions, corruption, rng))[captions.shape, torch.arange(b)]
    offset = (torch.arange(SIZE)[:, None] - torch.arange(SIZE)[None]).float()
    kernel = torch.exp(-(offset**2) / (2 * corruption.blur.clamp(min=1e-3)[:, None, None] ** 2))
    kernel = kernel / kernel.sum(-1, keepdim=True)
    cover = torch.einsum("bij,bfjk,blk->bfil", kernel, cover, kernel)
    cells = torch.randn(b, 3, 1 + (FRAMES - 1) // 4, SIZE // 2, SIZE // 2, generator=rng)
    grain = cells.repeat_interleave(4, 2)[:, :, 3:].repeat_interleave(2, 3).repeat_interleave(2, 4)
    return (paint(cover, captions.colour) + grain * corruption.grain[:, None, None, None, None]).clamp(0, 1)


def random_captions(pool: Captions, b: int, rng: torch.Generator) -> Captions:
    """b captions drawn from `pool` with replacement."""
    return pool[torch.randint(len(pool), (b,), generator=rng)]


def random_corruption(b: int, rng: torch.Generator, share: float = 0.4) -> Corruption:
    """Corruptions of the noisy corpus: of quality (blur or grain) and of motion (jitter or speed).

    Each of the two changes a `share` of the clips.
    """

    def strengths() -> Tensor:
        return (torch.rand(b, generator=rng) < share).float() * (0.3 + 0.7 * torch.rand(b, generator=rng))

    quality, motion = strengths(), strengths()
    blurred, shaken = torch.rand(b, generator=rng) < 0.5, torch.rand(b, generator=rng) < 0.5
    sign = torch.where(torch.rand(b, generator=rng) < 0.5, -1.0, 1.0)
    return Corruption(
        blur=quality * blurred * 1.6,
        grain=quality * ~blurred * 0.12,
        jitter=motion * shaken * 1.2,
        warp=motion * ~shaken * sign,
    )


def wrong_word(captions: Captions, share: float, rng: torch.Generator) -> Captions:
    """The captions with, in a `share` of them, one attribute replaced by another value of the same attribute."""
    b = len(captions)
    changed = torch.rand(b, generator=rng) < share
    attribute = torch.randint(4, (b,), generator=rng)
    columns = []
    for i, (column, n) in enumerate(
        zip(
            (captions.colour, captions.shape, captions.direction, captions.speed),
            (len(COLOURS), len(SHAPES), len(DIRECTIONS), len(SPEEDS)),
            strict=True,
        )
    ):
        shift = torch.randint(1, n, (b,), generator=rng)
        columns.append(torch.where(changed & (attribute == i), (column + shift) % n, column))
    return Captions(*columns)


def corpus(
    b: int, rng: torch.Generator, pool: Captions | None = None, wrong: float = 0.25
) -> tuple[Tensor, list[str]]:
    """A batch of the noisy pre-training corpus: clips [b, 3, f, h, w] and their captions (some with a wrong word)."""
    truth = random_captions(pool if pool is not None else split()[0], b, rng)
    clips = render(truth, random_corruption(b, rng), rng)
    return clips, wrong_word(truth, wrong, rng).texts()
