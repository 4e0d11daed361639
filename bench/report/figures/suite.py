"""The figures of a suite, from its records only, below `results/<suite>/figures/`: {png, pdf, csv} of each."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from bench.core.errors import BenchError
from bench.report.data.comparable import incomparable_setting
from bench.report.data.held_out import held_out_curves
from bench.report.data.loading import load_records
from bench.report.data.mechanism import gradients, noise
from bench.report.data.records import SuiteRecords
from bench.report.data.reference import comparable_rows
from bench.report.data.rollouts import (
    HERE,
    REFERENCE,
    adjusts,
    dynamics,
    over_all_seeds,
    rollouts,
    window_of,
)
from bench.report.data.selection import Row
from bench.report.data.stored import find_reference
from bench.report.data.training import Training, load_training
from bench.report.figures import captions, mechanism, plots
from bench.report.figures.curves import draw_curves, drawn_lines
from bench.report.figures.forest import draw_forest, forest_data
from bench.report.tables.notes import nano_warning
from bench.store.files import find, write_files
from bench.store.record import RUN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER, PAGE = "figures", "figures.md"
ROLLOUT_TITLES = {
    "trained": "trained reward",
    "gold_overall": "gold reward",
    "overall": "Overall",
    "clipscore": "CLIPScore",
    "pickscore": "PickScore",
}
DYNAMICS_TITLES = {
    "reward_group_std": ("exploration", "std of the reward within\na group (score units)"),
    "kl_anchor": ("KL to the anchor", "mean KL term"),
    "grad_norm": ("gradient norm", "norm before clipping"),
    "ratio_error": ("ratio error", "largest |ratio - 1| before\nthe first optimizer step"),
    "clipped_share": ("clipped share", "share of transitions\nbeyond the clip range"),
}
LOGARITHMIC = ("kl_anchor", "grad_norm", "ratio_error")


class Drawn(NamedTuple):
    """One figure with its numbers and its caption."""

    name: str
    figure: Figure
    frame: pd.DataFrame
    caption: str


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
    """{file name: content} of each figure as png, pdf and csv and of figures.md; {figure: caption}, in order.

    Figures: forest (with a record of the base), curves (with held-out curves), rollouts, dynamics (if runs record
    any), noise, gradients. `rows` and `seeds` are those of the suite's YAML; left out, they are taken from the
    records' own configuration. Only finished runs are drawn. `reference` is a folder of stored runs with the same
    settings whose rollouts are drawn too (default: see `find_reference`). Records that do not compare, or that lack
    the data of a figure, are a `BenchError`. The bytes depend on the records and on matplotlib only.
    """
    suite = load_records(suite_folder, rows, seeds)
    trainings = load_training(suite_folder, suite)
    contents: dict[str, bytes] = {}
    with plots.styled():
        drawn = [
            *_forest(suite),
            *(held_out := _held_out(suite)),
            _rollouts(suite, trainings, _stored(suite, Path(suite_folder), reference), bool(held_out)),
            *_dynamics(suite, trainings),
            _noise(suite, trainings),
            *_gradients(suite, trainings),
        ]
        for each in drawn:
            contents |= plots.figure_files(each.name, each.figure, each.frame)
    texts = {each.name: each.caption for each in drawn}
    contents[PAGE] = _page(suite, texts).encode()
    return contents, texts


def _forest(suite: SuiteRecords) -> list[Drawn]:
    frame = forest_data(suite)
    if frame.empty:
        return []
    return [Drawn("forest", draw_forest(suite, frame), frame, captions.forest_caption(suite, frame))]


def _held_out(suite: SuiteRecords) -> list[Drawn]:
    """Gain over the base on held-out videos; nothing if the suite records no curves."""
    curves = held_out_curves(suite)
    panels = [name for name in dict.fromkeys((suite.primary, "gold_overall")) if name in set(curves.get("score", []))]
    if not panels:
        return []
    own = curves[curves["score"].isin(panels)].rename(columns={"score": "panel", "gain": "value"})
    frame = over_all_seeds(own.assign(source=HERE).astype({"seed": int, "update": int}))
    rows = [runs.row for runs in suite.rows]
    titles = {name: f"{suite.metrics[name].title}, held-out videos" for name in panels}
    names = dict.fromkeys(panels, "gain over the base (score units)")
    figure = draw_curves(plots.suite_title(suite), rows, frame, titles, names)
    return [Drawn("curves", figure, frame, captions.curves_caption(suite, frame, drawn_lines(frame, rows)))]


def _rollouts(
    suite: SuiteRecords, trainings: Sequence[Training], stored: tuple[list[Training], str], curves: bool
) -> Drawn:
    frame = rollouts(trainings)
    if stored[0]:
        reference = rollouts(stored[0], REFERENCE)
        frame = pd.concat([frame, reference[reference["panel"].isin(frame["panel"])]], ignore_index=True)
    rows = [runs.row for runs in suite.rows]
    titles = {name: f"{ROLLOUT_TITLES[name]} = {plots.formula(suite, name)}" for name in frame["panel"].unique()}
    window = _window(trainings)
    names = dict.fromkeys(titles, f"gain since update 0 (score units),\nmoving mean over {window} updates")
    figure = draw_curves(plots.suite_title(suite), rows, frame, titles, names)
    caption = captions.rollouts_caption(window, adjusts(trainings), drawn_lines(frame, rows), curves)
    return Drawn("rollouts", figure, frame, caption + stored[1])


def _window(trainings: Sequence[Training]) -> int:
    """Updates of the moving means."""
    return window_of(len(trainings[0].lines[0]))


def _dynamics(suite: SuiteRecords, trainings: Sequence[Training]) -> list[Drawn]:
    """Quantities that are 0 in every update are named in the caption and not drawn."""
    frame = dynamics(trainings)
    largest = frame.groupby("panel", sort=False)["recorded"].max()
    shown = [name for name in DYNAMICS_TITLES if largest.get(name, 0) > 0]
    if not shown:
        return []
    zero = [DYNAMICS_TITLES[name][0] for name in DYNAMICS_TITLES if largest.get(name) == 0]
    rows, drawn = [runs.row for runs in suite.rows], frame[frame["panel"].isin(shown)]
    positive = drawn.assign(**{name: _positive(drawn, name) for name in ("value", "mean", "lo", "hi")})
    titles, names = ({name: DYNAMICS_TITLES[name][part] for name in shown} for part in (0, 1))
    figure = draw_curves(plots.suite_title(suite), rows, positive, titles, names, LOGARITHMIC)
    return [
        Drawn(
            "dynamics", figure, frame, captions.dynamics_caption(_window(trainings), zero, drawn_lines(positive, rows))
        )
    ]


def _positive(frame: pd.DataFrame, name: str) -> pd.Series[float]:
    """A column without what has no place on a logarithmic axis."""
    return frame[name].where((frame[name] > 0) | ~frame["panel"].isin(LOGARITHMIC))


def _noise(suite: SuiteRecords, trainings: Sequence[Training]) -> Drawn:
    frame, rows = noise(trainings), [runs.row for runs in suite.rows]
    figure = mechanism.draw_noise(plots.suite_title(suite), rows, frame)
    return Drawn("noise", figure, frame, captions.noise_caption(suite, mechanism.noise_lines(frame, rows)))


def _gradients(suite: SuiteRecords, trainings: Sequence[Training]) -> list[Drawn]:
    frame, rows = gradients(trainings), [runs.row for runs in suite.rows]
    if frame.empty:  # forward methods train no step
        return []
    figure = mechanism.draw_gradients(plots.suite_title(suite), rows, frame)
    caption = captions.gradients_caption(frame, mechanism.gradient_lines(frame, rows))
    return [Drawn("gradients", figure, frame, caption)]


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
    return same, captions.stored_sentence(same)


def _page(suite: SuiteRecords, texts: dict[str, str]) -> str:
    parts = [
        f"# {html.escape(suite.name)}: figures",
        *([nano_warning(suite.name, suite.config)] if suite.nano else []),
        html.escape(captions.seed_counts(suite)),
    ]
    for name, caption in texts.items():
        parts += [
            f"## {name}",
            f"![{name}]({name}.png)",
            f"{html.escape(caption, quote=False)} Numbers: [{name}.csv]({name}.csv).",
        ]
    return "\n\n".join(parts) + "\n"
