"""Curves over the updates of training: held-out scores, rewards of the rollouts, and the dynamics of an update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.report.data.rollouts import HERE
from bench.report.data.selection import Row
from bench.report.figures import plots
from bench.report.figures.facets import Line, merge_equal, split
from bench.report.looks import Look, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (5.4, 3.2)
MOST_COLUMNS = 2


def drawn_lines(frame: pd.DataFrame, rows: Sequence[Row]) -> list[Line]:
    """The lines of a frame with the columns panel, source, row, update and mean; rows without numbers have none."""
    means = frame[frame["source"] == HERE].drop_duplicates(["panel", "row", "update"])
    wide = means.pivot(index=["panel", "update"], columns="row", values="mean")
    return merge_equal([row for row in rows if row.label in wide], wide)


def draw_curves(
    title: str,
    rows: Sequence[Row],
    frame: pd.DataFrame,
    titles: Mapping[str, str],
    names: Mapping[str, str],
    logarithmic: Sequence[str] = (),
) -> Figure:
    """Mean over seeds with its band, single seeds thin, in one panel per score and facet; names at the lines' ends.

    `frame`: one line per panel, source, row, seed and update, with value, mean, lo and hi. `titles` and `names` have
    the title and the y axis of each panel; those of `logarithmic` have a logarithmic one. Thin lines without a name
    are runs of another source. `rows` are all rows of the suite, which decide the looks.
    """
    facets, styles = split(drawn_lines(frame, rows)), looks(rows)
    columns = min(len(titles), MOST_COLUMNS)
    per_facet = -(-len(titles) // columns)
    figure, axes = plots.canvas(title, per_facet * len(facets), columns, SIZE, sharex=True)
    named: list[tuple[Axes, list[plots.End]]] = []
    for facet, block in zip(facets, axes.reshape(len(facets), -1), strict=True):
        for axis in block[len(titles) :]:
            axis.set_visible(False)
        for panel, axis in zip(titles, block, strict=False):
            axis.set_title(f"{facet.title}: {titles[panel]}" if facet.title else titles[panel], loc="left")
            axis.set_ylabel(names[panel])
            if panel in logarithmic:
                axis.set_yscale("log")
            named.append((axis, draw_lines(axis, facet.lines, frame[frame["panel"] == panel], styles)))
            if panel in logarithmic:
                plots.log_ticks(axis)
    for axis, ends in named:  # once the limits that panels share are known
        plots.name_ends(axis, ends, SIZE[1])
    return figure


def draw_lines(axis: Axes, lines: Sequence[Line], frame: pd.DataFrame, styles: Mapping[str, Look]) -> list[plots.End]:
    """Draw the lines that share a panel; their right ends with their names. `frame` is that of the panel."""
    axis.set_xlabel("updates")
    axis.tick_params(labelbottom=True)
    ends, shade = [], min(0.12, 0.3 / len(lines))  # bands of many rows do not add up to a wall
    for line in lines:
        own = frame[frame["row"] == line.row.label]
        here, style = own[own["source"] == HERE], styles[line.row.label]
        thin: dict[str, Any] = {"color": style.colour, "linewidth": 0.6, "linestyle": style.dash}
        for _, other in own[own["source"] != HERE].drop_duplicates(["source", "update"]).groupby("source"):
            axis.plot(other["update"], other["mean"], **{**thin, "linewidth": 1, "alpha": 0.6})
        for _, seed in here.groupby("seed"):
            axis.plot(seed["update"], seed["value"], alpha=0.35, **thin)
        means = here.drop_duplicates("update")
        known = means[means["mean"].notna()]
        if known.empty:
            continue
        look = plots.line_style(style)
        axis.plot(means["update"], means["mean"], markevery=plots.mark_every(len(means)), **look)
        axis.fill_between(means["update"], means["lo"], means["hi"], color=style.colour, alpha=shade, linewidth=0)
        ends.append(plots.End(known["update"].iloc[-1], known["mean"].iloc[-1], line.name, style.colour))
    return ends
