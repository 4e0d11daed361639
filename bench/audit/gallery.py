"""`bench gallery`: videos of the base and of the trained policies, same prompts and noise, as an animated webp."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from bench import store
from bench.algorithm.sampling import sample_held_out
from bench.api import Backbone, Evaluator
from bench.core.progress import track, working
from bench.core.rng import stream
from bench.store.policy import load_policy
from bench.suite.prepared import PreparedSuite, make_backbone, make_evaluator
from bench.suite.schema import Suite
from bench.train.evaluate import held_out_config

SIDE = 112
"""Least width of an enlarged video, pixels."""
POLICY_FIX = "run `bench run` on this suite and seed"
"""What to do about a missing policy."""
GAP, LINE = 6, 11
"""Space between videos, and height of a line of text, pixels."""


def build_gallery(prepared: PreparedSuite, results: Path, seed: int, prompts: int = 6) -> Path:
    """Write `results/<suite>/figures/gallery.webp`: one column per prompt, one line for the base and for each row.

    The prompts are evenly spaced in the held-out list. Each shows its first evaluation video, sampled again from the
    stored policy of training seed `seed` with the sampler and the noise of the evaluation.
    """
    suite, texts = prepared.suite, prepared.scored_prompts
    shown = [round(i * (len(texts) - 1) / max(prompts - 1, 1)) for i in range(min(prompts, len(texts)))]
    names = [name for name in suite.evaluation.evaluators if name == "gold"] or suite.evaluation.evaluators
    with working(f"loading {', '.join([suite.backbone.name, *names])}"):
        backbone = make_backbone(prepared)
        evaluators = {name: make_evaluator(prepared, name) for name in names}
    lines = {}
    for name in track(["base", *(row.name for row in suite.rows)], "sampling the videos of each row"):
        if name == "base":
            backbone.reset(stream(0, "initial_policy"))
        else:
            load_policy(backbone, store.run_folder(results / suite.name, name, seed), POLICY_FIX)
        lines[name] = _sample_line(suite, backbone, evaluators, texts, shown)
    path = results / suite.name / "figures" / "gallery.webp"
    with working("writing the animation"):
        store.write_bytes(path, _webp(lines, [texts[p] for p in shown], backbone.fps))
    return path


def _sample_line(
    suite: Suite, backbone: Backbone, evaluators: Mapping[str, Evaluator], texts: Sequence[str], shown: list[int]
) -> tuple[UInt8[Tensor, "p f h w 3"], list[str]]:
    """One video for each prompt with an index in `shown`, and its scores as text."""
    config = replace(held_out_config(suite), videos_per_prompt=1)
    batches = sample_held_out(backbone, backbone.encode(texts), config, shown)
    pixels = torch.cat([batch.pixels for batch in batches])
    scores: dict[str, Tensor] = {}
    for evaluator in evaluators.values():
        scores |= evaluator.score(pixels, [texts[p] for p in shown], backbone.fps)
    captions = [
        "\n".join(f"{name} {float(values[i]):.2f}" for name, values in scores.items()) for i in range(len(shown))
    ]
    return (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1), captions


def _webp(lines: Mapping[str, tuple[Tensor, list[str]]], prompts: list[str], fps: float) -> bytes:
    """All lines as one animation: row names on the left, prompts at the top, scores below each video."""
    videos = next(iter(lines.values()))[0]
    count, frames, height, width = videos.shape[:4]
    scale = max(1, -(-SIDE // width))
    cell_width, cell_height = width * scale, height * scale
    headers = [textwrap.fill(prompt, cell_width // 6) for prompt in prompts]
    top = LINE * max(header.count("\n") + 1 for header in headers) + GAP
    left = 6 * max(map(len, lines)) + 2 * GAP
    below = LINE * max(text.count("\n") + 1 for _, captions in lines.values() for text in captions) + GAP
    size = (left + count * (cell_width + GAP), top + len(lines) * (cell_height + below))
    pictures = []
    for f in range(frames):
        picture = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(picture)
        for column, header in enumerate(headers):
            draw.multiline_text((left + column * (cell_width + GAP), 0), header, fill="black", font_size=10, spacing=1)
        for number, (name, (clips, captions)) in enumerate(lines.items()):
            y = top + number * (cell_height + below)
            draw.text((GAP, y + cell_height // 2 - LINE // 2), name, fill="black", font_size=10)
            for column in range(count):
                x = left + column * (cell_width + GAP)
                frame = Image.fromarray(clips[column, f].numpy()).resize(
                    (cell_width, cell_height), Image.Resampling.NEAREST
                )
                picture.paste(frame, (x, y))
                draw.multiline_text((x, y + cell_height + 1), captions[column], fill="black", font_size=10, spacing=1)
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
