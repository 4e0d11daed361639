"""The forest plot of an ablation, from the records only: `<folder>/figures/ablation.{png,pdf,csv}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.core.errors import BenchError
from bench.report import formatting
from bench.report.data.ablation import (
    AblationLevel,
    by_group,
    compare_levels,
    level_metrics,
    level_scores,
    shows_same_runs,
    to_first_columns,
)
from bench.report.data.records import is_nano
from bench.report.data.selection import method_title, row_title
from bench.report.figures import plots
from bench.report.figures.facets import SAME
from bench.report.figures.forest import draw_interval, name_right
from bench.report.looks import Look, looks
from bench.store.files import write_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FOLDER, NAME = "figures", "ablation"
#: Inches: width of a panel; height of a level's line, of a group's title, and of title, axis and legend.
WIDTH, LINE, PANEL, FRAME = 3.6, 0.27, 0.5, 1.0
ENDS = ("", "_lo", "_hi")


def build_ablation_figure(folder: Path | str, levels: Sequence[AblationLevel]) -> dict[str, Path]:
    """Write ablation.png, ablation.pdf and ablation.csv atomically: {file name: path}.

    A level without a known difference has an empty line. Levels that do not compare are a `BenchError`.
    The bytes depend on the records and on matplotlib only.
    """
    if not levels:
        raise BenchError(f"{folder} has no ablation: give one method several rows, or the study several variants.")
    return write_files(Path(folder) / FOLDER, render_ablation_figure(levels)[0])


def render_ablation_figure(levels: Sequence[AblationLevel]) -> tuple[dict[str, bytes], str]:
    """{file name: content} of `build_ablation_figure`, and the caption."""
    frame, groups = forest_data(levels), by_group(levels)
    titles = dict.fromkeys(level.suite.partition("/")[0] for level in levels)
    nano = any(is_nano(level.config) for level in levels)
    title = f"{', '.join(titles)}: ablation{', miniature model and scorers' if nano else ''}"
    styles = looks(dict.fromkeys(level.runs.row for level in levels))
    group_looks = {name: styles[group[0].runs.row.label] for name, group in groups.items()}
    lines = merge_equal(frame)
    with plots.styled():
        files = plots.figure_files(NAME, forest(title, lines, panels_of(levels), group_looks), frame)
    return files, ablation_caption(lines)


def panels_of(levels: Sequence[AblationLevel]) -> dict[str, str]:
    """Score to its name; each has a panel with the gains over the base and one with the changes to the first level."""
    metrics = level_metrics(levels)
    return {name: metrics[name].title for name in level_scores(metrics)}


def forest_data(levels: Sequence[AblationLevel]) -> pd.DataFrame:
    """One line per level: group, level, their titles, n_seeds, n_failed, n_planned, same_runs, and of each score:

    `<score>_delta` with `_lo`, `_hi`, the gain over the base, and `<score>_change` with `_lo`, `_hi`, `_p`, `_p_holm`,
    the difference to the group's first level, paired by seed and prompt, as `compare_levels` tests it. Score units;
    95 % intervals. The scores are those of `panels_of` that at least one level has. `same_runs`: the level has the
    runs of the first level, so that there is no second result.
    """
    table, groups, metrics = compare_levels(levels), by_group(levels), level_metrics(levels)
    ordered = [level for group in groups.values() for level in group]
    frame = table[["group", "level", "n_seeds", "n_failed"]].copy()
    frame["group_title"] = [_group_title(level) for level in ordered]
    frame["level_title"] = [_level_title(level) for level in ordered]
    frame["n_planned"] = [len(level.seeds) for level in ordered]
    frame["same_runs"] = [shows_same_runs(level, groups[level.group][0]) for level in ordered]
    changes, tested = to_first_columns(metrics), panels_of(levels)
    for score in [score for score in tested if table[score].notna().any()] or tested:
        frame[[f"{score}_delta{end}" for end in ENDS]] = table[[f"{score}_delta{end}" for end in ENDS]]
        for end in (*ENDS, "_p", "_p_holm"):
            frame[f"{score}_change{end}"] = table[f"{changes[score]}{end}"]
    return frame


def _in_suite(level: AblationLevel) -> bool:
    """Whether the level is a row of a suite; else it is a variant of a study."""
    return level.name.removesuffix(formatting.OPEN_MARK) == level.runs.row.label


def _group_title(level: AblationLevel) -> str:
    return method_title(level.runs.row.method) if _in_suite(level) else row_title(level.runs.row)


def _level_title(level: AblationLevel) -> str:
    return row_title(level.runs.row) if _in_suite(level) else level.name


def merge_equal(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with one line for levels that look equal to the line before, in the column `equal` the others' titles.

    Levels of a group are equal to the eye if all their numbers are within `SAME` of the range of the gains. Levels
    with other counts of seeds, with a significant change, or with the same runs keep their line.
    """
    gains = [name for name in map(str, frame) if name.endswith(("_delta", "_delta_lo", "_delta_hi"))]
    spans = {name: frame[gains].max().max() - frame[gains].min().min() for name in gains}
    kept: list[dict[str, Any]] = []
    for record in frame.to_dict("records"):
        line = {str(name): value for name, value in record.items()}
        for other in kept:
            if _equal(line, other, spans):
                other["equal"] = [*other["equal"], line["level_title"]]
                break
        else:
            kept.append({**line, "equal": []})
    return pd.DataFrame(kept)


def _equal(line: Mapping[Any, Any], other: Mapping[str, Any], spans: Mapping[str, float]) -> bool:
    counts = ("group", "n_seeds", "n_failed", "n_planned")
    significant = any(str(name).endswith("_change_p_holm") and p < formatting.ALPHA for name, p in line.items())
    if line["same_runs"] or significant or any(line[name] != other[name] for name in counts):
        return False
    return all(abs(line[name] - other[name]) <= SAME * span for name, span in spans.items())


def forest(title: str, frame: pd.DataFrame, labels: Mapping[str, str], styles: Mapping[str, Look]) -> Figure:
    """Per group and score: the gains over the base, and beside them the changes to the first level with their p.

    `frame` is that of `merge_equal`; `styles` has the look of each group.
    """
    groups = {str(name): lines for name, lines in frame.groupby("group", sort=False)}
    scores = [score for score in labels if f"{score}_delta" in frame]
    heights = [LINE * len(lines) + PANEL for lines in groups.values()]
    figure, axes = plots.canvas(
        title,
        len(groups),
        2 * len(scores),
        (WIDTH, sum(heights) / len(groups)),
        sharex="col",
        sharey="row",
        gridspec_kw={"height_ratios": heights},
    )
    figure.set_figheight(sum(heights) + FRAME)
    for panels, (group, lines) in zip(axes, groups.items(), strict=True):
        panels[0].set_title(lines["group_title"].iloc[0], loc="left", fontweight="bold")
        panels[0].set_yticks(range(len(lines)), [_name(row) for _, row in lines.iterrows()])
        panels[0].set_ylim(len(lines) - 0.4, -0.6)
        for index, score in enumerate(scores):
            _gains(panels[2 * index], lines, f"{score}_delta", styles[group])
            _changes(panels[2 * index + 1], lines, f"{score}_change", styles[group])
    for index, score in enumerate(scores):
        axes[-1][2 * index].set_xlabel(f"gain over the base\nin {labels[score]} (score units)")
        axes[-1][2 * index + 1].set_xlabel(f"change to the first level\nin {labels[score]} (score units)")
    for axis in axes.flatten():
        axis.grid(visible=False, axis="y")
        axis.axvline(0, color=plots.GREY, linewidth=1)
        axis.locator_params(axis="x", nbins=5)
    _legend(figure)
    return figure


def _name(row: pd.Series[Any]) -> str:
    """Title of a level, the number of equal ones, and what is missing or not a result of its own."""
    name = f"{row['level_title']}{f' and {len(equal)} more' if (equal := row['equal']) else ''}"
    marks = [f"{row['n_seeds']}/{row['n_planned']} seeds"] if row["n_seeds"] < row["n_planned"] else []
    marks += [f"{row['n_failed']} failed"] if row["n_failed"] else []
    marks += ["same runs"] if row["same_runs"] else []
    return f"{name} ({', '.join(marks)})" if marks else name


def _gains(axis: Axes, lines: pd.DataFrame, name: str, look: Look) -> None:
    """Means with their intervals, which are tested in the main table and not here: a plain bar across the mean."""
    for y, (_, row) in enumerate(lines.iterrows()):
        axis.plot(row[name], y, marker="|", markersize=11, markeredgewidth=2, linestyle="none", color=look.colour)
        if pd.notna(row[f"{name}_lo"]):
            axis.hlines(y, row[f"{name}_lo"], row[f"{name}_hi"], color=look.colour, linewidth=1.4)


def _changes(axis: Axes, lines: pd.DataFrame, name: str, look: Look) -> None:
    """Changes with their intervals, solid if significant, and p after Holm's correction at the right."""
    for y, (_, row) in enumerate(lines.iterrows()):
        if pd.notna(row[name]):
            draw_interval(axis, y, row, name, look._asdict())
        name_right(axis, y, _verdict(row, name, first=y == 0))


def _verdict(row: pd.Series[Any], name: str, first: bool) -> str:
    """ "first level", "same runs", "not tested", or the p-value."""
    if first or row["same_runs"]:
        return "first level" if first else "same runs"
    p = formatting.p_value(row[f"{name}_p_holm"])
    if p == formatting.MISSING:
        return "not tested"
    return f"p {p.replace('<', '< ')}" if p.startswith("<") else f"p = {p}"


def ablation_caption(frame: pd.DataFrame) -> str:
    """To read the changes, not the gains, and which levels share a line; `frame` is that of `merge_equal`."""
    parts = [
        f"{_name(row)}: {', '.join(title.removeprefix(row['group_title'] + ', ') for title in row['equal'])}"
        for _, row in frame.iterrows()
        if row["equal"]
    ]
    equal = f" Equal levels are drawn once ({'; '.join(parts)})." if parts else ""
    return (
        "Read the changes: a solid mark is a level that differs from the first one of its group, paired by seed and "
        f"prompt, p < {formatting.ALPHA:g} after Holm's correction. Left of each: gain over the base, whose interval "
        f"is no test of the change.{equal}"
    )


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"color": "black", "marker": "o", "linewidth": 1.4}
    handles = [
        Line2D([], [], **look, label="differs from the first level (p < 0.05 after Holm)"),
        Line2D([], [], **look, markerfacecolor="white", label="no significant change"),
    ]
    plots.legend(figure, handles)
