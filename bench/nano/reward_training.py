"""What the recipes of the three nano reward models share: options, data, the training loop, losses and measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core.rng import stream
from bench.nano import world
from bench.nano.recipe import RecipeConfig, Timer, learning_rate, num_workers, optimizer_step
from bench.nano.scored_clips import ClipBatches, ScoredClips, load_all
from bench.nano.sources import Source, describe

GAP = 0.5
"""Pairs count when their gold scores differ by at least this many standard deviations."""

Loss = Callable[[ScoredClips, torch.Generator], tuple[Tensor, dict[str, Tensor]]]
"""(batch, rng) to the loss to minimise and the values to print."""


@dataclass(frozen=True, kw_only=True)
class RewardRecipe(RecipeConfig):
    """Options of the recipe of a reward model."""

    source: Source
    """Source of the training clips."""
    eval_source: Source
    """Source of the held-out clips on which the model is measured."""
    pool: int
    """Number of training clips."""
    tests: int
    """Number of held-out clips."""
    init: Path | None = None
    """Folder of a saved model to start from; None: random weights."""

    def arguments(self) -> dict[str, Any]:
        """The options as `report.json` lists them."""
        names = ("steps", "seed", "batch", "lr", "pool", "tests")
        arguments = {"source": describe(self.source), **{name: getattr(self, name) for name in names}}
        return arguments if self.init is None else {**arguments, "init": self.init.name}


def clip_pools(config: RewardRecipe) -> tuple[ScoredClips, ScoredClips]:
    """Clips of training captions, and clips of held-out captions."""
    training, held_out = world.split()
    pools = (
        ClipBatches(config.source, training, config.pool, (config.seed, "rewards", "clips")),
        ClipBatches(config.eval_source, held_out, config.tests, (config.seed, "rewards", "exam")),
    )
    first, second = (load_all(batches, num_workers(config.device)) for batches in pools)
    return first, second


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    clips: ScoredClips,
    config: RewardRecipe,
    progress: Timer,
) -> None:
    """Minimise `loss` on mirrored and reversed clips of the pool; `progress.name` names the random streams."""
    model.train()
    for step in range(config.steps):
        rng = stream(config.seed, progress.name, step)
        batch = clips[torch.randint(len(clips), (config.batch,), generator=rng)]
        mirror, backwards = torch.rand(2, config.batch, generator=rng) < 0.5
        value, terms = loss(batch.flipped(mirror, backwards), rng)
        optimizer_step(optimizer, value, model.parameters(), learning_rate(config, step))
        progress.line(step, **terms)
    model.eval()


def preference_loss(scores: Float[Tensor, "n"], truth: Float[Tensor, "n"], temperature: float) -> Tensor:
    """Bradley-Terry loss over all pairs; a preference is drawn with sigmoid(gold difference / temperature)."""
    n = len(scores)
    i, j = torch.triu_indices(n, n, 1)
    wanted = torch.sigmoid((truth[i] - truth[j]) / temperature)
    return F.binary_cross_entropy_with_logits(scores[i] - scores[j], wanted)


class PairAccuracy(NamedTuple):
    """How well scores order pairs of clips."""

    share: float
    """Share of the pairs in the order of the gold scores, in [0, 1]."""
    pairs: int
    """Number of pairs that count."""


def pair_accuracy(scores: Float[Tensor, "n"], truth: Float[Tensor, "n"]) -> PairAccuracy:
    """Accuracy over all pairs whose gold scores differ by at least `GAP` standard deviations."""
    n = len(scores)
    i, j = torch.triu_indices(n, n, 1)
    gap = truth[i] - truth[j]
    clear = gap.abs() >= GAP * truth.std()
    correct = ((scores[i] - scores[j]) * gap > 0)[clear]
    return PairAccuracy(correct.double().mean().item(), len(correct))
