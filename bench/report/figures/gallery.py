"""`bench gallery`: kept videos of the base and of the rows on prompts of gain and of loss, as a strip and animated."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from bench.core.errors import BenchError
from bench.report.data.loading import load_records
from bench.report.data.records import RowRuns, Run, SuiteRecords
from bench.report.data.selection import BASE, Row, method_title, row_title
from bench.store.files import write_files
from bench.store.videos import KeptVideos, read_videos

STRIP, ANIMATION = "gallery.png", "gallery.webp"
"""The files: first, middle and last frame of each clip, and the clips played `PLAYS` times."""
PLAYS = 3
"""An animation without an end cannot be stopped by a reader (WCAG 2.2.2)."""
CELL, GAP, NAMES = 168, 8, 130
"""Width of a column, space between columns and lines, and width of the names of the rows, pixels."""
FONT, LINE = 12, 15
"""Height of the font and of a line of text, pixels."""
GAIN_COLOUR, LOSS_COLOUR, TEXT = "#1B7837", "#B2182B", "#222222"

Frames = npt.NDArray[np.uint8]
"""[frames, height, width, 3]."""


class Cell(NamedTuple):
    """One video with its score."""

    frames: Frames
    score: float
    change: float | None
    """Difference to the base's video of the same prompt and noise; None for the base."""
    sign: int
    """1 if more is better, -1 if less is better."""


@dataclass(frozen=True)
class Gallery:
    """What the pictures show."""

    title: str
    """How the prompts were chosen, in one sentence."""
    heads: list[str]
    """Why each prompt is shown, and its text."""
    lines: dict[str, list[Cell]]
    """Name of a row to its videos, one per prompt."""
    fps: float


def build_gallery(folder: Path, rows: Sequence[Row], seeds: Sequence[int], seed: int, prompts: int = 6) -> list[Path]:
    """Write both files to `figures/` of a suite's records; `seed` is the one whose videos are shown.

    A suite without kept videos is a `BenchError`.
    """
    gallery = load_gallery(load_records(folder, rows, seeds), seed, prompts)
    contents: dict[str, str | bytes] = {STRIP: _strip(gallery), ANIMATION: _animation(gallery)}
    return list(write_files(folder / "figures", contents).values())


def chosen_prompts(changes: pd.Series[float], count: int) -> dict[int, str]:
    """Prompt index to the reason for which it is shown, in the order of the columns.

    A third each are those of the largest gain, those around the median and those of the largest loss (or of the
    smallest gain, where no prompt loses). `changes`: by prompt index, in the direction of better.
    """
    ordered = changes.sort_values(ascending=False, kind="stable")
    count = min(count, len(ordered))
    ends = count // 3
    middle = (len(ordered) - (count - 2 * ends)) // 2
    places = [*range(ends), *range(middle, middle + count - 2 * ends), *range(len(ordered) - ends, len(ordered))]
    last = "largest loss" if len(ordered) and ordered.iloc[-1] < 0 else "smallest gain"
    names = ["largest gain"] * ends + ["median"] * (count - 2 * ends) + [last] * ends
    return {int(ordered.index[place]): name for place, name in zip(places, names, strict=True)}


def load_gallery(suite: SuiteRecords, seed: int, prompts: int) -> Gallery:
    """The gallery of one suite: the base, and the rows that have finished with this seed."""
    shown = {runs.row.label: run for runs in suite.rows for run in runs.finished if run.record.seed == seed}
    if suite.base is None or not shown:
        raise BenchError(
            f"{suite.folder} has no base, or no finished run of seed {seed}: run `bench run` on it first."
        )
    column, base = suite.metrics[suite.primary], suite.base
    best, changes = _best(suite, base, column.sign)
    chosen = chosen_prompts(changes, prompts)
    titles = {runs.row.label: row_title(runs.row) for runs in suite.rows}
    runs = {method_title(BASE): base, **{titles[label]: run for label, run in shown.items()}}
    texts = dict(zip(base.clips.index.get_level_values(0), base.clips.index.get_level_values(1), strict=True))
    return Gallery(
        f"{column.title} of each video, and its change to the base's (seed {seed}). Prompts: "
        f"{', '.join(dict.fromkeys(chosen.values()))} of {titles[best.row.label]}, mean over {len(best.finished)} "
        "seed(s).",
        [f"{reason}, {changes[p]:+.2f}: {texts[p]}" for p, reason in chosen.items()],
        {name: [_cell(run, base, suite.primary, p, column.sign) for p in chosen] for name, run in runs.items()},
        _kept(base).index["fps"],
    )


def _best(suite: SuiteRecords, base: Run, sign: int) -> tuple[RowRuns, pd.Series[float]]:
    """The row of the best mean, and its change to the base by prompt index, in the direction of better."""
    name = suite.primary
    changes = {
        runs.row.label: sign * (sum(run.cells[name] for run in runs.finished) / len(runs.finished) - base.cells[name])
        for runs in suite.rows
        if runs.finished
    }
    best = max((runs for runs in suite.rows if runs.finished), key=lambda runs: changes[runs.row.label].mean())
    return best, changes[best.row.label]


def _kept(run: Run) -> KeptVideos:
    kept = read_videos(run.folder)
    if kept is None:
        raise BenchError(f"{run.folder} keeps no videos: set evaluation.keep_videos, and run the suite.")
    return kept


def _cell(run: Run, base: Run, column: str, prompt: int, sign: int) -> Cell:
    scores = [
        float(each.clips[column].xs((prompt, 0), level=("prompt_index", "video")).iloc[0]) for each in (run, base)
    ]
    change = None if run is base else scores[0] - scores[1]
    return Cell(_kept(run).frames(prompt, 0), scores[0], change, sign)


# drawing ------------------------------------------------------------------------------------------------------
def _strip(gallery: Gallery) -> bytes:
    def stills(frames: Frames) -> Image.Image:
        places = [0, len(frames) // 2, len(frames) - 1]
        pictures = [_scaled(frames[place], CELL // 3 - 2) for place in places]
        strip = Image.new("RGB", (CELL, pictures[0].height), "white")
        for number, picture in enumerate(pictures):
            strip.paste(picture, (number * (CELL // 3), 0))
        return strip

    file = io.BytesIO()
    _page(gallery, {name: [stills(cell.frames) for cell in cells] for name, cells in gallery.lines.items()}).save(
        file, "PNG", optimize=True
    )
    return file.getvalue()


def _animation(gallery: Gallery) -> bytes:
    count = max(len(cell.frames) for cells in gallery.lines.values() for cell in cells)
    pages = [
        _page(
            gallery, {name: [_scaled(cell.frames[f], CELL) for cell in cells] for name, cells in gallery.lines.items()}
        )
        for f in range(count)
    ]
    file = io.BytesIO()
    options = {"duration": round(1000 / gallery.fps), "loop": PLAYS, "quality": 80, "method": 6}
    pages[0].save(file, "WEBP", save_all=True, append_images=pages[1:], **options)
    return file.getvalue()


def _scaled(frame: npt.NDArray[np.uint8], width: int) -> Image.Image:
    """The frame enlarged by a whole factor, or made smaller, to at most this width."""
    picture = Image.fromarray(frame)
    if picture.width <= width:
        factor = width // picture.width
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)


def _page(gallery: Gallery, pictures: Mapping[str, list[Image.Image]]) -> Image.Image:
    """One picture: names on the left, prompts on top, one line per row with a score below each video."""
    font = ImageFont.load_default(FONT)
    columns, height = len(gallery.heads), max(each.height for line in pictures.values() for each in line)
    width = NAMES + columns * (CELL + GAP)
    title = _wrapped(gallery.title, width - 2 * GAP, font)
    heads = [_wrapped(head, CELL, font) for head in gallery.heads]
    names = {name: _wrapped(name, NAMES - 2 * GAP, font) for name in pictures}
    head_top = GAP + LINE * (title.count("\n") + 1) + GAP
    top = head_top + LINE * max(head.count("\n") + 1 for head in heads) + GAP
    step = height + LINE + GAP
    page = Image.new("RGB", (width, top + step * len(pictures)), "white")
    draw = ImageDraw.Draw(page)

    def write(at: tuple[int, int], text: str, colour: str = TEXT) -> None:
        draw.multiline_text(at, text, fill=colour, font=font, spacing=LINE - FONT)

    write((GAP, GAP), title)
    for column, head in enumerate(heads):
        write((NAMES + column * (CELL + GAP), head_top), head)
    for number, (name, line) in enumerate(pictures.items()):
        y = top + number * step
        write((GAP, y), names[name])
        for column, (picture, cell) in enumerate(zip(line, gallery.lines[name], strict=True)):
            x = NAMES + column * (CELL + GAP)
            page.paste(picture, (x, y))
            score = f"{cell.score:.2f}"
            write((x, y + height + 1), score)
            if cell.change is not None:
                better = GAIN_COLOUR if cell.change * cell.sign >= 0 else LOSS_COLOUR
                write((x + round(font.getlength(score + "  ")), y + height + 1), f"{cell.change:+.2f}", better)
    return page


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text in lines of at most `width` pixels, broken between words."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)
