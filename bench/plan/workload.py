"""Work of one run of a suite: its model's sizes, its function evaluations by phase, and the cost of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench import plugins
from bench.algorithm.kl import has_kl_terms
from bench.api import EstimatesCost, ForwardMethod, ModelCost
from bench.core.budget import Budget
from bench.core.ledger import TRAIN_COST, guidance_multiplicity, planned_counts, sampling_nfe
from bench.store.videos import fits_atlas
from bench.suite.prepared import PreparedRow, PreparedSuite


def suite_model(prepared: PreparedSuite, words: float | None = None) -> ModelCost | None:
    """The sizes of the suite's video generator; None for a backbone that states none.

    `words`: mean number of words of a prompt; None: that of the training prompts.
    """
    spec, checkpoint = prepared.suite.backbone, prepared.checkpoints.get("backbone")
    backbone = plugins.find("backbones", spec.name)
    if not (isinstance(backbone, type) and issubclass(backbone, EstimatesCost)):
        return None
    if words is None:
        lengths = [len(prompt.split()) for prompt in prepared.prompts.train]
        words = sum(lengths) / len(lengths)
    return backbone.model_cost(None if checkpoint is None else checkpoint.path, spec.train, words)


@dataclass(frozen=True)
class UnitCost:
    """Cost of one function evaluation, of its backward pass, and of one decoded video: in FLOPs or in seconds."""

    forward: float
    backward: float
    decode: float | None
    """None if it is not known; it is then not counted."""

    def at(self, throughput: float) -> UnitCost:
        """Seconds at `throughput` FLOP/s."""
        decode = None if self.decode is None else self.decode / throughput
        return UnitCost(self.forward / throughput, self.backward / throughput, decode)


def unit_flops(model: ModelCost) -> UnitCost:
    """FLOPs of the unit costs."""
    return UnitCost(model.forward, model.backward, model.decode)


def held_out_videos(prepared: PreparedSuite) -> int:
    """Videos of one run's held-out evaluation."""
    return len(prepared.scored_prompts) * prepared.suite.evaluation.videos_per_prompt


def evaluation_nfe(prepared: PreparedSuite) -> int:
    """Function evaluations of one run's held-out evaluation."""
    suite = prepared.suite
    return sampling_nfe(held_out_videos(prepared), suite.evaluation.steps, suite.budget.guidance)


def curve_points(prepared: PreparedSuite) -> int:
    """Points of one run's held-out curve; 0 for a suite without a curve."""
    every, updates = prepared.suite.evaluation.every, prepared.suite.budget.updates
    return 0 if every is None else (updates - 1) // every


def point_videos(prepared: PreparedSuite) -> int:
    """Videos of one point of the curve."""
    return len(prepared.scored_prompts) * prepared.suite.evaluation.curve_videos


def curve_videos(prepared: PreparedSuite) -> int:
    """Videos of all points of one run's curve."""
    return curve_points(prepared) * point_videos(prepared)


def curve_nfe(prepared: PreparedSuite) -> int:
    """Function evaluations of one run's held-out curve."""
    suite = prepared.suite
    return sampling_nfe(curve_videos(prepared), suite.evaluation.steps, suite.budget.guidance)


KEPT_BITS = {"webp": 8.0, "mp4": 0.2}
"""Assumed bits per pixel of a kept video, by its format: lossless, and H.264 of `bench.store.videos.CRF`."""


def kept_videos(prepared: PreparedSuite, size: tuple[int, int, int]) -> dict[str, Any]:
    """Number of the videos that one run keeps, their format, and their bytes, an assumption (`KEPT_BITS`).

    `size`: frames, height and width of a video.
    """
    clips = len(prepared.scored_prompts) * prepared.suite.evaluation.keep_videos
    kind = "webp" if fits_atlas(size, clips) else "mp4"
    return {"clips": clips, "format": kind, "bytes": round(clips * math.prod(size) * KEPT_BITS[kind] / 8)}


def anchor_nfe(budget: Budget, row: PreparedRow | None) -> int:
    """Function evaluations of one run's anchors: one per trained step and network anchor; `row` None: the base.

    The references of a forward method are anchors, too.
    """
    if row is None:
        return 0
    networks = sum(rule.network for rule in row.kl_policy.anchors().values())
    if isinstance(row.method, ForwardMethod):
        networks = len(row.method.references)
    samples = budget.updates * budget.prompts * budget.group_size
    branches = guidance_multiplicity(budget.guidance)
    return samples * budget.train_steps * branches * networks


def run_counts(prepared: PreparedSuite, row: PreparedRow | None) -> dict[str, int]:
    """Function evaluations of one run by phase, guidance counted; `row` None: the base model.

    "backward" counts the backward passes of training. "probed" counts those of the KL probe, which every few updates
    computes the gradient of the KL term by itself.
    """
    suite = prepared.suite
    ledger = planned_counts(suite.budget, len(suite.reward), suite.budget.updates if row else 0)
    trained = ledger["nfe_train"] // TRAIN_COST
    backward = trained // (1 if suite.trains_uncond else guidance_multiplicity(suite.budget.guidance))
    has_kl = row is not None and has_kl_terms(row.kl_policy)
    probed_updates = suite.budget.updates // suite.probe_every if suite.probe_every else 0
    return {
        "nfe_rollout": ledger["nfe_rollout"],
        "nfe_anchor": anchor_nfe(suite.budget, row),
        "nfe_train": ledger["nfe_train"],
        "nfe_curve": curve_nfe(prepared) if row else 0,
        "nfe_evaluation": evaluation_nfe(prepared),
        "backward": backward,
        "probed": backward * probed_updates // (suite.budget.updates * suite.budget.minibatches) if has_kl else 0,
        "decodes": ledger["decodes"],
        "curve_videos": curve_videos(prepared) if row else 0,
        "evaluation_videos": held_out_videos(prepared),
    }


def phase_costs(counts: Mapping[str, int], unit_cost: UnitCost) -> dict[str, float]:
    """FLOPs or seconds of one run by phase, on one GPU."""
    decode = unit_cost.decode or 0.0
    trained = counts["nfe_train"] // TRAIN_COST
    return {
        "rollout": counts["nfe_rollout"] * unit_cost.forward,
        "anchor": counts["nfe_anchor"] * unit_cost.forward,
        "train": trained * unit_cost.forward + counts["backward"] * unit_cost.backward,
        "kl_probe": counts["probed"] * unit_cost.backward,
        "decode": counts["decodes"] * decode,
        "curve": counts["nfe_curve"] * unit_cost.forward + counts["curve_videos"] * decode,
        "evaluation": counts["nfe_evaluation"] * unit_cost.forward + counts["evaluation_videos"] * decode,
    }
