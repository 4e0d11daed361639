"""Every row of a suite against every other one: the answer to "is A better than B?"."""

from __future__ import annotations

from itertools import combinations

import pandas as pd

from bench.report import formatting
from bench.report.data.records import Suite
from bench.report.data.statistics import holm, paired_difference

MOST_ROWS = 6
"""With more rows than this the pairs are left out: the correction for so many comparisons would hide all of them."""
COLUMNS = {"overall": "Overall", "gold_overall": "gold Overall"}


def pairs(suite: Suite) -> pd.DataFrame:
    """One line per pair of trained rows: `row`, `other`, and `<column>_diff` with `_lo`, `_hi`, `_p`, `_p_holm`.

    Differences row - other, paired by prompt and by seed over the seeds that both finished; 95 % intervals; Holm over
    all pairs of one column. Empty for more than `MOST_ROWS` rows.
    """
    lines = []
    for one, other in combinations(suite.rows if len(suite.rows) <= MOST_ROWS else [], 2):
        line: dict[str, object] = {"row": one.row.label, "other": other.row.label}
        common = sorted(set(one.seeds) & set(other.seeds))
        for column in COLUMNS:
            x, y = one.matrix(column, common), other.matrix(column, common)
            found = None if x is None or y is None else paired_difference(x, y)
            values = (found.mean, found.lo, found.hi, found.p) if found else (float("nan"),) * 4
            line |= dict(zip((f"{column}_diff{end}" for end in ("", "_lo", "_hi", "_p")), values, strict=True))
        lines.append(line)
    table = pd.DataFrame(lines)
    for column in COLUMNS if lines else ():
        table[f"{column}_diff_p_holm"] = holm(table[f"{column}_diff_p"].tolist())
    return table


def pairs_section(suite: Suite) -> tuple[list[str], list[list[str]]]:
    """The pairs as a table's head and lines; none with fewer than two rows or more than `MOST_ROWS`."""
    table = pairs(suite)
    if table.empty:
        return [], []
    digits = {column: formatting.decimals(table, f"{column}_diff") for column in COLUMNS}
    lines = []
    for _, row in table.iterrows():
        line = [f"{row['row']} - {row['other']}"]
        for column in COLUMNS:
            line.append(formatting.difference_cell(row, f"{column}_diff", digits[column]))
            line.append(formatting.p_value(row[f"{column}_diff_p_holm"]))
        lines.append(line)
    return ["Pair", *[head for name in COLUMNS.values() for head in (name, "p (Holm)")]], lines
