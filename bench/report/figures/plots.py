"""Style of the figures: the canvas, the look of a row's line, names at the ends of lines, legends, files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from bench.report import formatting
from bench.report.data.metrics import REWARD, SUMS
from bench.report.data.records import SuiteRecords
from bench.report.looks import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


GREY = "#666666"
STYLE = {
    **{"font.size": 10, "lines.markersize": 5.5, "lines.linewidth": 1.6, "axes.grid": True, "grid.alpha": 0.3},
    **{"axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False},
    **{"xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9},
    **{"text.parse_math": False, "pdf.fonttype": 42},
}
#: Size of the smallest text, points.
SMALL = 9
#: Height of a line of small text, inches.
LINE_HEIGHT = 0.165
#: Inches that a panel's title, ticks and axis name take from its height.
FRAME_HEIGHT = 0.9
MARKS_PER_CURVE = 8
DPI = 150


@contextmanager
def styled() -> Iterator[None]:
    """matplotlib's defaults and `STYLE` in place of the user's settings; draw and save inside this context."""
    from matplotlib import style

    with style.context(["default", STYLE]):
        yield


def figure_files(name: str, figure: Figure, frame: pd.DataFrame) -> dict[str, bytes]:
    """Contents of `name`.png, .pdf and .csv, without dates and versions: the same bytes from the same records."""
    table = formatting.csv(frame)
    return {**picture_files(name, figure), f"{name}.csv": table.encode()}


def picture_files(name: str, figure: Figure) -> dict[str, bytes]:
    """Contents of `name`.png and .pdf."""
    png, pdf = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return {f"{name}.png": png.getvalue(), f"{name}.pdf": pdf.getvalue()}


def formula(suite: SuiteRecords, panel: str) -> str:
    """The sum that a score is, such as "0.5 VQ + 1 TA"."""
    if panel == REWARD:
        return " + ".join(f"{weight:g} {name}" for name, weight in suite.weights.items())
    return " + ".join(SUMS.get(panel, (panel,)))


def suite_title(suite: SuiteRecords) -> str:
    """Name of the suite; that of a nano suite says what it measures."""
    return suite.name + (": miniature model and scorers" if suite.nano else "")


def canvas(title: str, lines: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """An empty figure and its axes [lines, columns], `size` inches each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * lines + 0.4), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, **options)
    figure.suptitle(title, fontsize=11)
    return figure, axes


def line_style(look: Look) -> dict[str, Any]:
    """The look of a row as matplotlib's options of a line."""
    face = look.colour if look.filled else "white"
    return {"color": look.colour, "marker": look.marker, "linestyle": look.dash, "markerfacecolor": face}


def mark_every(count: int) -> int:
    """Every how many points a curve of `count` points has a marker."""
    return max(1, count // MARKS_PER_CURVE)


class End(NamedTuple):
    """The right end of a line and its name."""

    x: float
    y: float
    name: str
    colour: str


def name_ends(axis: Axes, ends: Sequence[End], height: float) -> None:
    """Write names beside the right ends of the lines, apart from each other; call it after the limits are set.

    `height` is that of the panel, inches. A thin line leads from the end to a name.
    """
    from matplotlib.lines import Line2D

    axis.get_xlim(), axis.get_ylim()  # sets limits that are still automatic
    to_axes = axis.transData + axis.transAxes.inverted()
    starts = sorted((tuple(to_axes.transform((end.x, end.y)))[::-1], end) for end in ends)
    places = apart([y for (y, _), _ in starts], LINE_HEIGHT / (height - FRAME_HEIGHT))
    for ((y, x), end), place in zip(starts, places, strict=True):
        options: dict[str, Any] = {"transform": axis.transAxes, "clip_on": False, "color": end.colour}
        axis.add_artist(Line2D([x + 0.015, 1.03], [y, place], linewidth=0.7, **options))
        axis.text(1.04, place, end.name, va="center", fontsize=SMALL, **options)


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places between 0 and 1, moved as little as possible until each is `gap` above the one before it."""
    from scipy.optimize import isotonic_regression

    if not places:
        return []
    steps = gap * np.arange(len(places))
    wanted = np.clip(np.asarray(places) - steps, 0, max(0.0, 1 - steps[-1]))
    return [float(place) for place in isotonic_regression(wanted).x + steps]


def legend(figure: Figure, handles: Sequence[Any]) -> None:
    """One legend below all panels, in as many columns as the canvas has room for; the canvas grows by its height."""
    columns = len(handles)
    while True:
        made = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
        size = made.get_window_extent()
        if size.width <= figure.bbox.width or columns == 1:
            break
        made.remove()
        columns -= 1
    figure.set_figheight(figure.get_figheight() + size.height / figure.dpi)


def noise_level_axis(axis: Axes, lowest: float = 0.0) -> None:
    """An x axis of noise levels in the direction of sampling, from noise to the lowest level that is drawn."""
    margin = max(0.03 * (1 - lowest), 0.01)
    axis.set_xlim(1 + margin, lowest - margin)
    axis.set_xlabel("noise level sigma (1 = noise, 0 = video)")


def plain_ticks(axis: Axes, *names: str) -> None:
    """Tick labels such as 0.01, because the typesetting of powers of ten is switched off; `names`: "x", "y"."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for name in names:
        side = axis.xaxis if name == "x" else axis.yaxis
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        side.set_minor_formatter(NullFormatter())


def log_ticks(axis: Axes) -> None:
    """Tick labels of a logarithmic y axis, at 1, 2 and 5 where it is short; call it after drawing."""
    from matplotlib.ticker import LogLocator

    low, high = axis.get_ylim()
    if high < 300 * low:
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    plain_ticks(axis, "y")
