"""The main table of a suite, from its records only: `results/<suite>/tables/main.{md,csv,tex}`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bench.report import formatting
from bench.report.data.controls import control_notes, is_control
from bench.report.data.pairwise import pairs_section
from bench.report.data.records import Row, RowRuns, Suite, load_suite, stored_folder
from bench.report.data.reference import add_reference, reference_notes, reference_section
from bench.report.data.summary import COUNTS, METRICS, PUBLISHED, add_published, summarise
from bench.report.tables.notes import footnotes, warning
from bench.store.files import write_text
from bench.store.record import RUN

FOLDER, NAME = "tables", "main"

#: Metrics of the first table and their heads; `trained` and the differences follow in the second.
HEADS = {
    "overall": "Overall",
    "vq": "VQ",
    "mq": "MQ",
    "ta": "TA",
    "clipscore": "CLIPScore",
    "pickscore": "PickScore",
    "gold_overall": "gold Overall",
}
#: Heads of what one run spent: the totals of `summary.COUNTS`, then time and memory.
COST_HEADS = (
    *("rollout NFE", "train NFE", "anchor NFE", "reward calls", "videos", "decodes", "updates"),
    *("minutes", "peak MB"),
)
Table = tuple[list[str], list[list[str]]]
"""Head and lines of cells."""


class MainTable(NamedTuple):
    """The numbers of a main table, and what stands beside them."""

    suite: Suite
    table: pd.DataFrame
    """Columns of main.csv, one line per row, the base first."""
    stored: Suite | None
    """The stored reference runs, if there are any."""
    controls: list[str]
    """One line per control."""

    @property
    def sections(self) -> dict[str, Table]:
        """Title to head and lines of each section that has any."""
        suite, table, stored = self.suite, self.table, self.stored
        found: dict[str, Table] = {
            "Scores": _scores(suite, table),
            "Differences": _differences(table),
            "Pairs of rows": pairs_section(suite),
            "Aggregates": _aggregates(table),
            "Further metrics": _others(suite, table),
            "What one run spent": _cost(suite, table),
            "Beside the stored reference": reference_section(suite, table, stored) if stored else ([], []),
            "Beside the published numbers": _published(table),
        }
        return {title: section for title, section in found.items() if section[1]}

    def notes(self, controls: Sequence[str] = ()) -> list[str]:
        """The notes under the table, `controls` among them."""
        beside = reference_notes(self.suite, self.table, self.stored) if self.stored else []
        return footnotes(self.suite, self.table, controls, beside)


def build_table(
    suite_folder: Path | str,
    rows: Sequence[Row] | None = None,
    seeds: Sequence[int] | None = None,
    reference: Path | None = None,
    published: Path | None = None,
) -> dict[str, Path]:
    """Write main.md, main.csv and main.tex of a suite atomically, as {file name: path}; see `render_table`."""
    texts = render_table(suite_folder, rows, seeds, reference, published)
    paths = {name: Path(suite_folder) / FOLDER / name for name in texts}
    for name, path in paths.items():
        write_text(path, texts[name])
    return paths


def render_table(
    suite_folder: Path | str,
    rows: Sequence[Row] | None = None,
    seeds: Sequence[int] | None = None,
    reference: Path | None = None,
    published: Path | None = None,
) -> dict[str, str]:
    """The text of each file, nothing written: {"main.md": ..., "main.csv": ..., "main.tex": ...}.

    `rows` and `seeds` are the suite's (from its YAML); left out, the records' own configuration gives them.
    `reference` is a folder of stored runs of the same suite (default: `results/reference/<suite>`, if there is one),
    `published` the folder of published numbers. The suite's controls are looked up beside its own folder, then beside
    the stored one. Unequal budgets, prompts, scorers or spending are a `BenchError`.
    """
    found = load_contents(suite_folder, rows, seeds, reference, published)
    return {
        f"{NAME}.md": _markdown(found),
        f"{NAME}.csv": found.table.to_csv(index=False, float_format="%.8g", lineterminator="\n"),
        f"{NAME}.tex": _tex(found.suite, found.table, found.controls),
    }


def load_contents(
    suite_folder: Path | str,
    rows: Sequence[Row] | None = None,
    seeds: Sequence[int] | None = None,
    reference: Path | None = None,
    published: Path | None = None,
) -> MainTable:
    """What the main table says, before it is text; the arguments are those of `render_table`."""
    suite = load_suite(suite_folder, rows, seeds)
    place = stored_folder(suite.name, reference)
    stored = None
    if any(place.rglob(RUN)) and place.resolve() != Path(suite_folder).resolve():
        stored = load_suite(place, [runs.row for runs in suite.rows])
    table = add_reference(add_published(summarise(suite), suite, published), suite, stored)
    return MainTable(suite, table, stored, control_notes(suite, Path(suite_folder).parent, place.parent))


# the parts ----------------------------------------------------------------------------------------------------
def _label(row: pd.Series[Any]) -> str:
    return f"{row['row']} †" if row["failed_gates"] else str(row["row"])


def _seeds(row: pd.Series[Any], suite: Suite) -> str:
    if row["method"] == "base":
        return "-"
    failed = f" ({row['n_failed']} failed)" if row["n_failed"] else ""
    return f"{row['n_seeds']}/{len(suite.seeds)}{failed}"


def _scores(suite: Suite, table: pd.DataFrame) -> Table:
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


def _aggregates(table: pd.DataFrame) -> Table:
    names = {"trained": "trained score", "overall_iqm": "IQM of Overall", "improvement": "P(Overall > base)"}
    digits = {name: formatting.decimals(table, name) for name in names}
    rows = [
        [_label(row), *[formatting.interval(row, name, digits[name]) for name in names]] for _, row in table.iterrows()
    ]
    return ["Row", *names.values()], rows


def _others(suite: Suite, table: pd.DataFrame) -> Table:
    """Every further metric that was scored: single gold scores, detectors of reward hacking."""
    names = [name for name in suite.columns if name not in METRICS]
    digits = {name: formatting.decimals(table, name) for name in names}
    rows = [
        [_label(row), *[formatting.interval(row, name, digits[name]) for name in names]] for _, row in table.iterrows()
    ]
    return ["Row", *names], rows if names else []


def _cost(suite: Suite, table: pd.DataFrame) -> Table:
    rows = []
    for (_, row), runs in zip(table.iloc[1:].iterrows(), suite.rows, strict=True):
        counts = [formatting.count(row[name]) for name in COUNTS]
        rows.append([_label(row), *counts, *minutes_and_memory(runs)])
    return ["Row", *COST_HEADS], rows


def minutes_and_memory(runs: RowRuns) -> list[str]:
    """Minutes per run (mean) and peak memory in MB (largest) of the finished runs."""
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


# the files ----------------------------------------------------------------------------------------------------
def _markdown(found: MainTable) -> str:
    suite, controls = found.suite, found.controls
    parts = [f"# {suite.name}: main table", *([warning(suite)] if suite.nano else [])]
    if is_control(suite):  # what a control is for stands above its numbers
        parts, controls = [*parts, *controls], []
    for title, (header, rows) in found.sections.items():
        parts += [f"## {title}", formatting.markdown(header, rows)]
    parts += ["## Notes", "\n".join(f"- {note}" for note in found.notes(controls))]
    return "\n\n".join(parts) + "\n"


def _tex(suite: Suite, table: pd.DataFrame, controls: Sequence[str]) -> str:
    notes = footnotes(suite, table, controls)
    head = "% Written by `bench table` from the run records; needs the package booktabs.\n"
    scores = formatting.tex_table(*_scores(suite, table), f"{suite.name}: scores", f"tab:{suite.name}-scores", notes)
    differences = formatting.tex_table(
        *_differences(table), f"{suite.name}: differences", f"tab:{suite.name}-differences", []
    )
    return head + scores + "\n" + differences
