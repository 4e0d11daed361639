"""Numbers as text such as `0.81 [0.74, 0.88]`, Markdown tables with aligned columns, LaTeX tables with booktabs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

MISSING = "n/a"
#: Significance level of the adjusted p-values.
ALPHA = 0.05

_TEX = {
    **{"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"},
    **{"↓": r"$\downarrow$", "†": r"$\dagger$"},
    "`": "",  # Markdown's code marks
    **{"[": "{[}", "]": "{]}"},  # LaTeX reads [..] after the end of a line as its option
}


def decimals(table: pd.DataFrame, name: str) -> int:
    """Decimals of a column, 2 to 4: enough for two digits of the half-width of its narrowest interval."""
    widths = [hi - lo for lo, hi in zip(table[f"{name}_lo"], table[f"{name}_hi"], strict=True) if hi > lo]
    return 2 if not widths else min(4, max(2, 1 - math.floor(math.log10(min(widths) / 2))))


def number(value: Any, digits: int = 2) -> str:
    """A number, or n/a if it is missing; -0.00 becomes 0.00."""
    if value is None or pd.isna(value):
        return MISSING
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def interval(row: pd.Series[Any], name: str, digits: int) -> str:
    """`mean [lo, hi]`; `mean [n/a]` if the interval is unknown."""
    if pd.isna(row[name]):
        return MISSING
    if pd.isna(row[f"{name}_lo"]):
        return f"{number(row[name], digits)} [{MISSING}]"
    return f"{number(row[name], digits)} [{number(row[f'{name}_lo'], digits)}, {number(row[f'{name}_hi'], digits)}]"


def is_bold(row: pd.Series[Any], name: str) -> bool:
    """Whether a difference is set in bold: its interval excludes 0 and its p-value after Holm is below 0.05."""
    lo, hi, p = row[f"{name}_lo"], row[f"{name}_hi"], row[f"{name}_p_holm"]
    return bool((lo > 0 or hi < 0) and p < ALPHA)


def difference_cell(row: pd.Series[Any], name: str, digits: int) -> str:
    """A difference with its interval, in bold if `is_bold`."""
    text = interval(row, name, digits)
    return f"**{text}**" if is_bold(row, name) else text


def p_value(value: Any) -> str:
    """A p-value with three decimals, or `<0.001`."""
    if value is None or pd.isna(value):
        return MISSING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def count(value: Any) -> str:
    """A whole number with thousands separated by commas."""
    return MISSING if value is None or pd.isna(value) else f"{int(value):,}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: text left, numbers right."""
    align = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(rows, headers=header, tablefmt="pipe", disable_numparse=True, colalign=align)


def tex(text: str) -> str:
    """Plain or bold cell text, escaped for LaTeX."""
    if text.startswith("**") and text.endswith("**"):
        return rf"\textbf{{{tex(text[2:-2])}}}"
    return "".join(_TEX.get(char, char) for char in text)


def tex_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str, notes: Sequence[str]
) -> str:
    """A booktabs table with its notes below; needs \\usepackage{booktabs}."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(tex(cell) for cell in cells) + r" \\"

    body = [line(header), r"\midrule", *[line(row) for row in rows]]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex(caption)}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *[rf"\par\footnotesize {tex(note)}" for note in notes],
            r"\end{table}",
            "",
        ]
    )
