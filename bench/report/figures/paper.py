"""What SAGE-GRPO's Figures 1, 3, 4 and 8 (arXiv:2603.21872) show, drawn from stored results, and the paper's table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from bench.core.errors import BenchError
from bench.report.data.held_out import held_out_curves
from bench.report.data.loading import load_records
from bench.report.data.mechanism import gradients, noise
from bench.report.data.paper import (
    StoredSuite,
    equalizer_methods,
    noise_energy,
    paper_table,
    stored_suites,
    suite_of_equalizers,
    suite_of_kl,
    suite_of_methods,
)
from bench.report.data.records import SuiteRecords
from bench.report.data.rollouts import HERE, dynamics, over_all_seeds, rollouts
from bench.report.data.selection import Row, method_title, row_title
from bench.report.data.training import Training, load_training
from bench.report.figures import plots
from bench.report.figures.curves import draw_curves, draw_lines
from bench.report.figures.facets import Line
from bench.report.looks import Look, looks
from bench.report.tables.paper import render_paper_table
from bench.store.files import write_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (4.6, 3.3)
SURPLUS = "#E69F00"
"""Colour of the noise energy beyond the integral; no method has it."""
EQUALIZERS = {"off": "no equalizer", "released": "equalizer, released", "derived": "equalizer, derived"}


class PaperFigure(NamedTuple):
    """One drawn figure with its numbers."""

    figure: Figure
    frame: pd.DataFrame


def build_paper(folder: Path, out: Path) -> tuple[dict[str, Path], list[str]]:
    """Write the paper's figures and table from the results below `folder` into `out`: {file name: path}, sentences.

    fig1_noise_energy, fig3_equalizer, fig4_gradient_norm and fig8_kl as png, pdf and csv, paper as md, csv and tex.
    A figure whose records are missing is left out, with one sentence that says what it needs. Each figure names the
    suites that it shows. No results at all are a `BenchError`.
    """
    suites = stored_suites(folder)
    if not suites and noise_energy(folder) is None:
        raise BenchError(
            f"{folder} holds no results of a suite or of `bench sde-study`: name a folder that does, such as results."
        )
    makers: dict[str, Callable[[], PaperFigure | str]] = {
        "fig1_noise_energy": lambda: _noise_energy(folder),
        "fig3_equalizer": lambda: _equalizer(suite_of_equalizers(suites)),
        "fig4_gradient_norm": lambda: _gradient_norm(suite_of_methods(suites)),
        "fig8_kl": lambda: _kl(suite_of_kl(suites)),
    }
    contents = render_paper_table(paper_table(suites))
    missing = []
    with plots.styled():
        for name, make in makers.items():
            made = make()
            if isinstance(made, str):
                missing.append(f"{name} is left out: {made}")
            else:
                contents |= plots.figure_files(name, made.figure, made.frame)
    return write_files(out, contents), missing


def _noise_energy(folder: Path) -> PaperFigure | str:
    """Figure 1, left: noise energy of each step, split into the true integral and Euler's surplus."""
    frame = noise_energy(folder)
    if frame is None:
        return f"{folder} holds no SDE study, make one with `bench sde-study --out {folder}/sde-study`."
    surplus_of = frame.groupby("method")["extra"].sum().round(9).sort_values(ascending=False, kind="stable")
    methods = [str(method) for method in surplus_of.index]
    styles = looks(Row(name, name, "none") for name in methods)
    title = f"Noise energy per step ({frame['study'].iloc[0]}, {frame['step'].max() + 1} steps)"
    figure, axes = plots.canvas(title, 1, len(methods), SIZE)
    for method, axis in zip(methods, axes[0], strict=True):
        own, colour = frame[frame["method"] == method], styles[method].colour
        known, unknown = own[own["extra"].notna()], own[own["extra"].isna()]
        axis.bar(known["step"], known["rate_integral"], color=colour, label="integral of the rate")
        surplus = known["extra"].clip(lower=0)
        axis.bar(known["step"], surplus, bottom=known["rate_integral"], color=SURPLUS, label="surplus of the step")
        axis.bar(unknown["step"], unknown["variance"], color="white", edgecolor=plots.GREY, label="no finite integral")
        axis.set_title(f"{method_title(method)}, eta {own['eta'].iloc[0]:g}: surplus {surplus.sum():.3f}", loc="left")
        axis.set_xlabel("sampling step (0 = noise)")
        axis.locator_params(axis="x", integer=True)
        axis.grid(visible=False, axis="x")
    axes[0][0].set_ylabel("energy (variance; of the noise: 1)")
    plots.legend(figure, _swatches())
    return PaperFigure(figure, frame)


def _swatches() -> list[Any]:
    from matplotlib.patches import Patch

    return [
        Patch(color=plots.GREY, label="true integral of the method's rate (in the method's colour)"),
        Patch(color=SURPLUS, label="surplus of the step beyond it"),
        Patch(facecolor="white", edgecolor=plots.GREY, label="step without a finite integral"),
    ]


def _grid(title: str, count: int, **options: Any) -> tuple[Figure, list[Axes]]:
    """An empty figure of at most two columns and its `count` panels."""
    figure, axes = plots.canvas(title, -(-count // 2), min(count, 2), SIZE, **options)
    panels = list(axes.flatten())
    for spare in panels[count:]:
        spare.set_visible(False)
    return figure, panels[:count]


class _Loaded(NamedTuple):
    """A suite with the courses of its runs and the rows in its order."""

    suite: SuiteRecords
    trainings: list[Training]
    rows: list[Row]
    styles: dict[str, Look]


def _load(stored: StoredSuite) -> _Loaded:
    suite = load_records(stored.folder)
    trainings = load_training(stored.folder, suite)
    rows = [runs.row for runs in suite.rows]
    return _Loaded(suite, trainings, rows, looks(rows))


def _learning(loaded: _Loaded) -> tuple[pd.DataFrame, str]:
    """Held-out gains by the primary score under the panel "reward", else those of the rollouts; and what they are."""
    curves = held_out_curves(loaded.suite)
    own = curves[curves["score"] == loaded.suite.primary]
    if len(own):
        frame = own.rename(columns={"gain": "value"}).assign(panel="reward", source=HERE)
        label = loaded.suite.metrics[loaded.suite.primary].title
        return over_all_seeds(
            frame.astype({"seed": int, "update": int})
        ), f"held-out gain in {label}\nover the base (score units)"
    frame = rollouts(loaded.trainings)
    trained = frame[frame["panel"] == "trained"].assign(panel="reward")
    return trained, "gain in rollout reward since\nupdate 0 (score units)"


def _equalizer(stored: StoredSuite | None) -> PaperFigure | str:
    """Figure 3: reward with and without the equalizer, one panel per method."""
    if stored is None:
        return "no suite has rows of one method with and without an equalizer, run `bench run nano_equalizer`."
    loaded, methods = _load(stored), equalizer_methods(stored.records)
    kinds = {record.row: str(record.method_params.get("equalizer")) for record in stored.records}
    frame, name = _learning(loaded)
    frame = frame[frame["row"].isin([row.label for row in loaded.rows if row.method in methods])]
    figure, axes = _grid(f"Reward and the equalizer ({plots.suite_title(loaded.suite)})", len(methods))
    named: list[tuple[Axes, list[plots.End]]] = []
    for method, axis in zip(methods, axes, strict=True):
        lines = [Line(row) for row in loaded.rows if row.method == method and row.label in kinds]
        ends = draw_lines(axis, lines, frame, loaded.styles)
        titles = {row_title(line.row): kinds[line.row.label] for line in lines}
        ends = [end._replace(name=EQUALIZERS.get(titles[end.name], titles[end.name])) for end in ends]
        axis.set_title(method_title(method), loc="left")
        axis.set_ylabel(name)
        named.append((axis, ends))
    for axis, ends in named:
        plots.name_ends(axis, ends, SIZE[1])
    return PaperFigure(figure, frame)


def _gradient_norm(stored: StoredSuite | None) -> PaperFigure | str:
    """Figure 4: gradient norm before the equalizer over the noise level, with the paper's law 1 / Sigma^(1/2)."""
    if stored is None:
        return "no suite has finished training runs, run `bench run nano`."
    loaded = _load(stored)
    frame = gradients(loaded.trainings).merge(noise(loaded.trainings)[["row", "step", "std"]], on=["row", "step"])
    frame["paper_law"] = frame.groupby("row", group_keys=False)[["std", "measured_before"]].apply(_paper_law)
    first = {row.method: row for row in reversed(loaded.rows) if row.label in set(frame["row"])}
    rows = [row for row in loaded.rows if first.get(row.method) == row]
    frame = frame[frame["row"].isin([row.label for row in rows])]
    figure, axes = _grid(f"Gradient norm of a step ({plots.suite_title(loaded.suite)})", len(rows), sharey=True)
    lowest = frame["sigma"].min()
    for row, axis in zip(rows, axes, strict=True):
        _norms_and_laws(axis, frame[frame["row"] == row.label], loaded.styles[row.label])
        axis.set_title(row_title(row), loc="left")
        axis.set_ylabel("gradient norm before the equalizer\n(1 = predicted lower median)")
        plots.noise_level_axis(axis, lowest)
    plots.log_ticks(axes[0])
    plots.legend(figure, _laws())
    return PaperFigure(figure, frame)


def _paper_law(lines: pd.DataFrame) -> pd.Series[float]:
    """1 / Sigma^(1/2), where Sigma is a step's variance, scaled to the geometric mean of the measured norms."""
    law = 1 / lines["std"].where(lines["std"] > 0)
    known = law.notna() & lines["measured_before"].notna()
    scale = float(np.exp(np.log(lines.loc[known, "measured_before"] / law[known]).mean()))
    return law * scale


def _norms_and_laws(axis: Axes, own: pd.DataFrame, look: Look) -> None:
    known = own[own["measured_before"].notna()]
    low, high = (abs(known["measured_before"] - known[f"measured_before{end}"]) for end in ("_lo", "_hi"))
    bars = None if low.isna().all() else [low, high]
    options: dict[str, Any] = {"color": look.colour, "marker": look.marker, "linestyle": "none", "capsize": 2}
    axis.errorbar(known["sigma"], known["measured_before"], yerr=bars, **options)
    axis.plot(own["sigma"], own["predicted_before"], color=look.colour, linestyle="solid", linewidth=1.2)
    axis.plot(own["sigma"], own["paper_law"], color="black", linestyle="dashed", linewidth=1.2)
    axis.set_yscale("log")


def _laws() -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=plots.GREY, marker="o", linestyle="none", label="measured"),
        Line2D([], [], color=plots.GREY, label="predicted from the method's own log-prob"),
        Line2D([], [], color="black", linestyle="dashed", label="the paper's law, 1 / sqrt(Sigma)"),
    ]


def _kl(stored: StoredSuite | None) -> PaperFigure | str:
    """Figure 8: reward and exploration over training for each KL policy."""
    if stored is None:
        return "no suite has rows with three KL policies, run `bench run nano_kl`."
    loaded = _load(stored)
    reward, name = _learning(loaded)
    course = dynamics(loaded.trainings)
    frame = pd.concat([reward, course[course["panel"] == "reward_group_std"]], ignore_index=True)
    titles: Mapping[str, str] = {"reward": "reward", "reward_group_std": "exploration"}
    names = {"reward": name, "reward_group_std": "std of the reward within\na group (score units)"}
    shown: Sequence[str] = list(frame["panel"].unique())
    figure = draw_curves(
        f"KL policies ({plots.suite_title(loaded.suite)})", loaded.rows, frame, {k: titles[k] for k in shown}, names
    )
    return PaperFigure(figure, frame)
