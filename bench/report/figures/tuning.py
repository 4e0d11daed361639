"""The best score of a search after k trials, from its records only: `<folder>/figures/tuning.{png,pdf,csv}`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from bench.core.errors import BenchError
from bench.report.data.loading import load_records
from bench.report.data.records import SuiteRecords
from bench.report.data.selection import Row, row_title
from bench.report.data.tuning import best_table, trial_table
from bench.report.figures import plots
from bench.report.looks import looks
from bench.store.files import write_files
from bench.suite.search import trial_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER, NAME = "figures", "tuning"
SIZE = (6.8, 4.0)


def build_tuning_figure(folder: Path, rows: Sequence[Row] | None, seeds: Sequence[int] | None) -> dict[str, Path]:
    """Write tuning.png, tuning.pdf and tuning.csv atomically: {file name: path}.

    `rows` and `seeds` are those of the suite's YAML. A row whose trials have not all run has no line; if no row has
    one, a `BenchError`. The bytes depend on the records and on matplotlib only.
    """
    suite = load_records(folder, rows, seeds)
    frame = best_table(trial_table(suite))
    if frame.empty:
        raise BenchError(f"{folder}: no row of the search has run all of its trials: run the rest first.")
    with plots.styled():
        return write_files(folder / FOLDER, plots.figure_files(NAME, best_curves(suite, frame), frame))


def best_curves(suite: SuiteRecords, frame: pd.DataFrame) -> Figure:
    """One line per row over the number of trials, named at its end; `frame` is that of `best_table`."""
    from matplotlib.ticker import FixedLocator

    rows = {named[0]: runs.row._replace(label=named[0]) for runs in suite.rows if (named := trial_of(runs.row.label))}
    styles = looks(rows.values())
    figure, axes = plots.canvas(plots.suite_title(suite), 1, 1, SIZE)
    axis, ends = axes[0][0], []
    for label, line in frame.groupby("row", sort=False):
        look = styles[str(label)]
        axis.plot(line["trials"], line["best"], **plots.line_style(look))
        ends.append(
            plots.End(line["trials"].iloc[-1], line["best"].iloc[-1], row_title(rows[str(label)]), look.colour)
        )
    axis.set_xlabel("trials, the first is the suite's default")
    axis.set_ylabel(f"best Reward on validation prompts\n(score units), {plots.formula(suite, 'trained')}")
    axis.xaxis.set_major_locator(FixedLocator(sorted(frame["trials"].unique())))
    plots.name_ends(axis, ends, SIZE[1])
    return figure
