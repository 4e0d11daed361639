"""Evaluators over held-out videos: one row per video and metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch

from bench.api import Backbone, BenchError, DivergedError, Evaluator
from bench.config import Experiment
from bench.sample import heldout
from bench.store import SCORE_COLUMNS


def evaluate(
    backbone: Backbone,
    evaluators: Mapping[str, Evaluator],
    exp: Experiment,
    prompts: Sequence[str],
    report: Callable[[int, int], None],
) -> pd.DataFrame:
    """Sample and score the held-out videos; columns `SCORE_COLUMNS`. `report` hears (videos done, videos in all)."""
    spec, budget = exp.evaluation, exp.budget
    cond = backbone.encode(prompts)
    total, done, rows = len(prompts) * spec.videos_per_prompt, 0, []
    batches = heldout(
        backbone,
        cond,
        videos=spec.videos_per_prompt,
        seed=spec.seed,
        steps=spec.steps,
        shift=budget.shift,
        guidance=budget.guidance,
        batch=budget.micro_batch,
    )
    for batch in batches:
        texts = [prompts[p] for p in batch.prompt_index]
        if not torch.isfinite(batch.pixels).all():
            worst = int((~batch.pixels.flatten(1).isfinite().all(1)).nonzero()[0])
            raise DivergedError(f"a held-out video of prompt {texts[worst]!r} is not finite: the policy diverged.")
        for name in spec.evaluators:
            scores = evaluators[name].score(batch.pixels, texts, backbone.fps)
            for metric, values in scores.items():
                if values.shape != (len(texts),):
                    raise BenchError(
                        f"evaluator {name}: {metric} has shape {list(values.shape)}, expected [{len(texts)}]."
                    )
                if not torch.isfinite(values).all():
                    worst = int((~torch.isfinite(values)).nonzero()[0])
                    raise DivergedError(
                        f"evaluator {name}: {metric} of held-out prompt {texts[worst]!r} is not finite."
                    )
                columns = (
                    batch.prompt_index,
                    texts,
                    batch.video,
                    [name] * len(texts),
                    [metric] * len(texts),
                    values.tolist(),
                )
                rows += list(zip(*columns, strict=True))
        done += len(texts)
        report(done, total)
    return pd.DataFrame(rows, columns=SCORE_COLUMNS)
