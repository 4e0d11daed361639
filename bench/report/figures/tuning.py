"""The best score of a search after k trials, from its records only: `<folder>/figures/tuning.{png,pdf,csv}`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from bench.core.errors import BenchError
from bench.report.data.records import SuiteRecords, load_records
from bench.report.data.selection import Row
from bench.report.data.tuning import best_table, trial_table
from bench.report.figures import plots
from bench.store.files import write_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER, NAME = "figures", "tuning"


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
    """One line per row over the number of trials; `frame` is that of `best_table`."""
    figure, axes = plots.grid(suite, 1, 1, (6.4, 4.0))
    for index, (row, line) in enumerate(frame.groupby("row", sort=False)):
        axes[0].plot(line["trials"], line["best"], label=row, **plots.style_of(index))
    axes[0].set_xlabel("trials, the first is the suite's default")
    axes[0].set_ylabel(f"best Reward on validation prompts\n(score units), {plots.formula(suite, 'trained')}")
    axes[0].set_xticks(sorted(frame["trials"].unique()))
    plots.legend(figure, axes[0].get_legend_handles_labels()[0], 2)
    return figure
