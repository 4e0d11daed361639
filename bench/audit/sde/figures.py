"""The figures of the SDE study: data frames in, matplotlib figures and their bytes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.report.data.selection import Row, method_title
from bench.report.figures.plots import (
    GREY,
    SMALL,
    End,
    canvas,
    line_style,
    name_ends,
    noise_level_axis,
    picture_files,
    plain_ticks,
    styled,
)
from bench.report.looks import Look, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: Data std of the panels of the convergence figure; that of the noise is 1.
CONVERGENCE_STDS = (0.25, 1.0)
#: Errors up to this size are on a linear scale, larger errors on a logarithmic scale.
LINEAR_BAND = 0.1
#: The same for noise energy beyond the integral.
LINEAR_ENERGY = 0.001
#: Panel size, inches.
SIZE = (5.0, 3.9)
#: Look of the deterministic sampler.
ODE_LOOK = Look(GREY, ".", "solid", True)


def draw(frames: Mapping[str, pd.DataFrame]) -> dict[str, bytes]:
    """File name to content, {energy,errors,matched,convergence}.{png,pdf}; the same bytes from the same frames."""
    styles = method_looks(frames["summary"]["method"])
    first = frames["errors"].iloc[0]
    setting = f"{first['steps']:.0f} steps, shift {first['shift']:g}"
    contents: dict[str, bytes] = {}
    with styled():
        for name, figure in (
            ("energy", energy(frames["steps"], styles, setting)),
            ("errors", errors(frames["errors"], styles, setting)),
            ("matched", matched(frames["matched"], styles, setting)),
            ("convergence", convergence(frames["convergence"], styles, f"shift {first['shift']:g}")),
        ):
            contents |= picture_files(name, figure)
    return contents


def method_looks(methods: Iterable[str]) -> dict[str, Look]:
    """Look of each method by its name, the same as in the figures of suites."""
    return looks(Row(name, name, "none") for name in dict.fromkeys(methods))


def _panels(title: str, count: int, **options: Any) -> tuple[Figure, Any]:
    figure, axes = canvas(title, 1, count, SIZE, **options)
    return figure, axes[0]


def _title(axis: Axes, number: int, text: str) -> None:
    """A panel's letter and title."""
    axis.set_title(f"({ascii_lowercase[number]}) {text}", loc="left")


def _line(axis: Axes, x: pd.Series[float], y: pd.Series[float], look: Look, name: str) -> list[End]:
    """Draw one line; its right end with its name, [] without points."""
    axis.plot(x, y, **line_style(look))
    return [End(x.iloc[-1], y.iloc[-1], name, look.colour)] if len(x) else []


def _name_all(axes: Iterable[Axes], ends: Iterable[Sequence[End]]) -> None:
    """Name the lines of all panels, once the limits that panels share are known."""
    for axis, own in zip(axes, ends, strict=True):
        name_ends(axis, own, SIZE[1])


def _linear_zone(axis: Axes, width: float) -> None:
    """A logarithmic y axis of either sign, whose linear zone around 0 is shaded."""
    axis.set_yscale("symlog", linthresh=width)
    axis.axhspan(-width, width, color="black", alpha=0.05, linewidth=0)
    place: dict[str, Any] = {"xycoords": axis.get_yaxis_transform(), "ha": "right", "va": "bottom"}
    axis.annotate("linear scale", (0.8, -width), fontsize=SMALL, color=GREY, **place)
    plain_ticks(axis, "y")


def energy(frame: pd.DataFrame, styles: Mapping[str, Look], setting: str) -> Figure:
    """Noise per step, its part beyond the exact integral of the method's rate, and the cumulative excess energy."""
    figure, axes = _panels(f"Noise energy of the steps: {setting}", 3)
    ends: tuple[list[End], ...] = ([], [], [])
    _linear_zone(axes[1], LINEAR_ENERGY)
    for method, lines in frame.groupby("method", sort=False):
        look, name = styles[str(method)], method_title(str(method))
        eta = "" if pd.isna(lines["eta"].iloc[0]) else f", eta {lines['eta'].iloc[0]:g}"
        noisy, known = lines[lines["variance"] > 0], lines[lines["extra"].notna()]
        ends[0].extend(_line(axes[0], noisy["sigma"], noisy["variance"], look, name + eta))
        ends[1].extend(_line(axes[1], known["sigma"], known["extra"], look, name))
        ends[2].extend(_line(axes[2], lines["sigma_next"], lines["excess"].cumsum(skipna=False), look, name))
    axes[0].set_yscale("log")
    plain_ticks(axes[0], "y")
    titles = ("noise that a step injects", "of (a): beyond the exact integral", "excess noise energy, summed up")
    for number, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        _title(axis, number, title)
        axis.set_ylabel("variance (of the noise: 1)")
        noise_level_axis(axis)
        name_ends(axis, [end for end in ends[number] if pd.notna(end.y)], SIZE[1])
    return figure


def _error_axes(axis: Axes, stds: Sequence[float]) -> None:
    """Axes for the data std and a signed error of any size."""
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xticks(list(stds))
    plain_ticks(axis, "x")
    _linear_zone(axis, LINEAR_BAND)
    axis.set_xlabel("std of the data (std of the noise: 1)")


def errors(frame: pd.DataFrame, styles: Mapping[str, Look], setting: str) -> Figure:
    """Relative variance error over the data std: as sampled with either last step, and without the Euler error."""
    figure, axes = _panels(f"Error of the sampled variance: {setting}", 3, sharey=True)
    stds = sorted(frame["data_std"].unique())
    panels = (
        ("relative_error", "clean", "as sampled, last step clean"),
        ("relative_error", "noisy", "as sampled, last step noisy"),
        ("isolated_error", "clean", "exact flow instead of Euler, last step clean"),
    )
    every: list[list[End]] = []
    for number, (axis, (column, last, title)) in enumerate(zip(axes, panels, strict=True)):
        _title(axis, number, title)
        ends: list[End] = []
        for method, lines in frame[frame["last"] == last].groupby("method", sort=False):
            known = lines[lines[column].notna()]
            if column == "relative_error" or method in styles:
                look = styles.get(str(method), ODE_LOOK)
                ends += _line(axis, known["data_std"], known[column], look, method_title(str(method)))
        _error_axes(axis, stds)
        every.append(ends)
    _name_all(axes, every)
    axes[0].set_ylabel("variance of the last latent over that\nof the data, less 1")
    return figure


def matched(frame: pd.DataFrame, styles: Mapping[str, Look], setting: str) -> Figure:
    """Isolated error over the data std with eta solved for equal noise, one panel per amount of it."""
    targets = list(frame["rss"].unique())
    figure, axes = _panels(f"Error at equal noise: {setting}", len(targets), sharey=True)
    clean = frame[(frame["last"] == "clean") & frame["isolated_error"].notna()]
    every: list[list[End]] = []
    for number, (axis, target) in enumerate(zip(axes, targets, strict=True)):
        _title(axis, number, f"root-sum-square noise {target:g}")
        ends: list[End] = []
        for method, lines in clean[clean["rss"] == target].groupby("method", sort=False):
            look, name = styles[str(method)], method_title(str(method))
            ends += _line(axis, lines["data_std"], lines["isolated_error"], look, name)
        _error_axes(axis, sorted(frame["data_std"].unique()))
        every.append(ends)
    _name_all(axes, every)
    axes[0].set_ylabel("isolated relative variance error")
    return figure


def convergence(frame: pd.DataFrame, styles: Mapping[str, Look], setting: str) -> Figure:
    """Size of the relative error over the number of steps; open marks: the error is negative, the variance too small.

    A curve ends where the method is invalid. Between a solid and an open mark the error passes through 0, which is a
    dip of its size.
    """
    stds = [std for std in CONVERGENCE_STDS if std in set(frame["data_std"])]
    figure, axes = _panels(f"Convergence: {setting}; open marks: variance too small", len(stds), sharey=True)
    every: list[list[End]] = []
    for number, (axis, std) in enumerate(zip(axes, stds, strict=True)):
        axis.set_xscale("log")
        axis.set_yscale("log")
        _title(axis, number, f"data std {std:g}")
        axis.set_xlabel("sampling steps")
        own = frame[(frame["data_std"] == std) & (frame["last"] == "clean")]
        ends: list[End] = []
        for method, lines in own.groupby("method", sort=False):
            known, broken = lines[lines["status"] == ""], lines[lines["status"] != ""]
            name = method_title(str(method)) + ("" if broken.empty else f" (invalid from {broken['steps'].min()})")
            look = styles.get(str(method), ODE_LOOK)
            ends += _line(axis, known["steps"], known["relative_error"].abs(), look, name)
            low = known[known["relative_error"] < 0]
            open_mark = {"marker": look.marker, "color": look.colour, "markerfacecolor": "white", "zorder": 3}
            axis.plot(low["steps"], low["relative_error"].abs(), linestyle="none", **open_mark)
        axis.set_xticks(sorted(own["steps"].unique()))
        plain_ticks(axis, "x", "y")
        axis.tick_params(axis="x", labelrotation=45)
        every.append(ends)
    _name_all(axes, every)
    axes[0].set_ylabel("size of the relative variance error")
    return figure
