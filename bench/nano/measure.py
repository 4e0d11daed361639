"""`bench nano measure`: what the nano checkpoints can do, on clips the base model generates for held-out captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench import config, plugins
from bench.api import Backbone
from bench.nano import gold, world
from bench.rng import stream
from bench.sample import heldout

VIDEOS = 8
"""Generated clips per held-out caption."""
GAP = 0.5
"""Pairs count when their gold scores differ by at least this many standard deviations."""
SCORERS = (
    ("videoalign", {"checkpoint": "nano/videoreward"}, {"VQ": "gold_VQ", "MQ": "gold_MQ", "TA": "gold_TA"}),
    ("clipscore", {"checkpoint": "nano/clip"}, {"clipscore": "gold_TA"}),
    ("pickscore", {"checkpoint": "nano/pickscore"}, {"pickscore": "gold_overall"}),
)


def pair_accuracy(score: Tensor, truth: Tensor) -> tuple[float, int]:
    """Share of pairs that `score` [b] orders as `truth` [b] does, and how many pairs count.

    Those count that differ by `GAP` std.
    """
    i, j = torch.triu_indices(len(score), len(score), 1)
    gap = truth[i] - truth[j]
    clear = gap.abs() >= GAP * truth.std()
    right = (score[i] - score[j]) * gap > 0
    return float(right[clear].float().mean()), int(clear.sum())


def base_clips(backbone: Backbone, prompts: list[str], seed: int) -> tuple[Tensor, list[str]]:
    """Clips [b, 3, f, h, w] of the untrained policy by the evaluation's ODE, and their prompts."""
    batches = heldout(
        backbone,
        backbone.encode(prompts),
        videos=VIDEOS,
        seed=seed,
        steps=20,
        shift=5.0,
        guidance=1.0,
        batch=64,
    )
    return torch.cat([batch.pixels for batch in batches]), [prompt for prompt in prompts for _ in range(VIDEOS)]


def measure(seed: int = 0, say: Callable[[str], None] = print) -> dict[str, float]:
    """Measure everything, say it line by line, and return the numbers by name."""
    backbone = plugins.backbone("hunyuanvideo15", checkpoint=config.resolve("nano"))
    backbone.reset(stream(seed, "initial_policy"))
    clips, prompts = base_clips(backbone, world.split()[1].texts(), seed)
    captions = world.parse(prompts)
    clean = world.render(captions, world.Corruption.none(len(captions)), stream(seed, "measure", "clean"))
    scorer = gold.Gold()
    base, ceiling = (scorer.score(videos, prompts, world.FPS) for videos in (clips, clean))
    trip = scorer.score(_round_trip(backbone, clean), prompts, world.FPS)
    found: dict[str, float] = {}
    for axis in scorer.metrics:
        spread = float(base[axis].std())
        found |= {
            f"{axis}_base": float(base[axis].mean()),
            f"{axis}_base_std": spread,
            f"{axis}_clean": float(ceiling[axis].mean()),
            f"{axis}_clean_above_base_in_std": float(ceiling[axis].mean() - base[axis].mean()) / spread,
            f"{axis}_vae_round_trip_cost_in_std": float(ceiling[axis].mean() - trip[axis].mean()) / spread,
        }
    correct = gold.caption_correct(gold.fit(clips), captions)
    found["caption_accuracy_colour_shape_direction"] = float(correct[:, :3].all(1).float().mean())
    found["caption_accuracy_by_chance"] = 1 / (len(world.COLOURS) * len(world.SHAPES) * len(world.DIRECTIONS))
    truth = {**base, "gold_overall": torch.stack(list(base.values())).sum(0)}
    for name, params, pairs in SCORERS:
        evaluator = plugins.evaluator(name, **{key: config.resolve(value) for key, value in params.items()})
        scores = evaluator.score(clips, prompts, world.FPS)
        for metric, against in pairs.items():
            accuracy, number = pair_accuracy(scores[metric], truth[against])
            found[f"{metric}_pair_accuracy_against_{against}"] = accuracy
            found[f"{metric}_pairs"] = number
    for key, value in found.items():
        say(f"{key:48s} {value:10.4f}")
    return found


def _round_trip(backbone: Backbone, clips: Tensor) -> Tensor:
    """Clips through the VAE and back."""
    vae = backbone.vae  # type: ignore[attr-defined]
    with torch.no_grad():
        latents = torch.cat([vae.encode(part * 2 - 1).latent_dist.mean for part in clips.split(64)])
    return backbone.decode(latents * vae.config.scaling_factor)


def write(folder: Path, seed: int = 0) -> None:
    """Measure and store `measured.json` beside the checkpoints."""
    found = measure(seed)
    report = {
        "command": "bench nano measure",
        "seed": seed,
        "measured": {key: round(v, 4) for key, v in found.items()},
    }
    (folder / "measured.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
