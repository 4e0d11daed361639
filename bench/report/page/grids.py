"""Tables of a page: their cells with the numbers by which they are sorted, and the marks of their texts as HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from bench.report.formatting import Cell
from bench.report.tables.sections import Table

MARKS = re.compile(r"\*\*(.+?)\*\*|`([^`]+)`", re.DOTALL)
#: The interval of a number, and what a test says of it: a page shows them in lines of their own.
BELOW = re.compile(r" (\[[^\]]+\]|\(p [^)]+\))")


@dataclass(frozen=True)
class Grid:
    """A table that can be sorted."""

    name: str
    """Unique in the page."""
    title: str
    heads: Sequence[tuple[str, str]]
    """Text of each head, and how its column is sorted: "number" or "text"."""
    rows: Sequence[Sequence[str]]
    """Cells; a number is a `Cell`."""


def slug(text: str) -> str:
    """A name for an address: lower case, with dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def grid(title: str, table: Table, prefix: str = "") -> Grid:
    """A section of a table."""
    heads, rows = table
    sorts = ["number" if any(isinstance(row[k], Cell) for row in rows) else "text" for k in range(len(heads))]
    return Grid(slug(f"{prefix} {title}"), title, list(zip(heads, sorts, strict=True)), rows)


def rich(text: str) -> Markup:
    """Escaped text with markup for `**bold**` and `code`, as the notes and cells of the tables use them."""
    out, end = [], 0
    for match in MARKS.finditer(text):
        bold, code = match.groups()
        out.append(escape(text[end : match.start()]))
        out.append(Markup("<strong>{}</strong>").format(bold) if bold else Markup("<code>{}</code>").format(code))
        end = match.end()
    return Markup("").join([*out, escape(text[end:])])


def cell(text: str) -> Markup:
    """`rich` text; the interval of a number and its test stand below it."""
    marked = BELOW.sub(lambda match: f" \x00{match[1]}\x01", text) if isinstance(text, Cell) else text
    return Markup(str(rich(marked)).replace("\x00", "<small>").replace("\x01", "</small>"))  # noqa: S704 - escaped by rich


def value(text: str) -> str | None:
    """The number of a cell with all its digits; None for a text."""
    return f"{text.value:.8g}" if isinstance(text, Cell) else None
