"""`bench nano measure`, `wan-measure`: quality of the checkpoints, on clips of a base model for held-out captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import plugins
from bench.algorithm.sampling import HeldOutConfig, sample_held_out
from bench.api import Backbone
from bench.checks.report import NANO_BACKBONES
from bench.core.provenance import CHECKOUT, ROOT
from bench.core.rng import stream
from bench.nano import gold, vae, wan_policy, wan_vae, world
from bench.nano.recipe import FOLDERS, write_json
from bench.nano.reward_training import GAP, pair_accuracy
from bench.report.formatting import markdown
from bench.store.files import write_text
from bench.suite.paths import resolve

VIDEOS = 8
"""Generated clips per held-out caption."""
EVALUATORS = (
    ("videoalign", {"checkpoint": "nano/videoreward"}, {"VQ": "gold_VQ", "MQ": "gold_MQ", "TA": "gold_TA"}),
    ("clipscore", {"checkpoint": "nano/clip"}, {"clipscore": "gold_TA"}),
    ("pickscore", {"checkpoint": "nano/pickscore"}, {"pickscore": "gold_overall"}),
)
"""Evaluator, parameters, and metrics with the gold score that each is compared with."""


def base_clips(backbone: Backbone, prompts: list[str], seed: int) -> tuple[Tensor, list[str]]:
    """Clips [b, 3, f, h, w] of the untrained policy by the evaluation's ODE, and their prompts."""
    config = HeldOutConfig(VIDEOS, seed, steps=20, shift=5.0, guidance=1.0, micro_batch=64)
    batches = sample_held_out(backbone, backbone.encode(prompts), config)
    return torch.cat([batch.pixels for batch in batches]), [prompt for prompt in prompts for _ in range(VIDEOS)]


class Policy(NamedTuple):
    """A policy of nano: its folder, named like its backbone, with the command and the file that measure it."""

    command: str
    file: str
    """Name of the file of measurements beside the folders."""
    encode: Callable[[Path, Tensor], Tensor]
    """The folder of a VAE, and clips in [0, 1], to the latents of the policy."""
    settings: dict[str, Any]
    """Constructor arguments of the backbone that are not its defaults."""


def _hunyuan_latents(folder: Path, clips: Tensor) -> Tensor:
    encoder = vae.load(folder)
    latents: Tensor = vae.encode(encoder, clips) * encoder.config.scaling_factor
    return latents


POLICIES = {
    "hunyuanvideo15": Policy("measure", "measured.json", _hunyuan_latents, {}),
    "wan21": Policy(
        "wan-measure",
        "measured_wan21.json",
        wan_vae.latents,
        {**NANO_BACKBONES["wan21"], "text_rows": wan_policy.TEXT_ROWS},
    ),
}
"""The policies by the names of their backbones."""


def measure(name: str, seed: int = 0, say: Callable[[str], None] = print) -> dict[str, float]:
    """All measurements of the policy `name` by their names; each is also printed by `say`."""
    backbone = plugins.backbone(name, checkpoint=resolve(f"nano/{name}"), **POLICIES[name].settings)
    backbone.reset(stream(seed, "initial_policy"))
    clips, prompts = base_clips(backbone, world.split()[1].texts(), seed)
    captions = world.parse(prompts)
    clean = world.render(captions, world.Corruption.none(len(captions)), stream(seed, "measure", "clean"))
    evaluator = gold.Gold()
    base, ceiling = (evaluator.score(videos, prompts, world.FPS) for videos in (clips, clean))
    with torch.no_grad():
        latents = POLICIES[name].encode(resolve(f"nano/{name}") / "vae", clean)
    trip = evaluator.score(backbone.decode(latents), prompts, world.FPS)
    measured: dict[str, float] = {}
    for axis in evaluator.metrics:
        std = float(base[axis].std())
        measured |= {
            f"{axis}_base": float(base[axis].mean()),
            f"{axis}_base_std": std,
            f"{axis}_clean": float(ceiling[axis].mean()),
            f"{axis}_clean_above_base_in_std": float(ceiling[axis].mean() - base[axis].mean()) / std,
            f"{axis}_vae_round_trip_cost_in_std": float(ceiling[axis].mean() - trip[axis].mean()) / std,
        }
    correct = gold.caption_correct(gold.fit(clips), captions)
    measured["caption_accuracy_colour_shape_direction"] = float(correct[:, :3].all(1).float().mean())
    measured["caption_accuracy_by_chance"] = 1 / (len(world.COLOURS) * len(world.SHAPES) * len(world.DIRECTIONS))
    measured |= _pair_accuracies(clips, prompts, {**base, "gold_overall": torch.stack(list(base.values())).sum(0)})
    for key, value in measured.items():
        say(f"{key:48s} {value:10.4f}")
    return measured


def _pair_accuracies(clips: Tensor, prompts: list[str], truth: dict[str, Tensor]) -> dict[str, float]:
    """Accuracy of each evaluator against the gold scores `truth`, and the number of pairs."""
    accuracies: dict[str, float] = {}
    for name, params, pairs in EVALUATORS:
        evaluator = plugins.evaluator(name, **{key: resolve(value) for key, value in params.items()})
        scores = evaluator.score(clips, prompts, world.FPS)
        for metric, against in pairs.items():
            accuracy = pair_accuracy(scores[metric], truth[against])
            accuracies[f"{metric}_pair_accuracy_against_{against}"] = accuracy.share
            accuracies[f"{metric}_pairs"] = accuracy.pairs
    return accuracies


def write(folder: Path, name: str, seed: int = 0) -> None:
    """Measure the policy `name`; write its file beside the checkpoints, and the page (to a checkout's results)."""
    policy = POLICIES[name]
    measured = {key: round(value, 4) for key, value in measure(name, seed).items()}
    content = {"command": f"bench nano {policy.command}", "seed": seed, "measured": measured}
    write_json(folder / policy.file, content)
    write_text(PAGE if CHECKOUT else folder / PAGE.name, page(folder))


PAGE = ROOT / "results" / "reference" / "nano" / "checkpoints.md"
THRESHOLDS: tuple[tuple[str, str, float, float], ...] = (
    *(
        (
            f"VAE round trip of clean renders: cost in gold {a}, base std",
            f"gold_{a}_vae_round_trip_cost_in_std",
            -9.0,
            0.25,
        )
        for a in ("VQ", "MQ", "TA")
    ),
    *(
        (f"clean renders above the base in gold {a}, base std", f"gold_{a}_clean_above_base_in_std", low, 99.0)
        for a, low in (("VQ", 1.5), ("MQ", 1.5), ("TA", 0.6))
    ),
    (
        "base: share of captions with colour, shape and direction right",
        "caption_accuracy_colour_shape_direction",
        0.2,
        0.85,
    ),
    *(
        (f"VideoReward {a}: pair accuracy against gold {a}", f"{a}_pair_accuracy_against_gold_{a}", 0.85, 1.0)
        for a in ("VQ", "MQ", "TA")
    ),
    ("PickScore: pair accuracy against gold Overall", "pickscore_pair_accuracy_against_gold_overall", 0.8, 1.0),
    ("size of all checkpoints, MB (10^6 bytes)", "megabytes", 0.0, 25.0),
)
"""Description, key in the file of measurements, and least and largest value allowed."""
TITLES = {"hunyuanvideo15": "HunyuanVideo-1.5 in miniature", "wan21": "Wan2.1 in miniature"}


def page(folder: Path) -> str:
    """The thresholds with the measured values, and the recipe of each part, as Markdown."""
    sizes = {name: sum(f.stat().st_size for f in (folder / name).rglob("*") if f.is_file()) for name in FOLDERS}
    megabytes = round(sum(sizes.values()) / 1e6, 2)
    recipes = []
    for path in sorted(folder.rglob("report.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        machine, arguments = report["machine"], ", ".join(f"{k} {v}" for k, v in report["recipe"].items())
        hardware = machine.get("gpu") or f"CPU, {machine['processor']}, {machine['cores']} cores"
        part = path.parent.relative_to(folder).as_posix()
        recipes.append([part, f"`{report['command']}`", arguments, f"{report['time']['wall_minutes']:g}", hardware])
    files = {name: folder / policy.file for name, policy in POLICIES.items()}
    stored = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.is_file()}
    parts = ["# The nano checkpoints: what they must show, and what they do"]
    for name, content in stored.items():
        thresholds, other = _tables({**content["measured"], "megabytes": megabytes})
        parts += [
            f"## {TITLES[name]}",
            f"Written by `{content['command']} --seed {content['seed']}`: {VIDEOS} clips of the base model (20 ODE "
            "steps) for each of the 36 held-out captions, and clean renders of the same captions. Pairs count when "
            f"their gold scores differ by at least {GAP} standard deviations.",
            thresholds,
            f"### Everything measured: {TITLES[name]}",
            other,
        ]
    parts += [
        "## Recipes",
        markdown(["part", "command", "arguments", "minutes", "machine"], recipes),
        "Parts build on each other in the order vae, policy, videoreward-start, videoreward, clip, pickscore; wan-vae "
        "and wan-policy need the part vae alone. "
        "A GPU, or another number of threads, rounds otherwise than one CPU thread, so a re-run elsewhere gives an "
        "equivalent checkpoint, not the same bytes; `manifest.json` has the sha256 of those that are shipped.",
    ]
    return "\n\n".join(parts) + "\n"


def _tables(values: dict[str, float]) -> tuple[str, str]:
    """The table of the thresholds, and that of the other values."""
    thresholds = [
        [what, _range(low, high), f"{values[key]:.4g}", "met" if low <= values[key] <= high else "**missed**"]
        for what, key, low, high in THRESHOLDS
    ]
    other = [[key, f"{value:.4g}"] for key, value in values.items() if key not in {row[1] for row in THRESHOLDS}]
    return (
        markdown(["measured", "bar", "value", ""], thresholds),
        markdown(["key of the file", "value"], other),
    )


def _range(low: float, high: float) -> str:
    """The allowed range in words."""
    if low <= 0:
        return f"at most {high:g}"
    return f"at least {low:g}" if high >= 1 else f"{low:g} to {high:g}"
