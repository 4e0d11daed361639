"""Which rows share a panel: rows that look equal are one line, and no panel has more than `MOST_LINES` lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from bench.report.data.selection import Row, method_title, row_title

MOST_LINES = 6
#: Lines that are nowhere further apart than this share of the range of all lines are one line to the eye.
SAME = 1e-3


class Line(NamedTuple):
    """A row that is drawn, and the rows of its method that would be drawn over it."""

    row: Row
    others: tuple[Row, ...] = ()

    @property
    def name(self) -> str:
        """Title of the row, with the number of the others."""
        return row_title(self.row) + (f" and {len(self.others)} more" if self.others else "")


class Facet(NamedTuple):
    """Lines that share a panel."""

    title: str
    """Name of the method; "" if all lines share one panel."""
    lines: list[Line]


def merge_equal(rows: Sequence[Row], values: pd.DataFrame) -> list[Line]:
    """The lines of the rows, in order. `values`: a column per row label; level 0 of the index is the panel.

    Rows of one method are one line if in every panel their values are within `SAME` of the panel's range.
    """
    tolerance = _ranges(values) * SAME
    lines: list[Line] = []
    for row in rows:
        for number, line in enumerate(lines):
            if line.row.method == row.method and _close(values[line.row.label], values[row.label], tolerance):
                lines[number] = line._replace(others=(*line.others, row))
                break
        else:
            lines.append(Line(row))
    return lines


def _ranges(values: pd.DataFrame) -> pd.Series[float]:
    """Range of all values of the panel that each line of `values` belongs to."""
    panels = values.groupby(level=0).agg(["min", "max"])
    low, high = (panels.xs(end, axis=1, level=1) for end in ("min", "max"))
    spans = pd.DataFrame(high).max(axis=1) - pd.DataFrame(low).min(axis=1)
    return pd.Series(spans.loc[values.index.get_level_values(0)].to_numpy(), values.index)


def _close(a: pd.Series[float], b: pd.Series[float], tolerance: pd.Series[float]) -> bool:
    return bool((((a - b).abs() <= tolerance) | (a.isna() & b.isna())).all())


def split(lines: Sequence[Line]) -> list[Facet]:
    """One facet if the lines fit into one panel, else facets by method of at most `MOST_LINES` lines each."""
    if len(lines) <= MOST_LINES:
        return [Facet("", list(lines))]
    methods: dict[str, list[Line]] = {}
    for line in lines:
        methods.setdefault(line.row.method, []).append(line)
    return [
        Facet(method_title(method) + (f", part {start // MOST_LINES + 1}" if len(own) > MOST_LINES else ""), part)
        for method, own in methods.items()
        for start in range(0, len(own), MOST_LINES)
        for part in [own[start : start + MOST_LINES]]
    ]


def merged_sentence(lines: Sequence[Line]) -> str:
    """The rows that stand behind each line of several rows, as a sentence with a blank before it; "" without any."""
    parts = [f"{line.name}: {', '.join(map(_short, line.others))}" for line in lines if line.others]
    return f" Equal lines are drawn once ({'; '.join(parts)})." if parts else ""


def _short(row: Row) -> str:
    """Title of a row beside another one of its method."""
    return row_title(row).removeprefix(f"{method_title(row.method)}, ")
