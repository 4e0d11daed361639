"""The figures on what a method does: the noise of its steps, and how strongly each step trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.report.data.selection import Row
from bench.report.figures import plots
from bench.report.figures.facets import Facet, Line, merge_equal, split
from bench.report.looks import Look, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOISE_SIZE = (6.6, 3.6)
GRADIENT_SIZE = (4.9, 3.4)
#: Largest distance of a step's weight from 1 that is no equalizer but rounding.
ROUNDING = 1e-6


def noise_lines(frame: pd.DataFrame, rows: Sequence[Row]) -> list[Line]:
    """The lines of the figure of the noise; `frame` is that of `data.mechanism.noise`."""
    wide = frame.assign(panel="noise").pivot(index=["panel", "step"], columns="row", values="std")
    return merge_equal([row for row in rows if row.label in wide], wide)


def draw_noise(title: str, rows: Sequence[Row], frame: pd.DataFrame) -> Figure:
    """Injected std over the noise level; a step without noise is an open mark apart from the line."""
    facets, styles = split(noise_lines(frame, rows)), looks(rows)
    figure, axes = plots.canvas(title, len(facets), 1, NOISE_SIZE)
    for facet, axis in zip(facets, axes.flatten(), strict=True):
        axis.set_title(facet.title, loc="left")
        axis.set_ylabel("noise of a step, std per latent element")
        plots.noise_level_axis(axis, frame["sigma"].min())
        ends = []
        for line in facet.lines:
            own, look = frame[frame["row"] == line.row.label], styles[line.row.label]
            noisy, quiet = own[own["std"] > 0], own[own["std"] == 0]
            axis.plot(noisy["sigma"], noisy["std"], **plots.line_style(look))
            open_mark = {"marker": look.marker, "markerfacecolor": "white", "color": look.colour}
            axis.plot(quiet["sigma"], quiet["std"], linestyle="none", clip_on=False, zorder=3, **open_mark)
            if len(noisy):
                name = f"{line.name}: {own['rss'].iloc[0]:.2f}"
                ends.append(plots.End(noisy["sigma"].iloc[-1], noisy["std"].iloc[-1], name, look.colour))
        axis.set_ylim(bottom=0)
        plots.name_ends(axis, ends, NOISE_SIZE[1])
    return figure


def has_equalizer(lines: pd.DataFrame) -> bool:
    """Whether the steps of one row of the gradients have weights other than 1."""
    return bool((lines["step_weight"] - 1).abs().max() > ROUNDING)


def gradient_lines(frame: pd.DataFrame, rows: Sequence[Row]) -> list[Line]:
    """The lines of the figure of the gradients; `frame` is that of `data.mechanism.gradients`."""
    parts = [
        frame.assign(panel=name, value=frame[name]).pivot(index=["panel", "step"], columns="row", values="value")
        for name in ("measured_before", "measured_after")
    ]
    wide = pd.concat(parts)
    return merge_equal([row for row in rows if row.label in wide], wide)


def draw_gradients(title: str, rows: Sequence[Row], frame: pd.DataFrame) -> Figure:
    """Norm of each step's gradient before and after the equalizer, and its largest over its smallest value."""
    lines, styles = gradient_lines(frame, rows), looks(rows)
    facets, own = split(lines), {str(row): part for row, part in frame.groupby("row", sort=False)}
    equalized = [line for line in lines if has_equalizer(own[line.row.label])]
    stages = ["before", "after"] if equalized else ["before"]
    figure, axes = plots.canvas(title, len(facets), len(stages) + 1, GRADIENT_SIZE)
    for facet, panels in zip(facets, axes, strict=True):
        for stage, axis in zip(stages, panels, strict=False):
            shown = [line for line in facet.lines if stage == "before" or line in equalized]
            name = f"{stage} the equalizer" if equalized else "without an equalizer"
            axis.set_title(f"{facet.title}: {name}" if facet.title else name, loc="left")
            _norms(axis, shown, own, stage, styles)
        panels[0].set_ylabel("gradient norm of a step\n(1 = predicted lower median)")
        _spreads(panels[-1], facet, own, styles)
    return figure


def _norms(
    axis: Axes, lines: Sequence[Line], own: dict[str, pd.DataFrame], stage: str, styles: dict[str, Look]
) -> None:
    """Measured norms with their intervals (none with fewer than 3 seeds) over the noise level."""
    axis.set_yscale("log")
    plots.noise_level_axis(axis, min(part["sigma"].min() for part in own.values()))
    ends = []
    for line in lines:
        part, look = own[line.row.label], styles[line.row.label]
        known = part[part[f"measured_{stage}"].notna()]
        middle, low, high = (known[f"measured_{stage}{end}"] for end in ("", "_lo", "_hi"))
        bars = None if low.isna().all() else [middle - low, high - middle]
        axis.errorbar(known["sigma"], middle, yerr=bars, capsize=2, elinewidth=1, **plots.line_style(look))
        if len(known):
            ends.append(plots.End(known["sigma"].iloc[-1], middle.iloc[-1], line.name, look.colour))
    plots.log_ticks(axis)
    plots.name_ends(axis, ends, GRADIENT_SIZE[1])


def _spreads(axis: Axes, facet: Facet, own: dict[str, pd.DataFrame], styles: dict[str, Look]) -> None:
    """A bar of largest over smallest measured norm per row and stage, with its number; a tick: the prediction."""
    bars: list[tuple[str, float, float, str, bool]] = []
    for line in facet.lines:
        first, colour = own[line.row.label].iloc[0], styles[line.row.label].colour
        for stage in ["before", "after"] if has_equalizer(own[line.row.label]) else ["before"]:
            name = f"{line.name}, after" if stage == "after" else line.name
            ends = (first[f"measured_{stage}_spread"], first[f"predicted_{stage}_spread"])
            bars.append((name, *ends, colour, stage == "before"))
    look: dict[str, Any] = {"height": 0.62, "linewidth": 1.2}
    for y, (_, measured, predicted, colour, filled) in enumerate(bars):
        axis.barh(y, measured - 1, left=1, edgecolor=colour, color=colour if filled else "white", **look)
        axis.plot([predicted, predicted], [y - 0.42, y + 0.42], color="black", linewidth=2)
        axis.annotate(f"{measured:.3g}", (measured, y), xytext=(4, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(bars)), [name for name, *_ in bars])
    axis.set_ylim(len(bars) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    axis.set_xscale("log")
    axis.margins(x=0.2)
    axis.set_xlim(left=1)
    plots.plain_ticks(axis, "x")
    axis.set_title("max / min (tick: predicted)", loc="left")
