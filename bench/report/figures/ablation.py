"""The forest plot of an ablation, from the records only: `<folder>/figures/ablation.{png,pdf,csv}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.core.errors import BenchError
from bench.report.data.ablation import AblationLevel, compare_levels, level_metrics, level_scores
from bench.report.data.records import is_nano
from bench.report.figures import plots
from bench.store.files import write_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FOLDER, NAME = "figures", "ablation"
#: Inches: width of a column of panels; height of a level's line, of a panel's title, and of title, axis and legend.
WIDTH, LINE, PANEL, FRAME = 4.6, 0.27, 0.5, 1.3


def build_ablation_figure(folder: Path | str, levels: Sequence[AblationLevel]) -> dict[str, Path]:
    """Write ablation.png, ablation.pdf and ablation.csv atomically: {file name: path}.

    A level without a known difference to the base has an empty line. Levels that do not compare are a `BenchError`.
    The bytes depend on the records and on matplotlib only.
    """
    if not levels:
        raise BenchError(f"{folder} has no ablation: give one method several rows, or the study several variants.")
    return write_files(Path(folder) / FOLDER, render_ablation_figure(levels))


def render_ablation_figure(levels: Sequence[AblationLevel]) -> dict[str, bytes]:
    """{file name: content} of `build_ablation_figure`."""
    frame = forest_data(levels)
    titles = dict.fromkeys(level.suite.partition("/")[0] for level in levels)
    nano = any(is_nano(level.suite, level.config) for level in levels)
    title = f"{', '.join(titles)}: ablation{', miniature model and scorers' if nano else ''}"
    with plots.styled():
        return plots.figure_files(NAME, forest(title, frame, panels_of(levels)), frame)


def panels_of(levels: Sequence[AblationLevel]) -> dict[str, str]:
    """Score to the name of its difference to the base; each is a column of panels with its own colour and marker."""
    metrics = level_metrics(levels)
    return {name: f"{metrics[name].label} - base" for name in level_scores(metrics)}


def forest_data(levels: Sequence[AblationLevel]) -> pd.DataFrame:
    """One line per level: group, level, n_seeds, n_failed, n_planned, and `<score>_delta` with `_lo`, `_hi`.

    The scores are those of `panels_of` that at least one level has; differences are to the base, with 95 % intervals.
    """
    table = compare_levels(levels)
    planned = {(level.group, level.name): len(level.seeds) for level in levels}
    frame = table[["group", "level", "n_seeds", "n_failed"]].copy()
    frame["n_planned"] = [planned[key] for key in zip(table["group"], table["level"], strict=True)]
    metrics = panels_of(levels)
    scores = [score for score in metrics if table[score].notna().any()] or list(metrics)
    names = [f"{score}_delta{end}" for score in scores for end in ("", "_lo", "_hi")]
    return pd.concat([frame, table[names]], axis=1)


def forest(title: str, frame: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """A panel per group and score: one line per level; the first level is hollow, with a dotted line at its mean."""
    from matplotlib.figure import Figure

    groups = {str(name): lines for name, lines in frame.groupby("group", sort=False)}
    scores = [score for score in labels if f"{score}_delta" in frame]
    heights = [LINE * len(lines) + PANEL for lines in groups.values()]
    figure = Figure(figsize=(WIDTH * len(scores) + 1.4, sum(heights) + FRAME), layout="constrained")
    ratios: dict[str, Any] = {"height_ratios": heights}
    axes = figure.subplots(len(groups), len(scores), squeeze=False, sharex="col", sharey="row", gridspec_kw=ratios)
    for panels, (name, lines) in zip(axes, groups.items(), strict=True):
        panels[0].set_title(name, loc="left", fontweight="bold")
        panels[0].set_yticks(range(len(lines)), [_label(row) for _, row in lines.iterrows()])
        panels[0].set_ylim(len(lines) - 0.4, -0.6)
        for index, (axis, score) in enumerate(zip(panels, scores, strict=True)):
            _panel(axis, lines, f"{score}_delta", {"color": plots.COLOURS[index], "marker": "oD"[index]})
    for axis, score in zip(axes[-1], scores, strict=True):
        axis.set_xlabel(f"{labels[score]} (score units)")
        axis.locator_params(axis="x", nbins=6)
    figure.suptitle(title, fontsize=11)
    _legend(figure)
    return figure


def _label(row: pd.Series[Any]) -> str:
    failed = f", {row['n_failed']} failed" if row["n_failed"] else ""
    return f"{row['level']} ({row['n_seeds']}/{row['n_planned']}{failed})"


def _panel(axis: Axes, lines: pd.DataFrame, name: str, look: dict[str, Any]) -> None:
    """Means with their intervals; with fewer than 3 seeds the mean alone."""
    axis.axvline(0, color=plots.GREY, linewidth=1)
    axis.grid(visible=False, axis="y")
    for y, (_, row) in enumerate(lines.iterrows()):
        if y == 0 and pd.notna(row[name]):
            axis.axvline(row[name], color=look["color"], linestyle=":", linewidth=1)
        if pd.notna(row[f"{name}_lo"]):
            axis.hlines(y, row[f"{name}_lo"], row[f"{name}_hi"], color=look["color"], linewidth=1.4)
        axis.plot(row[name], y, linestyle="none", markerfacecolor="white" if y == 0 else look["color"], **look)


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"color": "black", "marker": "o", "linewidth": 1.4}
    handles = [
        Line2D([], [], **look, label="level, 95 % interval over seeds and prompts"),
        Line2D([], [], **look, markerfacecolor="white", label="baseline (dotted: its mean)"),
    ]
    plots.legend(figure, handles, 2)
