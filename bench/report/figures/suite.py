"""The figures of a suite, from its records only: `results/<suite>/figures/{curves,noise,gradients}.{png,pdf,csv}`."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.core.errors import BenchError
from bench.core.hashing import canonical_json
from bench.report.data.records import Row, Suite, _incomparable, load_suite, row_settings, stored_folder
from bench.report.data.training import WINDOW, Training, curves, gradients, load_training, noise
from bench.report.figures import plots
from bench.report.figures.plots import PANELS
from bench.report.tables.notes import warning
from bench.store.files import write_bytes
from bench.store.record import RUN

FOLDER, PAGE = "figures", "figures.md"


def build_figures(
    suite_folder: Path | str,
    rows: Sequence[Row] | None = None,
    seeds: Sequence[int] | None = None,
    reference: Path | None = None,
) -> dict[str, Path]:
    """Write curves, noise and gradients as png, pdf and csv, and figures.md with their captions: {file name: path}.

    `rows` and `seeds` are the suite's (from its YAML); left out, the records' own configuration gives them. Only
    finished runs are drawn. `reference` is a folder of stored runs of the same suite whose curves are drawn beside
    (default: `results/reference/<suite>`, if there is one). Records that do not compare, or that lack what a figure
    shows, are a `BenchError`, and no file is written. The bytes depend on the records and on matplotlib only.
    """
    contents = render_figures(suite_folder, rows, seeds, reference)[0]
    paths = {name: Path(suite_folder) / FOLDER / name for name in contents}
    for name, path in paths.items():
        write_bytes(path, contents[name])
    return paths


def render_figures(
    suite_folder: Path | str,
    rows: Sequence[Row] | None = None,
    seeds: Sequence[int] | None = None,
    reference: Path | None = None,
) -> tuple[dict[str, bytes], dict[str, str]]:
    """{file name: content} of `build_figures`, nothing written, and {figure: caption}."""
    suite = load_suite(suite_folder, rows, seeds)
    trainings = load_training(suite_folder, suite)
    stored, about_stored = _stored(suite, Path(suite_folder), reference)
    frames = {"curves": _with_stored(trainings, stored), "noise": noise(trainings), "gradients": gradients(trainings)}
    contents: dict[str, bytes] = {}
    with plots.styled():
        drawn = {"curves": plots.curves, "noise": plots.noise, "gradients": plots.gradients}
        for name, draw in drawn.items():
            contents |= plots.figure_files(name, draw(suite, trainings, frames[name]), frames[name])
    captions = {
        "curves": _about_curves(suite, frames["curves"]) + about_stored,
        "noise": _about_noise(suite),
        "gradients": _about_gradients(frames["gradients"]),
    }
    contents[PAGE] = _page(suite, captions).encode()
    return contents, captions


def _stored(suite: Suite, folder: Path, reference: Path | None) -> tuple[list[Training], str]:
    """Stored runs of the same settings and rows, and a sentence on them for the caption."""
    place = stored_folder(suite.name, reference)
    if not any(place.rglob(RUN)):
        if reference is not None:
            raise BenchError(f"reference {reference} holds no records ({RUN}): name a folder of finished runs.")
        return [], ""
    if place.resolve() == folder.resolve():
        return [], ""
    stored = load_suite(place, [runs.row for runs in suite.rows])
    if other := _incomparable(suite, stored):
        return [], f" The stored reference runs were made with another {other} and are not drawn."
    here, there = (
        {runs.row.label: canonical_json(row_settings(runs.finished[0].record)) for runs in one.rows if runs.finished}
        for one in (suite, stored)
    )
    alike = [one for one in load_training(place, stored) if here.get(one.row.label) == there[one.row.label]]
    counts = ", ".join(f"{one.row.label} {len(one.lines)} seeds" for one in alike)
    return alike, f" Dashed: our stored reference runs ({counts}), without their band." if alike else ""


def _with_stored(trainings: list[Training], stored: list[Training]) -> pd.DataFrame:
    """The curves, and those of the stored runs for the same panels."""
    frame = curves(trainings)
    if not stored:
        return frame
    beside = curves(stored, "reference")
    return pd.concat([frame, beside[beside["panel"].isin(frame["panel"])]], ignore_index=True)


# captions -----------------------------------------------------------------------------------------------------
def _page(suite: Suite, captions: dict[str, str]) -> str:
    parts = [f"# {html.escape(suite.name)}: figures", *([warning(suite)] if suite.nano else []), _counts(suite)]
    for name, caption in captions.items():
        parts += [
            f"## {name}",
            f"![{name}]({name}.png)",
            f"{html.escape(caption, quote=False)} Numbers: [{name}.csv]({name}.csv).",
        ]
    return "\n\n".join(parts) + "\n"


def _counts(suite: Suite) -> str:
    """Finished of planned seeds per row; failed runs are counted and shown, never drawn."""
    notes = []
    for runs in suite.rows:
        done = len(runs.finished)
        marks = [f"{len(runs.failed)} failed"] if runs.failed else []
        marks += {0: ["not drawn"], 1: ["no band"]}.get(done, [])
        told = f" ({', '.join(marks)})" if marks else ""
        notes.append(f"{runs.row.label} {done}/{len(suite.seeds)} seeds{told}")
    return html.escape(f"Finished runs only: {'; '.join(notes)}.")


def _about_curves(suite: Suite, frame: pd.DataFrame) -> str:
    panels = frame["panel"].unique()
    sums = "; ".join(f"{PANELS[panel]} = {plots.formula(suite, panel)}" for panel in panels)
    return (
        "Mean score of the training videos of each update over the rollout NFE spent so far, that update's included. "
        f"{sums}. Training prompts, not held-out ones. Lines: mean over seeds of each run's centred moving mean over "
        f"{WINDOW} updates (fewer at the ends), because every update has other prompts. Bands: Student-t 95 % "
        "interval of that mean over seeds, point by point; none with one seed. The numbers hold raw and smoothed "
        "values."
    )


def _about_noise(suite: Suite) -> str:
    policy = suite.config.get("noise_policy") or {"kind": "not recorded"}
    values = ", ".join(f"{key} {value}" for key, value in policy.items())
    return (
        "Standard deviation of the noise that each rollout step injects, from the method's own formula; 0 where a "
        "step is deterministic. RSS: root of the summed squares. Rows with equal noise share a line. "
        f"Noise policy: {values}. It does not depend on the seed, so there is no band."
    )


def _about_gradients(frame: pd.DataFrame) -> str:
    told = []
    for row, lines in frame.groupby("row", sort=False):
        first = lines.iloc[0]
        parts = [
            f"{first[f'measured_{when}_spread']:.3g} (predicted {first[f'predicted_{when}_spread']:.3g}) {name}"
            for when, name in plots.stages(lines).items()
        ]
        told.append(f"{row} {', '.join(parts)}")
    text = (
        "Norm of what each trained step adds to an update's gradient. Measured: geometric mean over updates, then "
        "over seeds; bars: Student-t 95 % interval of the log over seeds, none with one seed. After: as it entered "
        "the update, KL term included. Before: after, over the step's weight (the weight does not multiply the KL "
        "term, so with one this is not exactly the gradient of an unweighted step). Predicted: the equalizer's "
        "relative norm. Units differ, so one factor per row, the same before and after, gives measured and predicted "
        "norms before the equalizer the same geometric mean over the trained steps: shapes compare, heights do not. "
        f"Largest over smallest trained step: {'; '.join(told)}."
    )
    if zeros := frame["n_zero"].sum():
        text += f" Left out, as they have no logarithm: {zeros} norms of 0 or of steps of weight 0."
    return text
