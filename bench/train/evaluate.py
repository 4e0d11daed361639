"""Evaluators over held-out videos: one row per video and metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd
import torch

from bench.algorithm.sampling import HeldOutBatch, sample_held_out
from bench.api import Backbone, BenchError, DivergedError, Evaluator
from bench.core.world import SINGLE_PROCESS, World
from bench.store.scores import SCORE_COLUMNS
from bench.suite.schema import Experiment

Row = tuple[int, str, int, str, str, float]
"""One score: prompt index, prompt, video, evaluator, metric, value."""


class HeldOutScores(NamedTuple):
    """What the held-out videos gave."""

    scores: pd.DataFrame
    """Columns `SCORE_COLUMNS`."""
    prompts_cut: dict[str, float]
    """Share of the prompts that an evaluator cut, in [0, 1], for those whose details say it."""
    token_limit: dict[str, int]
    """Where it cuts, for those that have a limit."""

    def lengths(self) -> dict[str, dict[str, Any]]:
        """What a record keeps of the prompts' lengths; nothing where no evaluator says anything."""
        kept: dict[str, dict[str, Any]] = {"prompts_cut": {**self.prompts_cut}, "token_limit": {**self.token_limit}}
        return {name: values for name, values in kept.items() if values}


@dataclass
class PromptCuts:
    """Which prompts an evaluator cut, from its details (columns video, prompt_truncated and, if any, token_limit)."""

    cut: dict[int, bool] = field(default_factory=dict)
    """Prompt index to whether it was cut."""
    limit: int | None = None

    def see(self, details: pd.DataFrame, prompt_index: Sequence[int]) -> None:
        """Take in the details of one batch, whose videos have these prompts."""
        if not {"video", "prompt_truncated"} <= set(details.columns):
            return
        for video, cut in details.groupby("video")["prompt_truncated"].any().items():
            self.cut[prompt_index[int(str(video))]] = bool(cut)
        if "token_limit" in details.columns:
            self.limit = int(details["token_limit"].iloc[0])

    @property
    def share(self) -> float:
        """Share of the prompts that were cut."""
        return sum(self.cut.values()) / len(self.cut)

    @classmethod
    def together(cls, parts: Iterable[PromptCuts]) -> PromptCuts:
        """What several batches gave, in their order."""
        whole = cls()
        for part in parts:
            whole.cut |= part.cut
            whole.limit = whole.limit if part.limit is None else part.limit
        return whole


class ScoredBatch(NamedTuple):
    """What one batch of videos gave."""

    rows: list[Row]
    cuts: dict[str, PromptCuts]
    """By evaluator."""


def evaluate(
    backbone: Backbone,
    evaluators: Mapping[str, Evaluator],
    exp: Experiment,
    prompts: Sequence[str],
    report: Callable[[int, int], None],
    world: World = SINGLE_PROCESS,
) -> HeldOutScores:
    """Sample and score the held-out videos. `report` hears (videos done, videos in all).

    Processes share whole batches; each returns the scores of all.
    """
    spec, budget = exp.evaluation, exp.budget
    cond = backbone.encode(prompts)
    total, done = len(prompts) * spec.videos_per_prompt, 0
    own: list[ScoredBatch] = []
    batches = sample_held_out(
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
    parts = world.in_order(own)
    cuts = {name: PromptCuts.together(part.cuts[name] for part in parts) for name in spec.evaluators}
    return HeldOutScores(
        pd.DataFrame([row for part in parts for row in part.rows], columns=SCORE_COLUMNS),
        {name: seen.share for name, seen in cuts.items() if seen.cut},
        {name: seen.limit for name, seen in cuts.items() if seen.limit is not None},
    )


def _scored(
    batch: HeldOutBatch, evaluators: Mapping[str, Evaluator], prompts: Sequence[str], fps: float
) -> ScoredBatch:
    """Every metric of one batch of videos, and which of its prompts were cut."""
    texts = [prompts[p] for p in batch.prompt_index]
    found = ScoredBatch([], {name: PromptCuts() for name in evaluators})
    if not torch.isfinite(batch.pixels).all():
        worst = int((~batch.pixels.flatten(1).isfinite().all(1)).nonzero()[0])
        raise DivergedError(f"a held-out video of prompt {texts[worst]!r} is not finite: the policy diverged.")
    for name, evaluator in evaluators.items():
        scores = evaluator.score(batch.pixels, texts, fps)
        found.cuts[name].see(evaluator.details(), batch.prompt_index)
        for metric, values in scores.items():
            if values.shape != (len(texts),):
                raise BenchError(
                    f"evaluator {name}: {metric} has shape {list(values.shape)}, expected [{len(texts)}]."
                )
            if not torch.isfinite(values).all():
                worst = int((~torch.isfinite(values)).nonzero()[0])
                raise DivergedError(f"evaluator {name}: {metric} of held-out prompt {texts[worst]!r} is not finite.")
            for p, text, video, value in zip(batch.prompt_index, texts, batch.video, values.tolist(), strict=True):
                found.rows.append((p, text, video, name, metric, value))
    return found
