"""`bench gallery`: videos of the base and of trained policies, same prompts and noise, as one animated webp."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from bench import store
from bench.algorithm.sampling import sample_held_out
from bench.api import Backbone, Evaluator
from bench.core.rng import stream
from bench.store.policy import load_policy
from bench.suite.build import make_backbone, make_evaluator
from bench.suite.schema import Experiment

SIDE = 112
"""Least width of an enlarged video, pixels."""
GAP, LINE = 6, 11


def build_gallery(exp: Experiment, results: Path, seed: int, prompts: int = 6) -> Path:
    """Write `results/<suite>/figures/gallery.webp`: one column per prompt, one line for the base and for each row.

    The prompts are spread evenly over the held-out list, not picked; each shows its first evaluation video, made again
    from the stored policy of training seed `seed` with the evaluation's own sampler and noise.
    """
    texts = exp.prompt_list("heldout")
    chosen = [round(i * (len(texts) - 1) / max(prompts - 1, 1)) for i in range(min(prompts, len(texts)))]
    backbone = make_backbone(exp)
    names = [name for name in exp.evaluation.evaluators if name == "gold"] or exp.evaluation.evaluators
    evaluators = {name: make_evaluator(exp, name) for name in names}
    backbone.reset(stream(0, "initial_policy"))
    lines = {"base": _line(exp, backbone, evaluators, texts, chosen)}
    for row in exp.rows:
        folder = store.run_folder(results / exp.suite, row.name, seed)
        load_policy(backbone, folder, "run `bench run` on this suite and seed")
        lines[row.name] = _line(exp, backbone, evaluators, texts, chosen)
    path = results / exp.suite / "figures" / "gallery.webp"
    store.write_bytes(path, _webp(lines, [texts[p] for p in chosen], backbone.fps))
    return path


def _line(
    exp: Experiment, backbone: Backbone, evaluators: Mapping[str, Evaluator], texts: Sequence[str], chosen: list[int]
) -> tuple[UInt8[Tensor, "p f h w 3"], list[str]]:
    """One video per chosen prompt, and the text under each."""
    budget, spec = exp.budget, exp.evaluation
    batches = sample_held_out(
        backbone,
        backbone.encode(texts),
        videos=1,
        seed=spec.seed,
        steps=spec.steps,
        shift=budget.shift,
        guidance=budget.guidance,
        batch=budget.micro_batch,
        only=chosen,
    )
    pixels = torch.cat([batch.pixels for batch in batches])
    scores: dict[str, Tensor] = {}
    for evaluator in evaluators.values():
        scores |= evaluator.score(pixels, [texts[p] for p in chosen], backbone.fps)
    under = [
        "\n".join(f"{name} {float(values[i]):.2f}" for name, values in scores.items()) for i in range(len(chosen))
    ]
    return (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1), under


def _webp(lines: Mapping[str, tuple[Tensor, list[str]]], prompts: list[str], fps: float) -> bytes:
    """All lines as one animation, names on the left, prompts on top, scores under each video."""
    videos = next(iter(lines.values()))[0]
    count, frames, height, width = videos.shape[:4]
    scale = max(1, -(-SIDE // width))
    wide, high = width * scale, height * scale
    heads = [textwrap.fill(prompt, wide // 6) for prompt in prompts]
    top = LINE * max(head.count("\n") + 1 for head in heads) + GAP
    left = 6 * max(map(len, lines)) + 2 * GAP
    below = LINE * max(text.count("\n") + 1 for _, under in lines.values() for text in under) + GAP
    size = (left + count * (wide + GAP), top + len(lines) * (high + below))
    pictures = []
    for f in range(frames):
        picture = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(picture)
        for column, head in enumerate(heads):
            draw.multiline_text((left + column * (wide + GAP), 0), head, fill="black", font_size=10, spacing=1)
        for number, (name, (clips, under)) in enumerate(lines.items()):
            y = top + number * (high + below)
            draw.text((GAP, y + high // 2 - LINE // 2), name, fill="black", font_size=10)
            for column in range(count):
                x = left + column * (wide + GAP)
                frame = Image.fromarray(clips[column, f].numpy()).resize((wide, high), Image.Resampling.NEAREST)
                picture.paste(frame, (x, y))
                draw.multiline_text((x, y + high + 1), under[column], fill="black", font_size=10, spacing=1)
        pictures.append(picture)
    file = io.BytesIO()
    pictures[0].save(
        file,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / fps),
        loop=0,
        quality=80,
        method=6,
    )
    return file.getvalue()
