"""The static figures of a page without vl-convert-python: those of `bench figures`."""

from __future__ import annotations

import base64
from typing import NamedTuple

from bench.core.errors import BenchError
from bench.report.figures import plots
from bench.report.figures.suite import render_figures
from bench.report.page.subject import Subject

#: Figure to the section that shows it.
SECTIONS = {
    **{"forest": "verdict", "curves": "curves", "rollouts": "curves", "dynamics": "curves"},
    **{"noise": "mechanism", "gradients": "mechanism"},
}


class Picture(NamedTuple):
    """An image inside the page."""

    section: str
    uri: str
    """The image itself, as a data URI."""
    alt: str
    caption: str
    width: int
    """In CSS pixels of 1/96 inch, so that the text of all figures has one size."""


def pictures(subject: Subject) -> tuple[list[Picture], list[str]]:
    """The figures of every suite of the page, and why some cannot be drawn."""
    found, problems = [], []
    for variant, main in subject.tables.items():
        suite = main.suite
        rows = [runs.row for runs in suite.rows]
        try:
            contents, captions = render_figures(suite.folder, rows, suite.seeds)
        except BenchError as error:  # a suite whose runs all failed still has a page
            problems.append(f"No figures: {error}")
            continue
        names = ", ".join(row.name for row in rows)
        found += [
            _picture(
                SECTIONS[name],
                contents[f"{name}.png"],
                f"Figure {name}{f' of {variant}' if variant else ''}: {names}.",
                caption,
            )
            for name, caption in captions.items()
        ]
    return found, problems


def _picture(section: str, png: bytes, alt: str, caption: str) -> Picture:
    """A drawn figure; bytes 16 to 19 of a PNG are its width in pixels, at `plots.DPI` pixels per inch."""
    width = int.from_bytes(png[16:20], "big") * 96 // plots.DPI
    return Picture(section, f"data:image/png;base64,{base64.b64encode(png).decode()}", alt, caption, width)
