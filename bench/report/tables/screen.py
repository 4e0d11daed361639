"""Tables for a terminal: narrow enough for it, the sentence that matters at the end."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from bench.report import formatting
from bench.report.data.badges import badges
from bench.report.data.headline import headline
from bench.report.tables.ablation import AblationTable
from bench.report.tables.main import LEGEND, NOTES, VERDICT, MainTable, checks_line
from bench.report.tables.sections import AGGREGATES, JOINED, RUNS, VIEWS, Table

WIDTH = 100
"""Columns of the text."""
#: Sections of main.md that the screen leaves out.
LEFT_OUT = (
    VIEWS,
    "Differences of single scores",
    AGGREGATES,
    "Further metrics",
    "What one run spent",
    RUNS,
)
LEAST_NAME = 15
"""Letters of a name that are always shown."""
ABLATION_SECTIONS = ("Scores", "Differences")
#: Number of columns that each part of a section starts with, if it is not one.
KEYS = {"Beside the stored reference": 2}


def main_screen(main: MainTable, command: Callable[[Sequence[int]], str], file: str) -> str:
    """The text of `bench table` for one suite: tables, notes, words, and what the runs show.

    `command` gives the user's `bench run` with other seeds, `file` is the path of the whole table.
    """
    sections = {title: section for title, section in main.sections.items() if title not in LEFT_OUT}
    parts = [f"# {main.suite.name}: main table"]
    for title, section in sections.items():
        lead = [textwrap.fill(main.leads[title], WIDTH)] if title in main.leads else []
        parts += [f"## {title}", *lead, narrow(section, keys=KEYS.get(title, 1))]
    parts += [f"## {NOTES}", wrapped(main.notes(LEFT_OUT))]
    sentences, seeds = main.verdict
    shown = "\n".join([*parts, *sentences])
    parts += [f"## {LEGEND}", wrapped(main.legend(shown))]
    left_out = [title for title in main.sections if title in LEFT_OUT]
    parts.append(wrapped([f"In {file} only: {', '.join(left_out)}."]))
    top = [textwrap.fill(text, WIDTH) for text in (headline(main), checks_line(badges(main)))]
    parts += [f"## {VERDICT}", wrapped(sentences), *top]
    if seeds:
        parts.append(f"For more seeds:\n\n    {command(seeds)}")
    return "\n\n".join(parts) + "\n"


def ablation_screen(ablation: AblationTable, file: str) -> str:
    """The text of `bench table` for an ablation; `file` is the path of the whole table."""
    shown = {name: section for name, section in ablation.sections.items() if name in ABLATION_SECTIONS}
    parts = [f"# {ablation.title}: ablation"]
    for name, section in shown.items():
        parts += [f"## {name}", narrow(section, keys=2)]
    parts += [f"## {NOTES}", wrapped(ablation.notes)]
    words = ablation.legend("\n".join([*parts, *ablation.verdict]))
    parts += [f"## {LEGEND}", wrapped(words)]
    left_out = [name for name in ablation.sections if name not in shown]
    parts.append(wrapped([f"In {file} only: {', '.join(left_out)}."]))
    parts += [f"## {VERDICT}", wrapped(ablation.verdict)]
    return "\n\n".join(parts) + "\n"


def narrow(section: Table, keys: int = 1, width: int = WIDTH) -> str:
    """Markdown tables of at most `width` columns that together have all columns; each starts with the first `keys`.

    Long names in the first columns are cut in their middle. A table is wider only if one group of columns that belong
    together is nearly as wide itself.
    """
    heads, rows = section
    groups: list[list[int]] = []
    for index in range(keys, len(heads)):
        if groups and heads[index] in JOINED:
            groups[-1].append(index)
        else:
            groups.append([index])
    lead = list(range(keys))
    widest = max((_width(heads, rows, group) for group in groups), default=0)
    most = max(LEAST_NAME, (width - widest) // keys - len(" |  "))
    rows = [[*(_cut(cell, most) for cell in row[:keys]), *row[keys:]] for row in rows]
    tables: list[list[int]] = [[]]
    for group in groups:
        fits = _width(heads, rows, [*lead, *tables[-1], *group]) <= width
        if fits or not tables[-1]:
            tables[-1] += group
        else:
            tables.append(group)
    return "\n\n".join(_part(heads, rows, [*lead, *columns]) for columns in tables)


def _cut(name: str, most: int) -> str:
    """The name, or its start and its end with at most so many letters."""
    half = (most - 3) // 2
    return name if len(name) <= most else f"{name[: most - 3 - half]}...{name[-half:]}"


def _part(heads: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]) -> str:
    return formatting.markdown([heads[index] for index in columns], [[row[i] for i in columns] for row in rows])


def _width(heads: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]) -> int:
    return max(map(len, _part(heads, rows, columns).splitlines()))


def wrapped(lines: Sequence[str], width: int = WIDTH) -> str:
    """A list whose lines have at most `width` columns; a word that is longer stays whole."""
    return "\n".join(
        textwrap.fill(
            line,
            width,
            initial_indent="- ",
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in lines
    )
