"""Evaluators over held-out videos: one row per video and metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch

from bench.api import Backbone, BenchError, DivergedError, Evaluator
from bench.config import Experiment
from bench.processes import ALONE, World
from bench.sample import Batch, heldout
from bench.store import SCORE_COLUMNS

Row = tuple[int, str, int, str, str, float]
"""One score: prompt index, prompt, video, evaluator, metric, value."""


def evaluate(
    backbone: Backbone,
    evaluators: Mapping[str, Evaluator],
    exp: Experiment,
    prompts: Sequence[str],
    report: Callable[[int, int], None],
    world: World = ALONE,
) -> pd.DataFrame:
    """Sample and score the held-out videos; columns `SCORE_COLUMNS`. `report` hears (videos done, videos in all).

    Processes share whole batches; each returns the scores of all.
    """
    spec, budget = exp.evaluation, exp.budget
    cond = backbone.encode(prompts)
    total, done = len(prompts) * spec.videos_per_prompt, 0
    own: list[list[Row]] = []
    batches = heldout(
        backbone,
        cond,
        videos=spec.videos_per_prompt,
        seed=spec.seed,
        steps=spec.steps,
        shift=budget.shift,
        guidance=budget.guidance,
        batch=budget.micro_batch,
        world=world,
    )
    for batch in batches:
        with world.together():
            if batch.counts:
                own.append(_scored(batch, {name: evaluators[name] for name in spec.evaluators}, prompts, backbone.fps))
        done += len(batch.video) * world.shares
        report(min(done, total), total)
    rows = [row for part in world.in_order(own) for row in part]
    return pd.DataFrame(rows, columns=SCORE_COLUMNS)


def _scored(batch: Batch, evaluators: Mapping[str, Evaluator], prompts: Sequence[str], fps: float) -> list[Row]:
    """Every metric of one batch of videos."""
    texts, rows = [prompts[p] for p in batch.prompt_index], []
    if not torch.isfinite(batch.pixels).all():
        worst = int((~batch.pixels.flatten(1).isfinite().all(1)).nonzero()[0])
        raise DivergedError(f"a held-out video of prompt {texts[worst]!r} is not finite: the policy diverged.")
    for name, evaluator in evaluators.items():
        for metric, values in evaluator.score(batch.pixels, texts, fps).items():
            if values.shape != (len(texts),):
                raise BenchError(
                    f"evaluator {name}: {metric} has shape {list(values.shape)}, expected [{len(texts)}]."
                )
            if not torch.isfinite(values).all():
                worst = int((~torch.isfinite(values)).nonzero()[0])
                raise DivergedError(f"evaluator {name}: {metric} of held-out prompt {texts[worst]!r} is not finite.")
            for p, text, video, value in zip(batch.prompt_index, texts, batch.video, values.tolist(), strict=True):
                rows.append((p, text, video, name, metric, value))
    return rows
