"""The figures of the SDE study: data frames in, matplotlib figures and their bytes out."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.report.figures.plots import COLOURS, GREY, MARKERS, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


DPI = 150
#: Data std of the panels of the convergence figure; that of the noise is 1.
CONVERGENCE_STDS = (0.25, 1.0)
#: Errors up to this size are on a linear scale, larger errors on a logarithmic scale.
LINEAR_BAND = 0.1


def draw(frames: Mapping[str, pd.DataFrame]) -> dict[str, bytes]:
    """File name to content, {energy,errors,matched,convergence}.{png,pdf}; the same bytes from the same frames."""
    looks = _looks(frames["summary"]["method"])
    contents: dict[str, bytes] = {}
    with styled():
        for name, figure in (
            ("energy", energy(frames["steps"], looks)),
            ("errors", errors(frames["errors"], looks)),
            ("matched", matched(frames["matched"], looks)),
            ("convergence", convergence(frames["convergence"], looks)),
        ):
            png, pdf = io.BytesIO(), io.BytesIO()
            figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
            figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
            contents |= {f"{name}.png": png.getvalue(), f"{name}.pdf": pdf.getvalue()}
    return contents


def _looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each method, the same in every figure."""
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(methods)
    }


def _look(looks: Mapping[str, dict[str, Any]], method: str) -> dict[str, Any]:
    """Colour and marker of a method; the deterministic sampler is grey."""
    return looks.get(method, {"color": GREY, "marker": "."})


def _panels(count: int, **options: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * count, 4.2), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False, **options).flatten()


def _finish(figure: Figure, axes: Sequence[Axes], *more: Any) -> Figure:
    """One legend for all panels, each label once, with `more` handles."""
    handles_of: dict[Any, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles_of.setdefault(label, handle)
    handles = [*handles_of.values(), *more]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), frameon=False)
    return figure


def _plain_ticks(axis: Axes, *names: str) -> None:
    """Tick labels such as 0.01, because the typesetting of powers of ten is switched off."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for name in names:
        side = axis.xaxis if name == "x" else axis.yaxis
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        side.set_minor_formatter(NullFormatter())


def _error_axes(axis: Axes, stds: Sequence[float]) -> None:
    """Axes for the data std and a signed error of any size."""
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yscale("symlog", linthresh=LINEAR_BAND)
    axis.set_xticks(list(stds))
    _plain_ticks(axis, "x", "y")
    axis.set_xlabel("std of the data (std of the noise: 1)")


def energy(frame: pd.DataFrame, looks: Mapping[str, dict[str, Any]]) -> Figure:
    """Noise per step, its part beyond the exact integral of the method's rate, and the cumulative excess energy."""
    figure, axes = _panels(3)
    for method, lines in frame.groupby("method", sort=False):
        look = _look(looks, str(method))
        label = str(method) if pd.isna(lines["eta"].iloc[0]) else f"{method} (eta {lines['eta'].iloc[0]:g})"
        noisy = lines[lines["variance"] > 0]
        axes[0].plot(noisy["sigma"], noisy["variance"], label=label, **look)
        known = lines[lines["extra"].notna()]
        if len(known):
            axes[1].plot(known["sigma"], known["extra"], label=label, **look)
        axes[2].plot(lines["sigma_next"], lines["excess"].cumsum(skipna=False), label=label, **look)
    axes[0].set_yscale("log")
    _plain_ticks(axes[0], "y")
    for axis, title in zip(
        axes,
        ("injected by each step", "of that, beyond the exact integral\nof the rate", "excess noise energy, summed up"),
        strict=True,
    ):
        axis.set_title(title)
        axis.set_ylabel("variance (of the noise: 1)")
        axis.set_xlabel(
            "noise level sigma at the step's start" if axis is not axes[2] else "noise level sigma reached"
        )
        axis.set_xlim(1.02, -0.02)
    return _finish(figure, axes)


def errors(frame: pd.DataFrame, looks: Mapping[str, dict[str, Any]]) -> Figure:
    """Relative variance error over the data std: as sampled, and without the Euler error."""
    from matplotlib.lines import Line2D

    figure, axes = _panels(2, sharey=True)
    stds = sorted(frame["data_std"].unique())
    for axis, column, title in zip(
        axes,
        ("relative_error", "isolated_error"),
        ("as sampled", "isolated: exact flow instead of Euler"),
        strict=True,
    ):
        _error_axes(axis, stds)
        axis.set_title(title)
        for (method, last), lines in frame.groupby(["method", "last"], sort=False):
            known, look = lines[lines[column].notna()], _look(looks, str(method))
            if known.empty or (column == "isolated_error" and method not in looks):
                continue
            noisy = last == "noisy"
            axis.plot(
                known["data_std"],
                known[column],
                linestyle="--" if noisy else "-",
                linewidth=1 if noisy else 1.6,
                label=None if noisy else str(method),
                **({"color": look["color"]} if noisy else look),
            )
    axes[0].set_ylabel("variance of the last latent over that\nof the data, less 1")
    dashed = Line2D([], [], color="black", linestyle="--", linewidth=1, label="dashed: noise of the last step kept")
    return _finish(figure, axes, dashed)


def matched(frame: pd.DataFrame, looks: Mapping[str, dict[str, Any]]) -> Figure:
    """Isolated error over the data std with eta solved for equal noise, one panel per amount of it."""
    targets = list(frame["rss"].unique())
    figure, axes = _panels(len(targets), sharey=True)
    clean = frame[(frame["last"] == "clean") & frame["isolated_error"].notna()]
    for axis, target in zip(axes, targets, strict=True):
        _error_axes(axis, sorted(frame["data_std"].unique()))
        axis.set_title(f"root-sum-square noise {target:g}")
        for method, lines in clean[clean["rss"] == target].groupby("method", sort=False):
            axis.plot(lines["data_std"], lines["isolated_error"], label=method, **_look(looks, str(method)))
    axes[0].set_ylabel("isolated relative variance error")
    return _finish(figure, axes)


def convergence(frame: pd.DataFrame, looks: Mapping[str, dict[str, Any]]) -> Figure:
    """Absolute relative error over the number of steps; a curve ends where the method is invalid."""
    stds = [std for std in CONVERGENCE_STDS if std in set(frame["data_std"])]
    figure, axes = _panels(len(stds), sharey=True)
    for axis, std in zip(axes, stds, strict=True):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(f"data std {std:g}")
        axis.set_xlabel("sampling steps")
        own = frame[(frame["data_std"] == std) & (frame["last"] == "clean")]
        for method, lines in own.groupby("method", sort=False):
            known, broken = lines[lines["status"] == ""], lines[lines["status"] != ""]
            label = str(method) if broken.empty else f"{method} (invalid from {broken['steps'].min()} steps)"
            axis.plot(known["steps"], known["relative_error"].abs(), label=label, **_look(looks, str(method)))
        axis.set_xticks(sorted(own["steps"].unique()))
        _plain_ticks(axis, "x", "y")
        axis.tick_params(axis="x", labelrotation=45)
    axes[0].set_ylabel("size of the relative variance error")
    return _finish(figure, axes)
