"""The figures of a suite, from its records only: `results/<suite>/figures/{curves,noise,gradients}.{png,pdf,csv}`."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.core.errors import BenchError
from bench.report.data.records import SuiteRecords, incomparable_setting, load_records
from bench.report.data.reference import comparable_rows
from bench.report.data.selection import Row
from bench.report.data.statistics import LEAST_SEEDS
from bench.report.data.stored import find_reference
from bench.report.data.training import WINDOW, Training, curves, gradients, load_training, noise
from bench.report.figures import plots
from bench.report.figures.plots import PANELS
from bench.report.tables.notes import nano_warning
from bench.store.files import find, write_files
from bench.store.record import RUN

FOLDER, PAGE = "figures", "figures.md"


def build_figures(
    suite_folder: Path | str,
    rows: Sequence[Row] | None = None,
    seeds: Sequence[int] | None = None,
    reference: Path | None = None,
) -> dict[str, Path]:
    """Write the figures and figures.md with their captions atomically: {file name: path}; see `render_figures`."""
    return write_files(Path(suite_folder) / FOLDER, render_figures(suite_folder, rows, seeds, reference)[0])


def render_figures(
    suite_folder: Path | str,
    rows: Sequence[Row] | None = None,
    seeds: Sequence[int] | None = None,
    reference: Path | None = None,
) -> tuple[dict[str, bytes], dict[str, str]]:
    """{file name: content} of curves, noise and gradients as png, pdf and csv and of figures.md; {figure: caption}.

    `rows` and `seeds` are those of the suite's YAML; left out, they are taken from the records' own configuration.
    Only finished runs are drawn. `reference` is a folder of stored runs with the same settings whose curves are drawn
    too (default: see `find_reference`). Records that do not compare, or that lack the data of a
    figure, are a `BenchError`. The bytes depend on the records and on matplotlib only.
    """
    suite = load_records(suite_folder, rows, seeds)
    trainings = load_training(suite_folder, suite)
    stored, stored_caption = _stored(suite, Path(suite_folder), reference)
    frames = {"curves": _with_stored(trainings, stored), "noise": noise(trainings), "gradients": gradients(trainings)}
    contents: dict[str, bytes] = {}
    with plots.styled():
        plot_functions = {"curves": plots.curves, "noise": plots.noise, "gradients": plots.gradients}
        for name, draw in plot_functions.items():
            contents |= plots.figure_files(name, draw(suite, trainings, frames[name]), frames[name])
    captions = {
        "curves": _curves_caption(suite, frames["curves"]) + stored_caption,
        "noise": _noise_caption(suite),
        "gradients": _gradients_caption(frames["gradients"]),
    }
    contents[PAGE] = _page(suite, captions).encode()
    return contents, captions


def _stored(suite: SuiteRecords, folder: Path, reference: Path | None) -> tuple[list[Training], str]:
    """Stored runs with the same settings and rows, and a sentence on them for the caption."""
    stored_path, stored, _ = find_reference(suite, folder, reference)
    if stored is None and reference is not None and not find(reference, f"**/{RUN}"):
        raise BenchError(f"reference {reference} holds no records ({RUN}): name a folder of finished runs.")
    if stored is None or not any(runs.finished for runs in stored.rows):
        return [], ""
    if setting := incomparable_setting(suite, stored):
        return [], f" The stored reference runs were made with another {setting} and are not drawn."
    shown = {runs.row.label for runs in suite.rows if runs.finished} & comparable_rows(suite, stored).keys()
    same = [each for each in load_training(stored_path, stored) if each.row.label in shown]
    counts = ", ".join(f"{each.row.label} {len(each.lines)} seeds" for each in same)
    return same, f" Dashed: our stored reference runs ({counts}), without their band." if same else ""


def _with_stored(trainings: list[Training], stored: list[Training]) -> pd.DataFrame:
    """The curves, and those of the stored runs for the same panels."""
    frame = curves(trainings)
    if not stored:
        return frame
    reference = curves(stored, "reference")
    return pd.concat([frame, reference[reference["panel"].isin(frame["panel"])]], ignore_index=True)


def _page(suite: SuiteRecords, captions: dict[str, str]) -> str:
    parts = [
        f"# {html.escape(suite.name)}: figures",
        *([nano_warning(suite.name)] if suite.nano else []),
        _counts(suite),
    ]
    for name, caption in captions.items():
        parts += [
            f"## {name}",
            f"![{name}]({name}.png)",
            f"{html.escape(caption, quote=False)} Numbers: [{name}.csv]({name}.csv).",
        ]
    return "\n\n".join(parts) + "\n"


def _counts(suite: SuiteRecords) -> str:
    """Finished and planned seeds of each row; failed runs are counted but not drawn."""
    notes = []
    for runs in suite.rows:
        done = len(runs.finished)
        marks = [f"{len(runs.failed)} failed"] if runs.failed else []
        marks += ["not drawn"] if done == 0 else ["no band"] if done < LEAST_SEEDS else []
        suffix = f" ({', '.join(marks)})" if marks else ""
        notes.append(f"{runs.row.name} {done}/{len(suite.seeds)} seeds{suffix}")
    return html.escape(f"Finished runs only: {'; '.join(notes)}.")


def _curves_caption(suite: SuiteRecords, frame: pd.DataFrame) -> str:
    panels = frame["panel"].unique()
    sums = "; ".join(f"{PANELS[panel]} = {plots.formula(suite, panel)}" for panel in panels)
    return (
        f"Mean score of the training videos of each update over the cumulative rollout NFE. {sums}. "
        "Training prompts, not held-out prompts. Lines: mean over seeds of each run's centred moving mean over "
        f"{WINDOW} updates (fewer at the ends), because every update has other prompts. Bands: Student-t 95 % "
        f"interval of that mean over seeds at each update; none with fewer than {LEAST_SEEDS} seeds. The CSV has raw "
        "and smoothed values."
    )


def _noise_caption(suite: SuiteRecords) -> str:
    policy = suite.config.get("noise_policy") or {"kind": "not recorded"}
    values = ", ".join(f"{key} {value}" for key, value in policy.items())
    return (
        "Standard deviation of the noise that each rollout step injects, from the method's own formula; 0 for a "
        "deterministic step. RSS: root of the summed squares. Rows with equal noise share a line. "
        f"Noise policy: {values}. The noise does not depend on the seed, so there is no band."
    )


def _gradients_caption(frame: pd.DataFrame) -> str:
    spreads = []
    for row, lines in frame.groupby("row", sort=False):
        first = lines.iloc[0]
        parts = [
            f"{first[f'measured_{when}_spread']:.3g} (predicted {first[f'predicted_{when}_spread']:.3g}) {name}"
            for when, name in plots.equalizer_stages(lines).items()
        ]
        spreads.append(f"{row} {', '.join(parts)}")
    text = (
        "Norm of the part of an update's gradient that comes from each trained step. Measured: geometric mean over "
        "updates, then over seeds; bars: Student-t 95 % interval of the log over seeds, none with fewer than "
        f"{LEAST_SEEDS} seeds. After: "
        "with the step's weight and the KL term. Before: the same divided by the step's weight (which does not "
        "multiply the KL term, so that with a KL term this is not exactly the gradient of an unweighted step). "
        "Predicted: the equalizer's relative norm. Units differ: one factor per row gives measured and predicted "
        "norms before the equalizer the same geometric mean over the trained steps, so compare shapes, not heights. "
        f"Largest over smallest trained step: {'; '.join(spreads)}."
    )
    if zeros := frame["n_zero"].sum():
        text += f" Left out, because they have no logarithm: {zeros} norms of 0 or of steps of weight 0."
    return text
