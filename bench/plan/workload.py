"""Work of one run of a suite: its model's sizes, its function evaluations by phase, and the cost of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.backbones.hunyuanvideo15.options import HunyuanOptions, latent_shape
from bench.core.budget import Budget
from bench.core.errors import BenchError
from bench.core.ledger import TRAIN_COST, guidance_multiplicity, planned_counts
from bench.plan import flops
from bench.suite.prepared import PreparedRow, PreparedSuite

BACKBONE = "hunyuanvideo15"
TOKENS_PER_WORD, TEMPLATE_TOKENS = 4 / 3, 5
"""Estimate of a prompt's text tokens: so many per word, and the chat template's closing tokens."""


@dataclass(frozen=True)
class Model:
    """Sizes and settings of the suite's video generator that decide its cost."""

    transformer: flops.Transformer
    vae: Mapping[str, Any]
    """The VAE's config."""
    options: HunyuanOptions
    latent_shape: tuple[int, int, int, int]
    """(c, f, h, w)."""
    text: int
    """Text tokens of a sample."""
    source: str
    """Origin of the sizes, in words."""

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width of a video in pixels."""
        frames, height, width = self.options.size
        return frames, height, width

    @property
    def latents(self) -> int:
        """Latent tokens of a sample."""
        return self.transformer.tokens(self.latent_shape)

    @property
    def full(self) -> bool:
        """Whether all weights train (`lora_rank: 0`)."""
        return self.options.lora_rank == 0

    @property
    def tile(self) -> tuple[int, int] | None:
        """Height and width of the VAE's tiles in pixels; None if it decodes whole latents."""
        tiles = self.options.vae_tiling
        return None if tiles is None else (tiles[0], tiles[1])


def suite_model(prepared: PreparedSuite, text: int | None = None) -> Model:
    """Sizes from the checkpoint's configs, or those of the released model if the folder does not exist.

    `text`: text tokens per sample; None: estimated from the training prompts.
    """
    suite = prepared.suite
    if suite.backbone.name != BACKBONE:
        raise BenchError(
            f"plan: the cost of backbone {suite.backbone.name!r} is not known, only that of {BACKBONE!r}."
        )
    folder = prepared.checkpoints["backbone"].path
    config, vae = flops.read_config(folder / "transformer"), flops.read_config(folder / "vae")
    source = "configs of the checkpoint folder"
    if config is None or vae is None:
        config, vae = {}, flops.RELEASED_VAE
        source = "checkpoint folder not found: the released 480p model is assumed"
    options = HunyuanOptions(**suite.backbone.train)
    if text is None:
        words = [len(prompt.split()) for prompt in prepared.prompts.train]
        text = round(TOKENS_PER_WORD * sum(words) / len(words)) + TEMPLATE_TOKENS
    transformer = flops.Transformer.from_config(config)
    return Model(transformer, vae, options, latent_shape(options.size, vae), text=text, source=source)


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


def unit_flops(model: Model) -> UnitCost:
    """FLOPs of the unit costs."""
    transformer, latents, text = model.transformer, model.latents, model.text
    return UnitCost(
        transformer.forward(latents, text),
        transformer.backward(latents, text, model.options.gradient_checkpointing, model.full),
        flops.decode_flops(model.vae, model.size, model.tile is not None),
    )


def held_out_videos(prepared: PreparedSuite) -> int:
    """Videos of one run's held-out evaluation."""
    return len(prepared.prompts.held_out) * prepared.suite.evaluation.videos_per_prompt


def evaluation_nfe(prepared: PreparedSuite) -> int:
    """Function evaluations of one run's held-out evaluation."""
    suite = prepared.suite
    return held_out_videos(prepared) * suite.evaluation.steps * guidance_multiplicity(suite.budget.guidance)


def anchor_nfe(budget: Budget, row: PreparedRow | None) -> int:
    """Function evaluations of one run's anchors: one per trained step and network anchor; `row` None: the base."""
    if row is None:
        return 0
    rules = row.kl_policy.anchors().values()
    samples = budget.updates * budget.prompts * budget.group_size
    branches = guidance_multiplicity(budget.guidance)
    return samples * budget.train_steps * branches * sum(rule.network for rule in rules)


def run_counts(prepared: PreparedSuite, row: PreparedRow | None) -> dict[str, int]:
    """Function evaluations of one run by phase, guidance counted; `row` None: the base model.

    "backward" counts the backward passes of training. "probed" counts those of the KL probe, which every few updates
    computes the gradient of the KL term by itself.
    """
    suite = prepared.suite
    ledger = planned_counts(suite.budget, len(suite.reward), suite.budget.updates if row else 0)
    trained = ledger["nfe_train"] // TRAIN_COST
    backward = trained // (1 if suite.trains_uncond else guidance_multiplicity(suite.budget.guidance))
    has_kl = row is not None and bool(row.kl_policy.term_weights())
    probed_updates = suite.budget.updates // suite.probe_every if suite.probe_every else 0
    return {
        "nfe_rollout": ledger["nfe_rollout"],
        "nfe_anchor": anchor_nfe(suite.budget, row),
        "nfe_train": ledger["nfe_train"],
        "nfe_evaluation": evaluation_nfe(prepared),
        "backward": backward,
        "probed": backward * probed_updates // (suite.budget.updates * suite.budget.minibatches) if has_kl else 0,
        "decodes": ledger["decodes"],
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
        "evaluation": counts["nfe_evaluation"] * unit_cost.forward + counts["evaluation_videos"] * decode,
    }
