"""The main table of a suite, from its records only: `results/<suite>/tables/main.{md,csv,tex}`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd

from bench.report import formatting
from bench.report.data.controls import control_notes, is_control
from bench.report.data.differences import sensitivity, tested_differences, with_effects
from bench.report.data.judge import add_beyond, beyond_judges, calibration_suites
from bench.report.data.published import add_published
from bench.report.data.records import SuiteRecords, incomparable_setting, load_records
from bench.report.data.reference import (
    add_reference,
    is_equal,
    pairs_of_equal_seeds,
    reference_notes,
    reference_section,
)
from bench.report.data.reward_hacking import beyond_notes
from bench.report.data.selection import Row
from bench.report.data.stored import Reference, find_reference, stored_folder
from bench.report.data.summary import summarise
from bench.report.data.verdict import Verdict, reference_verdict, verdict
from bench.report.legend import legend
from bench.report.tables import judge, sections
from bench.report.tables.notes import AGGREGATES_NOTE, footnotes, nano_warning, views_note
from bench.report.tables.sections import Table
from bench.store.files import write_files

FOLDER, NAME = "tables", "main"
VERDICT, LEGEND, NOTES = "What these runs show", "Words", "Notes"


class MainTable:
    """The numbers of a main table, the stored reference and the controls."""

    def __init__(
        self,
        suite: SuiteRecords,
        table: pd.DataFrame,
        reference: Reference,
        controls: list[str],
        beyond: pd.DataFrame,
        broken: list[str],
        tests: pd.DataFrame,
    ) -> None:
        self.suite = suite
        self.table = table
        """The columns of main.csv, one line per row, the base first."""
        self.stored = reference.runs
        """The stored reference runs, if there are any."""
        self.no_reference = reference.note
        """Why there are no stored reference runs, if others are nearly of these settings."""
        self.controls = controls
        """One line per control."""
        self.beyond = beyond
        """The frame of `beyond_judges`."""
        self.broken = broken
        """One line per control that cannot calibrate it."""
        self.tests = tests
        """The numbers of `tested_differences` and `with_effects`."""

    @cached_property
    def views(self) -> pd.DataFrame:
        """The numbers of `sensitivity`."""
        return sensitivity(self.suite)

    @cached_property
    def sections(self) -> dict[str, Table]:
        """Title to heads and lines of each section that has lines."""
        suite, table, stored = self.suite, self.table, self.stored
        content: dict[str, Table] = {
            "Scores": sections.scores(suite, table),
            "Each seed": sections.by_seed(suite, table),
            "Differences": sections.differences(suite, table),
            "Pairs of rows": sections.pairs(suite, self.tests),
            sections.VIEWS: sections.pair_views(suite, self.views),
            "Differences of single scores": sections.single_differences(suite, table),
            judge.TITLE: judge.beyond_section(self.beyond),
            sections.AGGREGATES: sections.aggregates(suite, table),
            "Further metrics": sections.further(suite, table),
            "What one run spent": sections.cost(suite, table),
            "Beside the stored reference": reference_section(suite, table, stored) if stored else ([], []),
            "Beside the published numbers": sections.published(suite, table),
        }
        return {title: section for title, section in content.items() if section[1]}

    @cached_property
    def verdict(self) -> Verdict:
        """What the runs show, in words: for a control its own verdict, then the rows, then the stored reference."""
        suite, stored = self.suite, self.stored
        own = [*self.controls] if is_control(suite) else []
        sentences, seeds = verdict(suite, self.tests)
        beside: list[str] = []
        if stored is not None and incomparable_setting(suite, stored) is None:
            same = pairs_of_equal_seeds(suite, stored)
            beside = reference_verdict(suite, stored, self.tests, len(same), sum(map(is_equal, same)))
        warning = [nano_warning(suite.name)] if suite.nano else []
        return Verdict([*warning, *own, *beside, *sentences], seeds)

    @property
    def warnings(self) -> list[str]:
        """The notes on scores beyond the held-out judges, and on controls that cannot calibrate these."""
        return [*beyond_notes(self.beyond), *self.broken]

    def notes(self, left_out: Collection[str] = ()) -> list[str]:
        """The notes under the table: what the reader must know about these runs first, definitions last.

        Those on the sections `left_out`, by their titles, are left out too.
        """
        missing = [self.no_reference] if self.no_reference else []
        reference = reference_notes(self.suite, self.table, self.stored) if self.stored else missing
        controls = [] if is_control(self.suite) else self.controls
        definitions = {
            sections.VIEWS: [views_note(self.views)],
            sections.AGGREGATES: [AGGREGATES_NOTE],
            judge.TITLE: judge.beyond_definitions(self.suite, self.beyond),
        }
        return [
            *self.warnings,
            *footnotes(self.suite, self.table, self.tests, [*controls, *reference]),
            *(
                note
                for title in definitions
                if title in self.sections.keys() - {*left_out}
                for note in definitions[title]
            ),
        ]

    def legend(self, text: str) -> list[str]:
        """One line per word of the table that occurs in `text`."""
        return legend(text, (runs.row.kl for runs in self.suite.rows), self.suite.metrics.values())


def build_table(
    suite_folder: Path | str, rows: Sequence[Row] | None = None, seeds: Sequence[int] | None = None
) -> dict[str, Path]:
    """Write main.md, main.csv and main.tex of a suite atomically: {file name: path}; see `load_main_table`."""
    return write_table_files(suite_folder, load_main_table(suite_folder, rows, seeds))


def write_table_files(suite_folder: Path | str, main: MainTable) -> dict[str, Path]:
    """Write main.md, main.csv and main.tex of a loaded table atomically: {file name: path}."""
    return write_files(Path(suite_folder) / FOLDER, render_table(main))


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
    `reference`; those of the stored runs, and of a copy of them, beside the stored runs, so that the text is the same
    wherever the copy lies. Runs with other budgets, prompts, evaluators or spending are a `BenchError`.
    """
    suite = load_records(suite_folder, rows, seeds)
    folder = Path(suite_folder)
    stored = find_reference(suite, folder, reference)
    tests = tested_differences(suite)
    table = add_reference(add_published(summarise(suite, tests), suite, published), suite, stored.runs)
    place = stored_folder(suite.name, reference).parent
    is_stored = stored.folder.resolve() == folder.resolve()  # a copy quotes the controls that the original quotes
    parents = place if is_stored else folder.parent, place
    calibrating, broken = calibration_suites(suite, *parents)
    beyond = beyond_judges(suite, calibrating)
    controls, table = control_notes(suite, *parents), add_beyond(table, beyond)
    return MainTable(suite, table, stored, controls, beyond, broken, with_effects(suite, tests))


def render_table(main: MainTable) -> dict[str, str]:
    """The text of each file: {"main.md": ..., "main.csv": ..., "main.tex": ...}."""
    return {
        f"{NAME}.md": _markdown(main),
        f"{NAME}.csv": main.table.to_csv(index=False, float_format="%.8g", lineterminator="\n"),
        f"{NAME}.tex": _tex(main),
    }


def more_seeds(seeds: Sequence[int]) -> str:
    """The override that names the seeds."""
    return f"seeds='[{', '.join(map(str, seeds))}]'"


def _markdown(main: MainTable) -> str:
    sentences, seeds = main.verdict
    command = f"More seeds: the same `bench run`, with the same overrides and {more_seeds(seeds)}."
    parts = [f"# {main.suite.name}: main table", f"## {VERDICT}", bullets([*sentences, *([command] if seeds else [])])]
    for title, (header, rows) in main.sections.items():
        parts += [f"## {title}", formatting.markdown(header, rows)]
    parts += [f"## {NOTES}", bullets(main.notes())]
    parts += [f"## {LEGEND}", bullets(main.legend("\n".join(parts)))]
    return "\n\n".join(parts) + "\n"


def bullets(lines: Sequence[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def _tex(main: MainTable) -> str:
    suite, table = main.suite, main.table
    notes = [*main.warnings, *footnotes(suite, table, main.tests, main.controls)]
    head = "% Written by `bench table` from the run records; needs the package booktabs.\n"
    scores = formatting.tex_table(
        *sections.scores(suite, table), f"{suite.name}: scores", f"tab:{suite.name}-scores", notes
    )
    differences = formatting.tex_table(
        *sections.differences(suite, table), f"{suite.name}: differences", f"tab:{suite.name}-differences", []
    )
    return head + scores + "\n" + differences
