"""Evaluators over held-out videos: one row per video and metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from bench.algorithm.sampling import HeldOutBatch, HeldOutConfig, sample_held_out
from bench.api import Backbone, Evaluator
from bench.core.errors import BenchError, DivergedError
from bench.core.progress import Phase, ProgressCallback, Step, silent
from bench.core.world import SINGLE_PROCESS, World
from bench.store.scores import SCORE_COLUMNS
from bench.store.videos import Clip, keep_clip, write_index
from bench.suite.prepared import PreparedSuite
from bench.suite.schema import Suite

Row = tuple[int, str, int, str, str, float]
"""One score: prompt index, prompt, video, evaluator, metric, value."""


class HeldOutScores(NamedTuple):
    """Scores of the held-out videos, and how many prompts were truncated."""

    scores: pd.DataFrame
    """Columns `SCORE_COLUMNS`."""
    prompts_cut: dict[str, float]
    """Evaluator to the share of prompts that it truncates, in [0, 1]; only evaluators whose details report it."""
    token_limit: dict[str, int]
    """Evaluator to the number of tokens that it reads at most."""

    def record_extras(self) -> dict[str, dict[str, Any]]:
        """Entries of a record's `extra`; only those that are not empty."""
        entries: dict[str, dict[str, Any]] = {"prompts_cut": {**self.prompts_cut}, "token_limit": {**self.token_limit}}
        return {name: values for name, values in entries.items() if values}


@dataclass
class PromptCuts:
    """Which prompts an evaluator truncates, from columns video, prompt_truncated and token_limit of its details."""

    cut: dict[int, bool] = field(default_factory=dict)
    """Prompt index to whether the prompt is truncated."""
    limit: int | None = None
    """Number of tokens that the evaluator reads at most; None: not reported."""

    def add(self, details: pd.DataFrame, prompt_index: Sequence[int]) -> None:
        """Add the details of one batch. `prompt_index`: index of the prompt of each of its videos."""
        if not {"video", "prompt_truncated"} <= set(details.columns):
            return
        for video, cut in details.groupby("video")["prompt_truncated"].any().items():
            self.cut[prompt_index[int(str(video))]] = bool(cut)
        if "token_limit" in details.columns:
            self.limit = int(details["token_limit"].iloc[0])

    @property
    def share(self) -> float:
        """Share of the prompts that are truncated, in [0, 1]."""
        return sum(self.cut.values()) / len(self.cut)

    @classmethod
    def merge(cls, parts: Iterable[PromptCuts]) -> PromptCuts:
        """Several batches as one."""
        total = cls()
        for part in parts:
            total.cut |= part.cut
            total.limit = total.limit if part.limit is None else part.limit
        return total


class ScoredBatch(NamedTuple):
    """Scores of one batch of videos, which of its prompts were truncated, and its videos that are kept."""

    rows: list[Row]
    cuts: dict[str, PromptCuts]
    """By name of the evaluator."""
    clips: list[Clip]


@dataclass(frozen=True)
class HeldOutPart:
    """Which of the held-out videos are scored, and what is kept of them."""

    videos: int
    """Videos of each prompt: the first ones."""
    phase: Phase = "evaluate"
    """Phase of the progress that is reported."""
    keep: int = 0
    """Videos of each prompt that are stored; the first ones."""
    folder: Path | None = None
    """Folder of the run, for the stored videos."""


def held_out_config(suite: Suite) -> HeldOutConfig:
    """The settings with which a suite samples its held-out videos."""
    spec, budget = suite.evaluation, suite.budget
    return HeldOutConfig(
        videos_per_prompt=spec.videos_per_prompt,
        seed=spec.seed,
        steps=spec.steps,
        shift=budget.shift,
        guidance=budget.guidance,
        micro_batch=budget.micro_batch,
    )


def evaluate(
    backbone: Backbone,
    evaluators: Mapping[str, Evaluator],
    prepared: PreparedSuite,
    report: ProgressCallback = silent,
    world: World = SINGLE_PROCESS,
    part: HeldOutPart | None = None,
) -> HeldOutScores:
    """Collective call: sample and score the held-out or validation videos, and report how many are done.

    Whole batches are distributed over the processes; each process returns the scores of all videos. `part`: which
    videos; None: all of the suite, and none is stored.
    """
    spec, prompts = prepared.suite.evaluation, prepared.scored_prompts
    part = part or HeldOutPart(spec.videos_per_prompt)
    cond, config = backbone.encode(prompts), replace(held_out_config(prepared.suite), videos_per_prompt=part.videos)
    total, done = len(prompts) * part.videos, 0
    held_out_evaluators = {name: evaluators[name] for name in spec.evaluators}
    local: list[ScoredBatch] = []
    report(Step(part.phase, 0, total))
    for batch in sample_held_out(backbone, cond, config, world=world):
        with world.raise_together():
            if batch.counts:
                scored = _score_batch(batch, held_out_evaluators, prompts, backbone.fps)
                scored.clips.extend(_kept_clips(batch, part, len(prompts), backbone.fps, world))
                local.append(scored)
        done += len(batch.video) * world.dp_size
        report(Step(part.phase, min(done, total), total))
    parts = world.gather_in_order(local)
    clips = [clip for scored in parts for clip in scored.clips]
    if clips and part.folder is not None and world.is_main:
        write_index(part.folder, clips, backbone.fps)
    cuts = {name: PromptCuts.merge(part.cuts[name] for part in parts) for name in spec.evaluators}
    return HeldOutScores(
        scores=pd.DataFrame([row for part in parts for row in part.rows], columns=SCORE_COLUMNS),
        prompts_cut={name: cut.share for name, cut in cuts.items() if cut.cut},
        token_limit={name: cut.limit for name, cut in cuts.items() if cut.limit is not None},
    )


def _score_batch(
    batch: HeldOutBatch, evaluators: Mapping[str, Evaluator], prompts: Sequence[str], fps: float
) -> ScoredBatch:
    """All metrics of one batch of videos."""
    texts = [prompts[p] for p in batch.prompt_index]
    scored = ScoredBatch([], {name: PromptCuts() for name in evaluators}, [])
    if not torch.isfinite(batch.pixels).all():
        worst = int((~batch.pixels.flatten(1).isfinite().all(1)).nonzero()[0])
        raise DivergedError(f"a held-out video of prompt {texts[worst]!r} is not finite: the policy diverged.")
    for name, evaluator in evaluators.items():
        scores = evaluator.score(batch.pixels, texts, fps)
        scored.cuts[name].add(evaluator.details(), batch.prompt_index)
        for metric, values in scores.items():
            if values.shape != (len(texts),):
                raise BenchError(
                    f"evaluator {name}: {metric} has shape {list(values.shape)}, expected [{len(texts)}]."
                )
            if not torch.isfinite(values).all():
                worst = int((~torch.isfinite(values)).nonzero()[0])
                raise DivergedError(f"evaluator {name}: {metric} of held-out prompt {texts[worst]!r} is not finite.")
            for p, text, video, value in zip(batch.prompt_index, texts, batch.video, values.tolist(), strict=True):
                scored.rows.append((p, text, video, name, metric, value))
    return scored


def _kept_clips(batch: HeldOutBatch, part: HeldOutPart, prompts: int, fps: float, world: World) -> list[Clip]:
    """The videos of a batch that are kept, rounded to 256 levels; large ones are written to the folder of the run."""
    if part.folder is None:
        return []
    clips = []
    for p, video, pixels in zip(batch.prompt_index, batch.video, batch.pixels, strict=True):
        if video < part.keep:
            levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
            write = world.rank % world.cp_degree == 0  # the others of its group have the same samples
            clips.append(keep_clip(part.folder, (p, video), levels, clips=prompts * part.keep, fps=fps, write=write))
    return clips
