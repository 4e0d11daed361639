"""The main result as a forest: gain of each row over the base, in the score that rows are compared by and in gold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.report import formatting
from bench.report.data.differences import tested_differences, tested_scores
from bench.report.data.records import SuiteRecords
from bench.report.data.selection import BASE, row_title
from bench.report.figures import plots
from bench.report.looks import looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Inches: width of a panel; height of a row's line, and of title and axis.
WIDTH, LINE, FRAME = 5.2, 0.3, 1.1


def forest_data(suite: SuiteRecords) -> pd.DataFrame:
    """One line per score and row with a known gain over the base, best row by the primary score first, open ones last.

    Columns: score, row, method, open, n_seeds, n_planned, gain, gain_lo, gain_hi, gain_p_holm. Score units;
    the p-value is that of the main table, adjusted for all of its tests.
    """
    tests = tested_differences(suite) if suite.rows else pd.DataFrame(columns=["score", "other", "row"])
    lines = []
    for runs in suite.rows:
        for score in tested_scores(suite):
            found = tests[(tests["score"] == score) & (tests["other"] == BASE) & (tests["row"] == runs.row.name)]
            if found.empty or pd.isna(found["diff"].iloc[0]):
                continue
            test = found.iloc[0]
            line: dict[str, Any] = {"score": score, "row": runs.row.label, "method": runs.row.method}
            line |= {"open": runs.row.open, "n_seeds": len(runs.finished), "n_planned": len(suite.seeds)}
            line |= {f"gain{end}": test[f"diff{end}"] for end in ("", "_lo", "_hi", "_p_holm")}
            lines.append(line)
    frame = pd.DataFrame(lines)
    return frame if frame.empty else _best_first(frame, suite)


def _best_first(frame: pd.DataFrame, suite: SuiteRecords) -> pd.DataFrame:
    """The lines of each score in the same order of rows: closed rows before open ones, each by the primary score."""
    sign = suite.metrics[suite.primary].sign
    primary = frame[frame["score"] == suite.primary].set_index("row")["gain"] * sign
    order = frame.assign(
        **{"_score": frame["score"] != suite.primary, "_gain": -frame["row"].map(primary).fillna(float("-inf"))}
    )
    return frame.loc[order.sort_values(["_score", "open", "_gain"], kind="stable").index].reset_index(drop=True)


def draw_forest(suite: SuiteRecords, frame: pd.DataFrame) -> Figure:
    """A panel per score: gain with its 95 % interval and its number; solid if significant; a rule above open rows."""
    scores, order = list(frame["score"].unique()), list(dict.fromkeys(frame["row"]))
    rows = {runs.row.label: runs.row for runs in suite.rows}
    styles = looks(rows.values())
    figure, axes = plots.canvas(
        plots.suite_title(suite), 1, len(scores), (WIDTH, LINE * len(order) + FRAME), sharey=True
    )
    for axis, score in zip(axes[0], scores, strict=True):
        axis.set_xlabel(f"gain over the base in {suite.metrics[score].title} (score units)")
        axis.locator_params(axis="x", nbins=6)
        own = frame[frame["score"] == score].set_index("row")
        digits = formatting.decimals(own, "gain")
        lines = {order.index(str(row)): line for row, line in own.iterrows()}
        for y, line in lines.items():
            draw_interval(axis, y, line, "gain", styles[order[y]]._asdict())
            name_right(axis, y, formatting.interval(line, "gain", digits))
        axis.axvline(0, color=plots.GREY, linewidth=1)
    opened = [rows[label].open for label in order]
    for axis in axes[0]:
        axis.grid(visible=False, axis="y")
        if any(opened) and not all(opened):
            axis.axhline(opened.index(True) - 0.5, color="black", linewidth=0.8)
    axes[0][0].set_yticks(range(len(order)), [_name(rows[label], suite) for label in order])
    axes[0][0].set_ylim(len(order) - 0.4, -0.6)
    return figure


def _name(row: Any, suite: SuiteRecords) -> str:
    """Title of a row; with its seeds if some are missing."""
    runs = next(runs for runs in suite.rows if runs.row.label == row.label)
    done = len(runs.finished)
    return row_title(row) + ("" if done == len(suite.seeds) else f" ({done}/{len(suite.seeds)} seeds)")


def draw_interval(axis: Axes, y: float, line: pd.Series[Any], name: str, look: Mapping[str, Any]) -> None:
    """The mean and the interval of the columns `name`, `_lo`, `_hi`; solid if `_p_holm` is significant, else hollow.

    `look` is that of `looks.Look`; its line and its filling are not used. Without an interval: the mean alone.
    """
    if pd.notna(line[f"{name}_lo"]):
        axis.hlines(y, line[f"{name}_lo"], line[f"{name}_hi"], color=look["colour"], linewidth=1.6)
    face = look["colour"] if formatting.is_significant(line, name) else "white"
    axis.plot(line[name], y, linestyle="none", color=look["colour"], marker=look["marker"], markerfacecolor=face)


def name_right(axis: Axes, y: float, text: str) -> None:
    """A text to the right of the panel, at the height of line y."""
    place = axis.get_yaxis_transform()
    axis.annotate(text, (1.02, y), xycoords=place, va="center", fontsize=plots.SMALL, annotation_clip=False)
