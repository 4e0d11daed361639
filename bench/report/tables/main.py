"""The main table of a suite, from its records only: `results/<suite>/tables/main.{md,csv,tex}`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bench.report import formatting
from bench.report.data.controls import control_notes, is_control
from bench.report.data.records import RowRuns, SuiteRecords, load_records, stored_folder
from bench.report.data.reference import add_reference, find_reference, reference_notes, reference_section
from bench.report.data.selection import BASE, Row
from bench.report.data.summary import COUNTS, METRICS, PAIR_SCORES, PUBLISHED, add_published, pairs_of_rows, summarise
from bench.report.tables.notes import footnotes, nano_warning
from bench.store.files import write_files

FOLDER, NAME = "tables", "main"

#: Metrics of the section Scores and their column heads.
HEADS = {
    "overall": "Overall",
    "vq": "VQ",
    "mq": "MQ",
    "ta": "TA",
    "clipscore": "CLIPScore",
    "pickscore": "PickScore",
    "gold_overall": "gold Overall",
}
#: Column heads of the cost of one run: the totals of `summary.COUNTS`, then time and memory.
COST_HEADS = (
    *("rollout NFE", "train NFE", "anchor NFE", "reward calls", "videos", "decodes", "updates"),
    *("minutes", "peak MB"),
)
Table = tuple[list[str], list[list[str]]]
"""Column heads, and lines of cells."""


class MainTable(NamedTuple):
    """The numbers of a main table, the stored reference and the controls."""

    suite: SuiteRecords
    table: pd.DataFrame
    """The columns of main.csv, one line per row, the base first."""
    stored: SuiteRecords | None
    """The stored reference runs, if there are any."""
    controls: list[str]
    """One line per control."""
    no_reference: str | None = None
    """Why there are no stored reference runs."""

    @property
    def sections(self) -> dict[str, Table]:
        """Title to heads and lines of each section that has lines."""
        suite, table, stored = self.suite, self.table, self.stored
        sections: dict[str, Table] = {
            "Scores": _scores(suite, table),
            "Differences": _differences(table),
            "Pairs of rows": _pairs(suite),
            "Aggregates": _aggregates(table),
            "Further metrics": _others(suite, table),
            "What one run spent": _cost(suite, table),
            "Beside the stored reference": reference_section(suite, table, stored) if stored else ([], []),
            "Beside the published numbers": _published(table),
        }
        return {title: section for title, section in sections.items() if section[1]}

    def notes(self, controls: Sequence[str] = ()) -> list[str]:
        """The notes under the table, with the lines of `controls`."""
        missing = [self.no_reference] if self.no_reference else []
        reference = reference_notes(self.suite, self.table, self.stored) if self.stored else missing
        return [*footnotes(self.suite, self.table), *controls, *reference]


def build_table(
    suite_folder: Path | str, rows: Sequence[Row] | None = None, seeds: Sequence[int] | None = None
) -> dict[str, Path]:
    """Write main.md, main.csv and main.tex of a suite atomically: {file name: path}; see `load_main_table`."""
    return write_files(Path(suite_folder) / FOLDER, render_table(load_main_table(suite_folder, rows, seeds)))


def load_main_table(
    suite_folder: Path | str,
    rows: Sequence[Row] | None = None,
    seeds: Sequence[int] | None = None,
    reference: Path | None = None,
    published: Path | None = None,
) -> MainTable:
    """The numbers of a suite's main table, from its records.

    `rows` and `seeds` are those of the suite's YAML; left out, they are taken from the records' own configuration.
    `reference` is a folder of stored runs with the same settings (default: see `find_reference`),
    `published` the folder of published numbers. Controls are looked up beside the suite's folder, then beside
    `reference`. Runs with other budgets, prompts, evaluators or spending are a `BenchError`.
    """
    suite = load_records(suite_folder, rows, seeds)
    folder = Path(suite_folder)
    stored = find_reference(suite, folder, reference)
    table = add_reference(add_published(summarise(suite), suite, published), suite, stored.runs)
    controls = control_notes(suite, folder.parent, stored_folder(suite.name, reference, folder).parent)
    return MainTable(suite, table, stored.runs, controls, stored.note)


def render_table(main: MainTable) -> dict[str, str]:
    """The text of each file: {"main.md": ..., "main.csv": ..., "main.tex": ...}."""
    return {
        f"{NAME}.md": _markdown(main),
        f"{NAME}.csv": main.table.to_csv(index=False, float_format="%.8g", lineterminator="\n"),
        f"{NAME}.tex": _tex(main),
    }


def _label(row: pd.Series[Any]) -> str:
    return f"{row['row']} †" if row["failed_gates"] else str(row["row"])


def _seeds(row: pd.Series[Any], suite: SuiteRecords) -> str:
    if row["method"] == BASE:
        return "-"
    failed = f" ({row['n_failed']} failed)" if row["n_failed"] else ""
    return f"{row['n_seeds']}/{len(suite.seeds)}{failed}"


def _scores(suite: SuiteRecords, table: pd.DataFrame) -> Table:
    digits = {name: formatting.decimals(table, name) for name in HEADS}
    rows = [
        [
            _label(row),
            _seeds(row, suite),
            *[formatting.interval(row, name, digits[name]) for name in HEADS],
            row["run_ids"] or formatting.MISSING,
        ]
        for _, row in table.iterrows()
    ]
    return ["Row", "seeds", *HEADS.values(), "run ids"], rows


def _differences(table: pd.DataFrame) -> Table:
    names = ("overall_delta", "trained_delta", "vs_best_delta")
    digits = {
        name: formatting.decimals(table, name)
        for name in (*names, "trained", "overall_iqm", "improvement", "gold_overall_delta")
    }
    rows = []
    for _, row in table.iloc[1:].iterrows():
        line = [_label(row)]
        for name in names[:2]:
            line += [formatting.difference_cell(row, name, digits[name]), formatting.p_value(row[f"{name}_p_holm"])]
        line += [
            formatting.interval(row, "gold_overall_delta", digits["gold_overall_delta"]),
            formatting.number(row["overall_mde"]),
        ]
        line += [
            formatting.difference_cell(row, "vs_best_delta", digits["vs_best_delta"]),
            formatting.p_value(row["vs_best_delta_p_holm"]),
        ]
        rows.append([*line, row["vs_best_row"] or formatting.MISSING])
    head = ["Row", "Overall - base", "p (Holm)", "trained - base", "p (Holm)", "gold Overall - base", "MDE"]
    return [*head, "Overall - best other", "p (Holm)", "best other row"], rows


def _pairs(suite: SuiteRecords) -> Table:
    """Every pair of trained rows; no lines with fewer than two rows or too many of them."""
    table = pairs_of_rows(suite)
    if table.empty:
        return [], []
    digits = {score: formatting.decimals(table, f"{score}_diff") for score in PAIR_SCORES}
    lines = []
    for _, row in table.iterrows():
        line = [f"{row['row']} - {row['other']}"]
        for score in PAIR_SCORES:
            line.append(formatting.difference_cell(row, f"{score}_diff", digits[score]))
            line.append(formatting.p_value(row[f"{score}_diff_p_holm"]))
        lines.append(line)
    return ["Pair", *[head for name in PAIR_SCORES.values() for head in (name, "p (Holm)")]], lines


def _aggregates(table: pd.DataFrame) -> Table:
    names = {"trained": "trained score", "overall_iqm": "IQM of Overall", "improvement": "P(Overall > base)"}
    digits = {name: formatting.decimals(table, name) for name in names}
    rows = [
        [_label(row), *[formatting.interval(row, name, digits[name]) for name in names]] for _, row in table.iterrows()
    ]
    return ["Row", *names.values()], rows


def _others(suite: SuiteRecords, table: pd.DataFrame) -> Table:
    """All further metrics that were scored: single gold scores, detectors of reward hacking."""
    names = [name for name in suite.columns if name not in METRICS]
    digits = {name: formatting.decimals(table, name) for name in names}
    rows = [
        [_label(row), *[formatting.interval(row, name, digits[name]) for name in names]] for _, row in table.iterrows()
    ]
    return ["Row", *names], rows if names else []


def _cost(suite: SuiteRecords, table: pd.DataFrame) -> Table:
    rows = []
    for (_, row), runs in zip(table.iloc[1:].iterrows(), suite.rows, strict=True):
        counts = [formatting.count(row[name]) for name in COUNTS]
        rows.append([_label(row), *counts, *minutes_and_memory(runs)])
    return ["Row", *COST_HEADS], rows


def minutes_and_memory(runs: RowRuns) -> list[str]:
    """Mean minutes per run and largest peak memory in MB of the finished runs, as text."""
    seconds = [sum(run.record.seconds.values()) for run in runs.finished if run.record.seconds]
    memory = [run.record.peak_memory_mb for run in runs.finished if run.record.peak_memory_mb is not None]
    minutes = formatting.number(sum(seconds) / len(seconds) / 60, 1) if seconds else formatting.MISSING
    return [minutes, formatting.count(max(memory)) if memory else formatting.MISSING]


def _published(table: pd.DataFrame) -> Table:
    heads = [head for name in PUBLISHED for head in (f"{HEADS[name]}: here", "published")]
    rows = []
    for _, row in table.iterrows():
        pairs = [
            (formatting.number(row[name], 4), formatting.number(row[f"published_{name}"], 4)) for name in PUBLISHED
        ]
        rows.append([_label(row), *[text for pair in pairs for text in pair]])
    return ["Row", *heads], rows


def _markdown(main: MainTable) -> str:
    suite, controls = main.suite, main.controls
    parts = [f"# {suite.name}: main table", *([nano_warning(suite.name)] if suite.nano else [])]
    if is_control(suite):  # the verdict on a control comes before its numbers
        parts, controls = [*parts, *controls], []
    for title, (header, rows) in main.sections.items():
        parts += [f"## {title}", formatting.markdown(header, rows)]
    parts += ["## Notes", "\n".join(f"- {note}" for note in main.notes(controls))]
    return "\n\n".join(parts) + "\n"


def _tex(main: MainTable) -> str:
    suite, table = main.suite, main.table
    notes = [*footnotes(suite, table), *main.controls]
    head = "% Written by `bench table` from the run records; needs the package booktabs.\n"
    scores = formatting.tex_table(*_scores(suite, table), f"{suite.name}: scores", f"tab:{suite.name}-scores", notes)
    differences = formatting.tex_table(
        *_differences(table), f"{suite.name}: differences", f"tab:{suite.name}-differences", []
    )
    return head + scores + "\n" + differences
