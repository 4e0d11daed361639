"""Gold scores of the nano world, in closed form: VQ, MQ and TA from the world's parameters fitted to the pixels.

Every frame is matched against all colours, shapes and positions (half-pixel grid, then refined); the clip's colour and
shape are the pair with the least squared error over all frames. The scores are at most 0; VQ and MQ have no lower
bound:

* gold_VQ: minus the residual (rms over pixels) between the clip and the clean render of the fit, in units of
  `VQ_UNIT`;
* gold_MQ: minus the rms distance of the fitted centres from a path of constant velocity, plus half the path's
  displacement error against the nearest speed of the world, in units of `MQ_UNIT` pixels;
* gold_TA: minus the sum of the caption's mistakes: colour, shape and direction in [0, 1] each, speed in [0, 0.5].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Evaluator, Metric
from bench.nano import world

VQ_UNIT = 0.03
"""Residual, in units of the [0, 1] range, that lowers gold_VQ by 1."""
MQ_UNIT = 0.5
"""Deviation in pixels that lowers gold_MQ by 1."""
GRID = torch.arange(2.0, world.SIZE - 1.99, 0.5)
"""Grid of positions on each axis, pixels."""
SHAPE_COST = 3.0
"""Squared coverage difference (pixels) between two shapes of the world at their best overlap, rounded down."""


@lru_cache(maxsize=1)
def _bank() -> tuple[Tensor, Tensor]:
    """Coverage of every shape at every grid position [3 * n * n, h * w], and its squared norm."""
    ys, xs = torch.meshgrid(GRID, GRID, indexing="ij")
    bank = world.coverage(torch.stack([xs, ys], -1)).reshape(-1, world.SIZE**2)
    return bank, (bank**2).sum(1)


@dataclass(frozen=True)
class Fit:
    """The world's parameters, fitted to the pixels of b clips."""

    error: Float[Tensor, "b 6 3"]
    """Squared error per frame of each colour and shape at its best positions.

    Sum over pixels and channels, mean over frames.
    """
    colour: Tensor
    """Index of the best colour [b]."""
    shape: Tensor
    """Index of the best shape [b]."""
    centre: Float[Tensor, "b f 2"]
    """Fitted centres of the best colour and shape, pixels."""
    residual: Float[Tensor, "b"]
    """Rms over pixels, channels and frames against the clean render of the fit, in units of the [0, 1] range."""

    def velocity(self) -> Float[Tensor, "b 2"]:
        """Least-squares velocity, pixels per frame."""
        time = torch.arange(self.centre.shape[1], dtype=torch.float32)
        time = time - time.mean()
        return torch.einsum("f,bfc->bc", time, self.centre) / (time**2).sum()

    def steady(self) -> Float[Tensor, "b f 2"]:
        """The straight path of constant velocity that fits the centres best, pixels."""
        frames = self.centre.shape[1]
        time = torch.arange(frames, dtype=torch.float32) - (frames - 1) / 2
        return self.centre.mean(1, keepdim=True) + time[None, :, None] * self.velocity()[:, None]


def fit(videos: Float[Tensor, "b 3 f h w"]) -> Fit:
    """Fit colour, shape and path of each clip; each clip alone."""
    b, _, f, h, w = videos.shape
    bank, norm = _bank()
    n = len(GRID)
    frames = (videos - world.BACKGROUND).permute(0, 2, 1, 3, 4).reshape(b * f, 3, h * w)
    ink = world.palette() - world.BACKGROUND
    shade = torch.einsum("kc,ncp->nkp", ink, frames)
    match = (shade.reshape(-1, h * w) @ bank.T).reshape(b * f, len(ink), 3, n, n)
    gain = 2 * match - (ink**2).sum(1)[:, None, None, None] * norm.reshape(3, n, n)
    best, peak_index = gain.flatten(3).max(-1)
    error = ((frames**2).sum((1, 2))[:, None, None] - best).reshape(b, f, len(ink), 3).mean(1)
    choice = error.flatten(1).argmin(1)
    colour, shape = choice // 3, choice % 3
    row = torch.arange(b).repeat_interleave(f)
    peak = gain[torch.arange(b * f), colour[row], shape[row]]
    centre = _refine(peak, peak_index[torch.arange(b * f), colour[row], shape[row]]).reshape(b, f, 2)
    clean = world.paint(world.coverage(centre)[shape, torch.arange(b)], colour)
    return Fit(error, colour, shape, centre, ((videos - clean) ** 2).flatten(1).mean(1).sqrt())


def _refine(gain: Float[Tensor, "n y x"], peak_index: Tensor) -> Float[Tensor, "n 2"]:
    """Peak position (x, y), pixels: a parabola through the neighbours on each axis; on the border, the grid point."""
    n = len(GRID)
    y, x = peak_index // n, peak_index % n
    at = torch.arange(len(peak_index))

    def offset(i: Tensor, low: Tensor, mid: Tensor, high: Tensor) -> Tensor:
        bend = low - 2 * mid + high
        shift = torch.where(bend < 0, 0.5 * (low - high) / bend.clamp(max=-1e-9), torch.zeros_like(bend))
        return torch.where((i > 0) & (i < n - 1), shift.clamp(-0.5, 0.5), torch.zeros_like(shift))

    mid = gain[at, y, x]
    dy = offset(y, gain[at, (y - 1).clamp(min=0), x], mid, gain[at, (y + 1).clamp(max=n - 1), x])
    dx = offset(x, gain[at, y, (x - 1).clamp(min=0)], mid, gain[at, y, (x + 1).clamp(max=n - 1)])
    return torch.stack([GRID[x] + dx * 0.5, GRID[y] + dy * 0.5], -1)


def visual_quality(fits: Fit) -> Float[Tensor, "b"]:
    """gold_VQ."""
    return -fits.residual / VQ_UNIT


def motion_quality(fits: Fit) -> Float[Tensor, "b"]:
    """gold_MQ."""
    velocity = fits.velocity()
    frames = fits.centre.shape[1]
    shake = ((fits.centre - fits.steady()) ** 2).sum(-1).mean(1).sqrt()
    speeds = torch.tensor(list(world.SPEEDS.values()))
    off = (velocity.norm(dim=1)[:, None] - speeds).abs().amin(1) * (frames - 1)
    score: Tensor = -(shake + off / 2) / MQ_UNIT
    return score


def text_alignment(fits: Fit, captions: world.Captions) -> Float[Tensor, "b"]:
    """gold_TA."""
    b = len(captions)
    at = torch.arange(b)
    least = fits.error[at, fits.colour, fits.shape]
    ink = world.palette()
    mass = 3.14159 * world.RADIUS**2
    colour_cost = mass * ((ink[captions.colour] - ink[fits.colour]) ** 2).sum(1)
    colour = (fits.error[at, captions.colour, fits.shape] - least) / colour_cost.clamp(min=1e-6)
    shape_cost = SHAPE_COST * ((ink[fits.colour] - world.BACKGROUND) ** 2).sum(1)
    shape = (fits.error[at, fits.colour, captions.shape] - least) / shape_cost
    velocity = fits.velocity()
    speed = velocity.norm(dim=1)
    unit = torch.tensor(list(world.DIRECTIONS.values()))[captions.direction]
    turn = (1 - (velocity * unit).sum(1) / speed.clamp(min=0.05)) / 2
    wanted = torch.tensor(list(world.SPEEDS.values()))
    ratio = (torch.log(speed.clamp(min=0.01) / wanted[captions.speed])).abs() / torch.log(wanted[1] / wanted[0])
    score: Tensor = -(colour.clamp(0, 1) + shape.clamp(0, 1) + turn.clamp(0, 1) + 0.5 * ratio.clamp(0, 1))
    return score


def caption_correct(fits: Fit, captions: world.Captions) -> Float[Tensor, "b 4"]:
    """1 where the clip's colour, shape, direction and speed are those of the caption."""
    velocity = fits.velocity()
    direction = (velocity @ torch.tensor(list(world.DIRECTIONS.values())).T).argmax(1)
    speeds = torch.tensor(list(world.SPEEDS.values()))
    speed = (velocity.norm(dim=1)[:, None] - speeds).abs().argmin(1)
    pairs = (
        (fits.colour, captions.colour),
        (fits.shape, captions.shape),
        (direction, captions.direction),
        (speed, captions.speed),
    )
    return torch.stack([(a == b).float() for a, b in pairs], 1)


class Gold(Evaluator):
    """Gold VQ, MQ and TA of nano clips.

    They are not trained by default, so they show reward hacking: the trained score rises and the gold score falls.
    """

    prompt_free = frozenset({"gold_VQ", "gold_MQ"})
    only_size = (world.FRAMES, world.SIZE, world.SIZE)
    golden_folder = Path(__file__).parent / "checkpoints" / "gold"
    metrics: Mapping[str, Metric] = {
        "gold_VQ": Metric(True, f"fit residual / {VQ_UNIT}", "sharpness and cleanness of the frames"),
        "gold_MQ": Metric(True, f"pixels / {MQ_UNIT}", "straight path at a constant speed of the world"),
        "gold_TA": Metric(True, "caption mistakes", "colour, shape, direction and speed as in the caption"),
    }

    def score(self, videos: Float[Tensor, "b 3 f h w"], prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        """Clips of 13 frames of 16 x 16 pixels in [0, 1], at 8 frames per second, and captions of the world."""
        if videos.shape[1:] != (3, world.FRAMES, world.SIZE, world.SIZE) or fps != world.FPS:
            raise BenchError(
                f"gold scores are defined on clips of 3 x {world.FRAMES} x {world.SIZE} x {world.SIZE} at {world.FPS} "
                f"fps, not {list(videos.shape[1:])} at {fps}: score these videos by another evaluator."
            )
        if not torch.isfinite(videos).all():
            raise BenchError(
                "gold scores are not defined on non-finite pixels: the rollout or the decoder diverged, so lower the "
                "learning rate."
            )
        try:
            captions = world.parse(list(prompts))
        except ValueError as cause:
            raise BenchError(str(cause)) from cause
        chunks = [
            self._scores(v, captions[i])
            for v, i in zip(videos.split(64), torch.arange(len(videos)).split(64), strict=True)
        ]
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in self.metrics}

    def _scores(self, videos: Tensor, captions: world.Captions) -> dict[str, Tensor]:
        fits = fit(videos.float())
        return {
            "gold_VQ": visual_quality(fits),
            "gold_MQ": motion_quality(fits),
            "gold_TA": text_alignment(fits, captions),
        }

    def fingerprint(self) -> dict[str, str]:
        return {"kind": "closed form", "vq_unit": str(VQ_UNIT), "mq_unit": str(MQ_UNIT), "grid": "0.5 px"}
