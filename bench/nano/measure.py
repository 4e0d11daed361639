"""`bench nano measure`: quality of the nano checkpoints, on clips of the base model for held-out captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench import plugins
from bench.algorithm.sampling import HeldOutConfig, sample_held_out
from bench.api import Backbone
from bench.core.provenance import CHECKOUT, ROOT
from bench.core.rng import stream
from bench.nano import gold, vae, world
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


def measure(seed: int = 0, say: Callable[[str], None] = print) -> dict[str, float]:
    """All measurements by name; each is also printed by `say`."""
    backbone = plugins.backbone("hunyuanvideo15", checkpoint=resolve("nano"))
    backbone.reset(stream(seed, "initial_policy"))
    clips, prompts = base_clips(backbone, world.split()[1].texts(), seed)
    captions = world.parse(prompts)
    clean = world.render(captions, world.Corruption.none(len(captions)), stream(seed, "measure", "clean"))
    evaluator = gold.Gold()
    base, ceiling = (evaluator.score(videos, prompts, world.FPS) for videos in (clips, clean))
    trip = evaluator.score(_round_trip(backbone, clean), prompts, world.FPS)
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


def _round_trip(backbone: Backbone, clips: Tensor) -> Tensor:
    """Clips through the VAE and back."""
    encoder = vae.load(resolve("nano") / "vae")
    with torch.no_grad():
        latents = vae.encode(encoder, clips)
    return backbone.decode(latents * encoder.config.scaling_factor)


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


def write(folder: Path, seed: int = 0) -> None:
    """Measure; write `measured.json` beside the checkpoints, and the page of thresholds (to a checkout's results)."""
    measured = {key: round(value, 4) for key, value in measure(seed).items()}
    write_json(folder / "measured.json", {"command": "bench nano measure", "seed": seed, "measured": measured})
    write_text(PAGE if CHECKOUT else folder / PAGE.name, page(folder, measured, seed))


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
"""Description, key in `measured.json`, and least and largest value allowed."""


def page(folder: Path, measured: dict[str, float], seed: int) -> str:
    """The thresholds with the measured values, and the recipe of each part, as Markdown."""
    sizes = {name: sum(f.stat().st_size for f in (folder / name).rglob("*") if f.is_file()) for name in FOLDERS}
    values = {**measured, "megabytes": round(sum(sizes.values()) / 1e6, 2)}
    thresholds = [
        [what, _range(low, high), f"{values[key]:.4g}", "met" if low <= values[key] <= high else "**missed**"]
        for what, key, low, high in THRESHOLDS
    ]
    recipes = []
    for path in sorted(folder.rglob("report.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        machine, arguments = report["machine"], ", ".join(f"{k} {v}" for k, v in report["recipe"].items())
        hardware = machine.get("gpu") or f"CPU, {machine['processor']}, {machine['cores']} cores"
        part = path.parent.relative_to(folder).as_posix()
        recipes.append([part, f"`{report['command']}`", arguments, f"{report['time']['wall_minutes']:g}", hardware])
    other = [[key, f"{value:.4g}"] for key, value in values.items() if key not in {row[1] for row in THRESHOLDS}]
    parts = [
        "# The nano checkpoints: what they must show, and what they do",
        f"Written by `bench nano measure --seed {seed}`: {VIDEOS} clips of the base model (20 ODE steps) "
        "for each of the 36 held-out captions, and clean renders of the same captions. Pairs count when their gold "
        f"scores differ by at least {GAP} standard deviations.",
        markdown(["measured", "bar", "value", ""], thresholds),
        "## Recipes",
        markdown(["part", "command", "arguments", "minutes", "machine"], recipes),
        "Parts build on each other in the order vae, policy, videoreward-start, videoreward, clip, pickscore. "
        "A GPU, or another number of threads, rounds otherwise than one CPU thread, so a re-run elsewhere gives an "
        "equivalent checkpoint, not the same bytes; `manifest.json` has the sha256 of those that are shipped.",
        "## Everything measured",
        markdown(["key of `measured.json`", "value"], other),
    ]
    return "\n\n".join(parts) + "\n"


def _range(low: float, high: float) -> str:
    """The allowed range in words."""
    if low <= 0:
        return f"at most {high:g}"
    return f"at least {low:g}" if high >= 1 else f"{low:g} to {high:g}"
