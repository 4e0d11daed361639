"""Numbers as text such as `0.81 [0.74, 0.88]`, and Markdown tables with aligned columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

MISSING = "n/a"
OPEN_MARK = " (open)"
"""Ends the name of a row of the open division. No label has a space, so it is found again in a cell."""
STAR = " *"
"""Ends a cell whose difference is significant."""
#: Significance level of the adjusted p-values.
ALPHA = 0.05
#: A limit that is 0 with so many decimals is printed as 0.
MOST_DECIMALS = 6


class Cell(str):
    """Text of a number in a table, together with the number itself, by which a page sorts."""

    __slots__ = ("value",)
    value: float

    def __new__(cls, text: str, value: Any) -> Cell:
        """`text` with the number that it shows."""
        cell = super().__new__(cls, text)
        cell.value = float(value)
        return cell


def decimals(table: pd.DataFrame, name: str) -> int:
    """Decimals of a column, 2 to 4: enough for two digits of the half-width of its narrowest interval."""
    widths = [hi - lo for lo, hi in zip(table[f"{name}_lo"], table[f"{name}_hi"], strict=True) if hi > lo]
    return 2 if not widths else min(4, max(2, 1 - math.floor(math.log10(min(widths) / 2))))


def number(value: Any, digits: int = 2) -> str:
    """A number, or n/a if it is missing; -0.00 becomes 0.00."""
    if value is None or pd.isna(value):
        return MISSING
    text = f"{value:.{digits}f}"
    return Cell(text.removeprefix("-") if float(text) == 0 else text, value)


def interval(row: pd.Series[Any], name: str, digits: int) -> str:
    """`mean [lo, hi]`; `mean [n/a]` if the interval is unknown.

    A limit other than 0 that would be printed as 0 gets more digits, up to `MOST_DECIMALS`, and the others with it:
    its sign says whether the interval contains 0.
    """
    mean, limits = row[name], (row[f"{name}_lo"], row[f"{name}_hi"])
    if pd.isna(mean):
        return MISSING
    if pd.isna(limits[0]):
        return Cell(f"{number(mean, digits)} [{MISSING}]", mean)
    while digits < MOST_DECIMALS and any(limit != 0 and float(number(limit, digits)) == 0 for limit in limits):
        digits += 1
    return Cell(f"{number(mean, digits)} [{number(limits[0], digits)}, {number(limits[1], digits)}]", mean)


def is_significant(row: pd.Series[Any], name: str) -> bool:
    """Whether the interval of a difference excludes 0, and its p-value after Holm is below 0.05."""
    lo, hi, p = row[f"{name}_lo"], row[f"{name}_hi"], row[f"{name}_p_holm"]
    return bool((lo > 0 or hi < 0) and p < ALPHA)


def marked(text: str, is_best: bool = False, is_starred: bool = False) -> str:
    """A cell: in bold if it is the best of its column, with a star if its difference is significant."""
    shown = f"{f'**{text}**' if is_best else text}{STAR if is_starred else ''}"
    return Cell(shown, text.value) if isinstance(text, Cell) else shown


def effect(value: Any) -> str:
    """A positive size with two decimals, or with two digits if it is smaller than 0.1: never 0.00."""
    if value is None or pd.isna(value):
        return MISSING
    return Cell(f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}", value)


def p_value(value: Any) -> str:
    """A p-value with three decimals, or `<0.001`."""
    if value is None or pd.isna(value):
        return MISSING
    return Cell("<0.001" if value < 0.001 else f"{value:.3f}", value)


def count(value: Any) -> str:
    """A whole number with thousands separated by commas."""
    return MISSING if value is None or pd.isna(value) else Cell(f"{int(value):,}", value)


def row_name(row: pd.Series[Any]) -> str:
    """Name of a line of main.csv in tables and texts: its label, marked if it is of the open division."""
    return f"{row['row']}{OPEN_MARK if row['division'] == 'open' else ''}"


def first_open(rows: Sequence[Sequence[str]]) -> int:
    """Index of the first line of the open division, above which a table has a rule; 0: no rule."""
    return next((index for index, row in enumerate(rows) if OPEN_MARK in row[0]), 0)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: text left, numbers right; rows of the open division below a rule."""
    align = ["left"] + ["right"] * (len(header) - 1)
    text = tabulate(rows, headers=header, tablefmt="pipe", disable_numparse=True, colalign=align)
    if not (above := first_open(rows)):
        return text
    lines = text.splitlines()
    return "\n".join([*lines[: 2 + above], lines[1].replace(":", "-"), *lines[2 + above :]])


def csv(frame: pd.DataFrame) -> str:
    """The frame as a stored table has it: numbers with 8 significant digits."""
    text: str = frame.to_csv(index=False, float_format="%.8g", lineterminator="\n")
    return text
