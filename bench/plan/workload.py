"""What one run of a suite computes: its model's sizes, its function evaluations by phase, and what each one costs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench import plugins
from bench.algorithm.kl import kl_policy
from bench.core.errors import BenchError
from bench.core.ledger import TRAIN_COST, guidance_multiplicity, planned
from bench.plan import flops
from bench.suite.schema import Experiment, RowSpec, resolve

BACKBONE = "hunyuanvideo15"
TOKENS_PER_WORD, TEMPLATE_TOKENS = 4 / 3, 5
"""Text tokens are guessed from a prompt's words; the chat template's closing tokens follow them."""


@dataclass(frozen=True)
class Model:
    """The suite's video generator as far as its cost goes."""

    transformer: flops.Transformer
    vae: Mapping[str, Any]
    settings: Mapping[str, Any]
    """The backbone's constructor arguments, defaults filled in."""
    size: tuple[int, int, int]
    latent_shape: tuple[int, int, int, int]
    text: int
    source: str

    @property
    def latents(self) -> int:
        return self.transformer.tokens(self.latent_shape)

    @property
    def full(self) -> bool:
        """Full fine-tuning, which `lora_rank: 0` stands for."""
        return bool(self.settings["lora_rank"] == 0)

    @property
    def checkpointing(self) -> bool:
        return bool(self.settings.get("gradient_checkpointing", False))

    @property
    def tile(self) -> tuple[int, int] | None:
        """Height and width of the VAE's tiles in pixels; None where it decodes whole latents."""
        tiles = self.settings.get("vae_tiling")
        return None if tiles is None else (int(tiles[0]), int(tiles[1]))


def suite_model(exp: Experiment, text: int | None = None) -> Model:
    """Read the checkpoint's configs; where the folder is absent, the released model's sizes stand in.

    `text`: text tokens per sample; None: guessed from the training prompts.
    """
    if exp.backbone.name != BACKBONE:
        raise BenchError(f"plan: the cost of backbone {exp.backbone.name!r} is not known, only that of {BACKBONE!r}.")
    folder = resolve(exp.backbone.checkpoint)
    found, vae = flops.read_config(folder / "transformer"), flops.read_config(folder / "vae")
    source = "configs of the checkpoint folder"
    if found is None or vae is None:
        found, vae = {}, flops.RELEASED_VAE
        source = "checkpoint folder not found: the released 480p model is assumed"
    defaults = inspect.signature(plugins.find("backbones", BACKBONE)).parameters.values()
    settings = {p.name: p.default for p in defaults if p.name != "checkpoint"} | exp.backbone.train
    frames, height, width = settings["size"]
    time, space = vae["temporal_compression_ratio"], vae["spatial_compression_ratio"]
    if (frames - 1) % time or height % space or width % space:
        raise BenchError(
            f"size {[frames, height, width]}: frames must be {time} n + 1, height and width multiples of {space}; "
            "set backbone.train.size accordingly."
        )
    shape = (int(vae["latent_channels"]), (frames - 1) // time + 1, height // space, width // space)
    if text is None:
        words = [len(prompt.split()) for prompt in exp.prompt_list("train")]
        text = round(TOKENS_PER_WORD * sum(words) / len(words)) + TEMPLATE_TOKENS
    return Model(flops.Transformer.of(found), vae, settings, (frames, height, width), shape, text, source)


@dataclass(frozen=True)
class UnitCost:
    """Cost of one function evaluation, of its backward pass, and of one decoded video: in FLOPs or in seconds."""

    forward: float
    backward: float
    decode: float | None
    """None where it is not known; it is then not counted."""

    def at(self, rate: float) -> UnitCost:
        """Seconds at `rate` FLOP/s."""
        return UnitCost(self.forward / rate, self.backward / rate, None if self.decode is None else self.decode / rate)


def unit_flops(found: Model) -> UnitCost:
    net, latents, text = found.transformer, found.latents, found.text
    return UnitCost(
        net.forward(latents, text),
        net.backward(latents, text, found.checkpointing, found.full),
        flops.decode_flops(found.vae, found.size, found.tile is not None),
    )


def heldout_videos(exp: Experiment) -> int:
    return len(exp.prompt_list("heldout")) * exp.evaluation.videos_per_prompt


def evaluation_nfe(exp: Experiment) -> int:
    """Function evaluations of one run's held-out evaluation."""
    return heldout_videos(exp) * exp.evaluation.steps * guidance_multiplicity(exp.budget.guidance)


def anchor_nfe(exp: Experiment, row: RowSpec | None) -> int:
    """Function evaluations of one run's anchor: one per trained step, none for rows without anchors."""
    if row is None:
        return 0
    rules = kl_policy(row.kl_spec.name, **row.kl_spec.params).anchors().values()
    budget = exp.budget
    samples = budget.updates * budget.prompts * budget.group_size
    times = guidance_multiplicity(budget.guidance)
    return samples * budget.train_steps * times * sum(rule.network for rule in rules)


def run_counts(exp: Experiment, row: RowSpec | None) -> dict[str, int]:
    """Function evaluations of one run by phase, guidance counted; `trained` and `probed` count backward passes too.

    `probed`: the KL term's share of the gradient is a backward pass of its own every few updates.
    """
    spent = planned(exp.budget, len(exp.reward), exp.budget.updates if row else 0)
    trained = spent["nfe_train"] // TRAIN_COST
    backward = trained // (1 if exp.trains_uncond else guidance_multiplicity(exp.budget.guidance))
    held = row is not None and bool(kl_policy(row.kl_spec.name, **row.kl_spec.params).term_weights())
    rounds = exp.budget.updates // exp.probe_every if exp.probe_every else 0
    return {
        "nfe_rollout": spent["nfe_rollout"],
        "nfe_anchor": anchor_nfe(exp, row),
        "nfe_train": spent["nfe_train"],
        "nfe_evaluation": evaluation_nfe(exp),
        "backward": backward,
        "probed": backward * rounds // (exp.budget.updates * exp.budget.minibatches) if held else 0,
        "decodes": spent["decodes"],
        "evaluation_videos": heldout_videos(exp),
    }


def phase_costs(count: Mapping[str, int], price: UnitCost) -> dict[str, float]:
    """FLOPs or seconds of one run by phase, before anything is shared out."""
    decode = price.decode or 0.0
    trained = count["nfe_train"] // TRAIN_COST
    return {
        "rollout": count["nfe_rollout"] * price.forward,
        "anchor": count["nfe_anchor"] * price.forward,
        "train": trained * price.forward + count["backward"] * price.backward,
        "kl_probe": count["probed"] * price.backward,
        "decode": count["decodes"] * decode,
        "evaluation": count["nfe_evaluation"] * price.forward + count["evaluation_videos"] * decode,
    }
