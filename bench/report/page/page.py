"""`bench report`: one HTML page with all results of a suite or a study, from its records: `report.html`.

The page needs no network and no script, and its bytes depend on the records, the stored gallery and matplotlib only.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup, escape

from bench.core.errors import BenchError
from bench.report.data.ablation import AblationLevel, levels_of
from bench.report.data.selection import Selection
from bench.report.figures import plots
from bench.report.figures.ablation import NAME as FOREST
from bench.report.figures.ablation import render_ablation_figure
from bench.report.figures.suite import FOLDER, render_figures
from bench.report.page.chapters import RUN_HEAD, Chapter, GridData, build_chapter
from bench.report.tables.ablation import AblationTable
from bench.report.tables.main import MainTable, load_main_table
from bench.store.files import write_text

PAGE, GALLERY = "report.html", "gallery.webp"
TEMPLATES = Path(__file__).parent / "templates"
MARKS = re.compile(r"\*\*(.+?)\*\*|`([^`]+)`", re.DOTALL)
TITLES = {
    "forest": "Gains over the base",
    "curves": "Learning curves",
    "rollouts": "Rewards of the rollouts",
    "dynamics": "Training dynamics",
    "noise": "Injected noise",
    "gradients": "Gradient norms",
}
ALTS = {
    "forest": "Forest plot: gain of each row over the base with its interval, one panel per score",
    "curves": "Line charts: gain over the base on held-out videos over the updates, one line and band per row",
    "rollouts": "Line charts: gain of rollout rewards since update 0 over the updates, one line and band per row",
    "dynamics": "Line charts: exploration, KL, gradient norm and ratio over the updates, one line and band per row",
    "noise": "Line chart: noise that each rollout step injects over its noise level, one line per row",
    "gradients": "Line charts of the gradient norm of each step over its noise level and bars of its spread",
    "gallery": "Animated grid of videos: one column per held-out prompt, the base on top, each trained policy below",
    FOREST: "Forest plot: gain over the base and change to the first level with intervals, one line per level",
}
CAPTIONS = {
    "gallery": "The same held-out prompts and the same noise for the base and for the trained policies of one seed; "
    "prompts are spread evenly over the list, not selected. Scores are under each video.",
}


class Picture(NamedTuple):
    """An image inside the page."""

    title: str
    uri: str
    """The image itself, as a data URI."""
    alt: str
    caption: str
    width: int | None = None
    """In CSS pixels of 1/96 inch, so that the text of all figures has one size; None if unknown."""


class Ablation(NamedTuple):
    """The part of the page that compares the levels of an ablation."""

    grids: Sequence[GridData]
    notes: Sequence[str]
    picture: Picture


def build_report(folder: Path, suites: Mapping[str, tuple[Path, Selection]]) -> Path:
    """Write `report.html` into `folder`, that of the suite or the study, atomically.

    `suites` has for each variant the folder of its records and the rows and seeds to show; the key is "" for a suite
    that is not a study. Records that do not compare are a `BenchError`, and nothing is written.
    """
    path = folder / PAGE
    write_text(path, render_page(folder, suites))
    return path


def render_page(folder: Path, suites: Mapping[str, tuple[Path, Selection]]) -> str:
    """The text of the page; the arguments are those of `build_report`."""
    tables = {variant: load_main_table(records, *selection) for variant, (records, selection) in suites.items()}
    levels = levels_of({variant: main.suite for variant, main in tables.items()})
    chapters = [
        _chapter(tables[variant], records, selection, page=folder) for variant, (records, selection) in suites.items()
    ]
    return _template(
        title=folder.name,
        study="" not in suites,
        nano=any(chapter.nano for chapter in chapters),
        chapters=chapters,
        ablation=_ablation(levels, folder.name) if levels else None,
        run_head=RUN_HEAD,
    )


def rich(text: str) -> Markup:
    """Escaped text with markup for `**bold**` and `code`, as the notes and cells of the tables use them."""
    out, end = [], 0
    for match in MARKS.finditer(text):
        bold, code = match.groups()
        out.append(escape(text[end : match.start()]))
        out.append(Markup("<strong>{}</strong>").format(bold) if bold else Markup("<code>{}</code>").format(code))
        end = match.end()
    return Markup("").join([*out, escape(text[end:])])


def _chapter(main: MainTable, records: Path, selection: Selection, page: Path) -> Chapter:
    pictures, notes = _pictures(main, records, selection)
    chapter = build_chapter(main, records, page)
    return dataclasses.replace(chapter, pictures=pictures, notes=[*chapter.notes, *notes])


def _pictures(main: MainTable, records: Path, selection: Selection) -> tuple[list[Picture], list[str]]:
    """Figures drawn from the records and the stored gallery; a note if the figures cannot be drawn."""
    rows = ", ".join(runs.row.name for runs in main.suite.rows)
    pictures, notes = [], []
    try:
        contents, captions = render_figures(records, *selection)
    except BenchError as error:  # a suite whose runs all failed still has a page
        notes.append(f"**No figures: {error}**")
    else:
        pictures = [
            _figure(TITLES[name], contents[f"{name}.png"], f"{ALTS[name]} ({rows}).", caption)
            for name, caption in captions.items()
        ]
    gallery = records / FOLDER / GALLERY
    if gallery.is_file():
        alt = f"{ALTS['gallery']} ({rows})."
        pictures.insert(0, Picture("Videos", _uri("webp", gallery.read_bytes()), alt, CAPTIONS["gallery"]))
    return pictures, notes


def _ablation(levels: Sequence[AblationLevel], title: str) -> Ablation:
    ablation = AblationTable(levels, title)
    contents, caption = render_ablation_figure(levels)
    groups = ", ".join(dict.fromkeys(level.group for level in levels))
    return Ablation(
        [GridData(name, *section) for name, section in ablation.sections.items()],
        ablation.notes,
        _figure(f"{title}: ablation", contents[f"{FOREST}.png"], f"{ALTS[FOREST]} ({groups}).", caption),
    )


def _figure(title: str, png: bytes, alt: str, caption: str) -> Picture:
    """A drawn figure; bytes 16 to 19 of a PNG are its width in pixels, at `plots.DPI` pixels per inch."""
    width = int.from_bytes(png[16:20], "big") * 96 // plots.DPI
    return Picture(title, _uri("png", png), alt, caption, width)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _template(**context: object) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["rich"] = rich
    return environment.get_template(PAGE).render(**context)
