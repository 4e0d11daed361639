"""Style and drawing of the figures: data frames of `data.training` in, matplotlib figures out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.report.data.metrics import SUMS
from bench.report.data.records import SuiteRecords
from bench.report.data.training import WINDOW, Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: Colours of Okabe and Ito, safe for colour-blind readers, without yellow, which is too light on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*"
GREY = "#666666"
STYLE = {
    **{"font.size": 10, "lines.markersize": 5.5, "lines.linewidth": 1.6, "axes.grid": True, "grid.alpha": 0.3},
    **{"axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False},
    **{"text.parse_math": False, "pdf.fonttype": 42},
}
PANELS = {
    "trained": "trained reward",
    "gold_overall": "gold reward",
    "overall": "Overall",
    "clipscore": "CLIPScore",
    "pickscore": "PickScore",
}
MARKS_PER_CURVE = 8
TICKS = 12
DPI = 150


@contextmanager
def styled() -> Iterator[None]:
    """matplotlib's defaults and `STYLE` in place of the user's settings; draw and save inside this context."""
    from matplotlib import style

    with style.context(["default", STYLE]):
        yield


def figure_files(name: str, figure: Figure, frame: pd.DataFrame) -> dict[str, bytes]:
    """Contents of `name`.png, .pdf and .csv, without dates and versions: the same bytes from the same records."""
    png, pdf = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    table = frame.to_csv(index=False, float_format="%.8g", lineterminator="\n")
    return {f"{name}.png": png.getvalue(), f"{name}.pdf": pdf.getvalue(), f"{name}.csv": table.encode()}


def formula(suite: SuiteRecords, panel: str) -> str:
    """The sum that a panel of the curves shows, such as "0.5 VQ + 1 TA"."""
    if panel == "trained":
        return " + ".join(f"{weight:g} {name}" for name, weight in suite.weights.items())
    return " + ".join(SUMS.get(panel, (panel,)))


def equalizer_stages(lines: pd.DataFrame) -> dict[str, str]:
    """Column suffix to name of the curves of one row of the gradients; one curve if all weights are 1."""
    if (lines["step_weight"] - 1).abs().max() < 1e-6:
        return {"after": "without equalizer"}
    return {"before": "before", "after": "after"}


def grid(
    suite: SuiteRecords, panels: int, columns: int, size: tuple[float, float], **options: Any
) -> tuple[Figure, Any]:
    """An empty figure and its axes, `size` inches each; its title marks a nano suite."""
    from matplotlib.figure import Figure

    lines = -(-panels // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * lines + 0.9), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, **options).flatten()
    for spare in axes[panels:]:
        spare.set_visible(False)
    figure.suptitle(suite.name + (": miniature model and scorers" if suite.nano else ""), fontsize=11)
    return figure, axes


def style_of(index: int) -> dict[str, Any]:
    """Colour and marker of the suite's row number `index`, the same in every figure."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def legend(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    """One legend below all panels."""
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def _step_axis(axis: Axes, sigma: dict[int, float]) -> None:
    """Step numbers with their noise levels below; with many steps only some of them."""
    shown = list(sigma)[:: -(-len(sigma) // TICKS)]
    axis.set_xticks(shown, [f"{step}\n{sigma[step]:.2f}" for step in shown])
    axis.set_xlabel("rollout step, noise level sigma below (1 = noise)")


def curves(suite: SuiteRecords, trainings: Sequence[Training], frame: pd.DataFrame) -> Figure:
    """Smoothed means with their bands, one panel per score; stored reference runs dashed, in their row's colour."""
    panels = list(frame["panel"].unique())
    positions = {runs.row.label: index for index, runs in enumerate(suite.rows)}
    names = {runs.row.label: runs.row.name for runs in suite.rows}
    figure, axes = grid(suite, len(panels), min(len(panels), 3), (4.8, 3.4))
    for panel, axis in zip(panels, axes, strict=False):
        own = frame[frame["panel"] == panel]
        for (row, source), line in own.groupby(["row", "source"], sort=False):
            look, x = style_of(positions[row]), line["nfe_rollout"]
            if source == "reference":
                label = f"{names[row]} (stored reference)"
                axis.plot(x, line["smooth"], linestyle="--", linewidth=1, color=look["color"], label=label)
                continue
            axis.plot(x, line["smooth"], markevery=max(1, len(line) // MARKS_PER_CURVE), label=names[row], **look)
            axis.fill_between(x, line["smooth_lo"], line["smooth_hi"], color=look["color"], alpha=0.15, linewidth=0)
        axis.set_title(f"{PANELS[panel]} = {formula(suite, panel)}")
        axis.set_ylabel(f"{PANELS[panel]} (score units),\nmoving mean over {WINDOW} updates")
        axis.set_xlabel("cumulative rollout NFE of one run")
        axis.locator_params(axis="x", nbins=5)
        axis.xaxis.set_major_formatter("{x:,.0f}")
    legend(figure, axes[0].get_legend_handles_labels()[0], min(4, len(axes[0].lines)))
    return figure


def noise(suite: SuiteRecords, trainings: Sequence[Training], frame: pd.DataFrame) -> Figure:
    """Injected std per step; rows with equal noise share a line and a label."""
    figure, axes = grid(suite, 1, 1, (6.4, 3.6))
    axis = axes[0]
    same: dict[tuple[float, ...], list[Training]] = {}
    for training in trainings:
        same.setdefault(tuple(round(std, 6) for std in training.schedule.std), []).append(training)
    sigma: dict[int, float] = {}
    for group in same.values():
        line = frame[frame["row"] == group[0].row.label]
        label = f"{', '.join(training.row.name for training in group)} (RSS {line['rss'].iloc[0]:.2f})"
        axis.plot(line["step"], line["std"], clip_on=False, label=label, **style_of(group[0].index))
        sigma |= dict(zip(line["step"], line["sigma"], strict=True))
    axis.set_ylabel("injected noise, std per latent element")
    axis.set_ylim(bottom=0)
    _step_axis(axis, dict(sorted(sigma.items())))
    legend(figure, axis.get_legend_handles_labels()[0], 2)
    return figure


def gradients(suite: SuiteRecords, trainings: Sequence[Training], frame: pd.DataFrame) -> Figure:
    """One panel per row: gradient norm per step, grey before the equalizer, in the colour of the row after it."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    count = len(trainings)
    columns = min(count, 2 if count < 5 else 3)
    figure, axes = grid(suite, count, columns, (4.6, 3.3), sharey=True)
    for axis in axes[::columns]:
        axis.set_ylabel("gradient norm\n(1 = predicted lower median)")
    for training, axis in zip(trainings, axes, strict=False):
        lines = frame[frame["row"] == training.row.label]
        spreads = []
        for when, name in equalizer_stages(lines).items():
            _norms(axis, lines, when, {"color": GREY, "marker": "."} if when == "before" else style_of(training.index))
            spreads.append(f"{lines[f'measured_{when}_spread'].iloc[0]:.3g} {name}")
        axis.set_title(f"{training.row.name}\nmax/min measured: {', '.join(spreads)}")
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        _step_axis(axis, dict(zip(lines["step"], lines["sigma"], strict=True)))
    handles = []
    for stage, colour in (("before the equalizer", GREY), ("after it, or without one (row's colour)", "black")):
        handles.append(Line2D([], [], color=colour, marker="o", label=f"measured {stage}"))
        handles.append(Line2D([], [], color=colour, linestyle="--", label=f"predicted {stage}"))
    legend(figure, handles, 2)
    return figure


def _norms(axis: Axes, lines: pd.DataFrame, when: str, look: dict[str, Any]) -> None:
    """Measured norms with their intervals (none with fewer than 3 seeds), and predicted norms dashed."""
    known = lines[lines[f"measured_{when}"].notna()]
    middle, low, high = (known[f"measured_{when}{end}"] for end in ("", "_lo", "_hi"))
    bars = None if low.isna().all() else [middle - low, high - middle]
    axis.errorbar(known["step"], middle, yerr=bars, capsize=2, elinewidth=1, **look)
    positive = lines[lines[f"predicted_{when}"] > 0]
    axis.plot(positive["step"], positive[f"predicted_{when}"], linestyle="--", linewidth=1.2, color=look["color"])
