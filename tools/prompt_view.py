"""The stored view of nano's results by colour and prompt: results/reference/nano/prompts.md.

`python -m tools.prompt_view` writes it from the stored records and their kept videos: the gains of each row by the
colour that the caption names, how far the colour of the painted shape has moved, and where gold falls.
"""

from __future__ import annotations

import colorsys
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bench.core.errors import BenchError
from bench.core.provenance import ROOT
from bench.nano.world import COLOURS
from bench.report import formatting
from bench.report.data.differences import colours_of, interval_columns, prompt_texts
from bench.report.data.loading import load_records
from bench.report.data.records import RowRuns, Run
from bench.report.data.selection import row_title
from bench.report.data.statistics import Array, Estimate, over_seeds, t_over_seeds
from bench.report.tables.notes import nano_warning
from bench.store.videos import KeptVideos, read_videos

FOLDER = ROOT / "results" / "reference" / "nano"
PAGE = "prompts.md"
SCORES = {"overall": "Overall", "gold_overall": "gold"}
SHAPE_LEVEL = 0.5
"""Least value of the brightest channel of a pixel of the shape: the background has 0.08, every colour 0.8 or more."""
HEAD = """\
Intervals are Student's t over the seeds: they hold for these very prompts, are not adjusted for their number, and are
exploratory. Written by `python -m tools.prompt_view`."""
HUES = """\
Degrees on the colour circle (red 0, yellow 60, green 120, cyan 180, blue 240, magenta 300) of the mean colour of all
pixels whose brightest channel is at least {}, in the first kept video of each prompt. World: the colour that the nano
world paints. Rows: how far training moves it from the base; a plus moves red towards yellow."""
MOST_LOSSES = 3
"""Prompts that one row's list of losses names."""


def page(folder: Path) -> str:
    """The text of the page; a folder without kept videos is a `BenchError`."""
    suite = load_records(folder)
    prompts = prompt_texts(suite)
    colours = colours_of(prompts)
    if colours is None or suite.base is None:
        raise BenchError(f"{folder} needs a finished base and captions of the nano world.")
    rows = [runs for runs in suite.rows if runs.finished]
    groups = {colour: [p for p, each in enumerate(colours) if each == colour] for colour in dict.fromkeys(colours)}
    parts = [
        f"# {suite.name}: colours and prompts",
        nano_warning(suite.name, suite.config),
        HEAD,
    ]
    for score, title in SCORES.items():
        gains = _gains(suite.base, rows, groups, score)
        parts += [f"## Gain in {title} over the base, by the colour in the caption", gains]
    parts += [
        "## Hue of the painted shape",
        HUES.format(SHAPE_LEVEL),
        _hues(suite.base, rows, groups),
        "## Prompts on which gold falls",
        _losses(suite.base, rows, prompts),
    ]
    return "\n\n".join(parts) + "\n"


def _gain(runs: RowRuns, base: Run, score: str) -> Array:
    """Gains over the base [seed, prompt]."""
    scores: Array = np.stack([run.cells[score].to_numpy() for run in runs.finished])
    gain: Array = scores - base.cells[score].to_numpy()
    return gain


def _gains(base: Run, rows: Sequence[RowRuns], groups: Mapping[str, list[int]], score: str) -> str:
    lines = []
    for runs in rows:
        gain = _gain(runs, base, score)
        lines.append([row_title(runs.row), *(_text(t_over_seeds(gain[:, part])) for part in groups.values())])
    return formatting.markdown(["row", *groups], lines)


def _text(estimate: Estimate, digits: int = 2) -> str:
    return formatting.interval(pd.Series(interval_columns("x", estimate)), "x", digits)


def _hues(base: Run, rows: Sequence[RowRuns], groups: Mapping[str, list[int]]) -> str:
    before = shape_hues(_videos(base))
    world = [f"{_hue(np.array(COLOURS[colour])):.0f}" for colour in groups]
    lines = [["World", *world], ["Base", *(f"{_mean_angle(before[part]):.0f}" for part in groups.values())]]
    for runs in rows:
        moved = np.stack([_turn(before, shape_hues(_videos(run))) for run in runs.finished])
        lines.append(
            [row_title(runs.row), *(_text(over_seeds(moved[:, part].mean(1)), 1) for part in groups.values())]
        )
    return formatting.markdown(["row", *groups], lines)


def _videos(run: Run) -> KeptVideos:
    kept = read_videos(run.folder)
    if kept is None:
        raise BenchError(f"{run.folder} has no kept videos: set evaluation.keep_videos in the suite and run it again.")
    return kept


def shape_hues(kept: KeptVideos) -> Array:
    """Hue in degrees of the shape in the first kept video of each prompt, [prompt]; NaN without a bright pixel."""
    hues = []
    for prompt in dict.fromkeys(clip["prompt_index"] for clip in kept.index["clips"]):
        frames = kept.frames(prompt, 0) / 255
        shape = frames[frames.max(-1) >= SHAPE_LEVEL]
        hues.append(_hue(shape.mean(0)) if len(shape) else np.nan)
    return np.array(hues)


def _hue(rgb: Array) -> float:
    """Degrees from 0 to 360."""
    return 360 * colorsys.rgb_to_hsv(*map(float, rgb))[0]


def _turn(before: Array, after: Array) -> Array:
    """The way from one hue to the other, in degrees from -180 to 180."""
    return (after - before + 180) % 360 - 180


def _mean_angle(degrees: Array) -> float:
    """The mean direction of angles, from 0 to 360."""
    return float(np.degrees(np.angle(np.exp(1j * np.radians(degrees)).mean())) % 360)


def _losses(base: Run, rows: Sequence[RowRuns], prompts: Sequence[str]) -> str:
    lines = []
    for runs in rows:
        means = _gain(runs, base, "gold_overall").mean(0)
        worst = [int(p) for p in np.argsort(means) if means[p] < 0]
        named = "; ".join(f"{prompts[p]} ({means[p]:.2f})" for p in worst[:MOST_LOSSES])
        lines.append([row_title(runs.row), f"{len(worst)} of {len(prompts)}", named or "none"])
    return formatting.markdown(["row", "prompts", "largest losses in gold, mean over seeds"], lines)


def main() -> None:
    path = FOLDER / PAGE
    path.write_text(page(FOLDER), encoding="utf-8")
    sys.stdout.write(f"written: {path}\n")


if __name__ == "__main__":
    main()
