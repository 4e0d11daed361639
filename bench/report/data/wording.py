"""Words and short texts of the verdicts: lists, sizes, and differences with their intervals and p-values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from bench.report import formatting

#: Items that one list of a verdict has.
MOST_LISTED = 3


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def counted(tests: int) -> str:
    """ "1 test", "6 tests"."""
    return f"{tests} test{'' if tests == 1 else 's'}"


def interval_text(row: pd.Series[Any], name: str, sign: int, digits: int) -> str:
    """`0.34 [0.16, 0.53]`: a difference or, for the sign -1, its negative, with its interval."""
    lo, hi = sorted(sign * row[f"{name}{end}"] for end in ("_lo", "_hi"))
    return formatting.interval(pd.Series({"x": sign * row[name], "x_lo": lo, "x_hi": hi}), "x", digits)


def difference_text(row: pd.Series[Any], name: str, sign: int, digits: int) -> str:
    """`0.34 [0.16, 0.53], p 0.008`: `interval_text` and the p-value after Holm."""
    return f"{interval_text(row, name, sign, digits)}, p {formatting.p_value(row[f'{name}_p_holm'])}"


def undecided_text(row: pd.Series[Any], name: str, digits: int) -> str:
    """`0.02 [-0.28, 0.31], p 0.900; at most ±0.27 apart`: what a difference without significance does show."""
    return f"{difference_text(row, name, 1, digits)}; at most ±{formatting.effect(row[f'{name}_margin'])} apart"


def sign_of(row: pd.Series[Any], name: str) -> int:
    """1 for a difference that is significantly above 0, -1 for one below 0, else 0."""
    return (1 if row[f"{name}_lo"] > 0 else -1) if formatting.is_significant(row, name) else 0


def is_exploratory(row: pd.Series[Any], name: str) -> bool:
    """Whether a difference is below 0.05 in its own test, but does not survive the correction."""
    return bool(row[f"{name}_p"] < formatting.ALPHA) and not formatting.is_significant(row, name)


def exploratory_sentence(title: str, differences: Sequence[str]) -> list[str]:
    """The sentence on the differences of one score that are `is_exploratory`; none without any."""
    reason = "exploratory (p below 0.05 as it is, not after Holm over the whole table)"
    return [f"{title}: {reason}: {'; '.join(differences)}."] if differences else []


def span(values: Iterable[float], of: str, before: str = "", after: str = "") -> str:
    """`0.28`, or `0.28 to 0.82, depending on the pair` if they differ; `before` and `after` mark the numbers."""
    sizes = sorted(values)
    least, most = f"{before}{formatting.effect(sizes[0])}", f"{before}{formatting.effect(sizes[-1])}"
    return f"{least}{after}" if least == most else f"{least} to {most}{after}, depending on the {of}"


def first_items(items: Sequence[str], what: str, place: str) -> list[str]:
    """All items, or the first `MOST_LISTED`, how many more there are, and in which section of the table they stand."""
    rest = len(items) - MOST_LISTED
    return [*items[:MOST_LISTED], f"{rest} more {what}, in {place}"] if rest > 1 else [*items]
