"""The main table of a suite, from its records only: `results/<suite>/tables/main.{md,csv,tex}`, `main_narrow.tex`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from bench.report import formatting
from bench.report.data.badges import Badge, badges
from bench.report.data.comparable import incomparable_setting
from bench.report.data.controls import control_results, is_control
from bench.report.data.differences import between_rows, sensitivity, tested_differences, with_effects
from bench.report.data.headline import headline
from bench.report.data.judge import add_beyond, beyond_judges, calibration_suites
from bench.report.data.loading import load_records
from bench.report.data.main_numbers import MainNumbers
from bench.report.data.published import add_published
from bench.report.data.records import SuiteRecords
from bench.report.data.reference import (
    add_reference,
    is_equal,
    pairs_of_equal_seeds,
    reference_notes,
    reference_section,
)
from bench.report.data.reward_hacking import beyond_notes, suspected_rows
from bench.report.data.selection import BASE, Row, row_title, scored_prompts
from bench.report.data.stored import Reference, find_reference, stored_folder
from bench.report.data.summary import summarise
from bench.report.data.verdict import PAIRS, Verdict, reference_verdict, verdict
from bench.report.legend import legend
from bench.report.tables import judge, sections
from bench.report.tables.latex import COLUMN_WIDTH, PACKAGES, TEXT_WIDTH, Caption, latex_table
from bench.report.tables.notes import (
    AGGREGATES_NOTE,
    TESTED_LEAD,
    footnotes,
    nano_note,
    nano_warning,
    scores_lead,
    sums,
    views_note,
)
from bench.report.tables.sections import JOINED, Table, named, without
from bench.store.files import write_files

FOLDER, NAME = "tables", "main"
VERDICT, LEGEND, NOTES = "What these runs show", "Words", "Notes"


@dataclass(frozen=True)
class MainTable(MainNumbers):
    """The numbers of a main table and its texts."""

    reference: Reference
    """The stored runs beside which the suite is shown."""
    broken: list[str]
    """One line per control that cannot calibrate the held-out judges."""

    @property
    def stored(self) -> SuiteRecords | None:
        """The stored reference runs, if there are any."""
        return self.reference.runs

    @property
    def controls(self) -> list[str]:
        """One line per control."""
        return [result.line for result in self.control_results]

    @cached_property
    def views(self) -> pd.DataFrame:
        """The numbers of `sensitivity`."""
        return sensitivity(self.suite)

    @cached_property
    def sections(self) -> dict[str, Table]:
        """Title to heads and lines of each section that has lines."""
        suite, table, stored = self.suite, self.table, self.stored
        content: dict[str, Table] = {
            "Scores": sections.scores(suite, table, self.tests),
            "Differences": sections.differences(suite, table, self.tests),
            PAIRS: sections.pairs(suite, self.tests),
            "Each seed": sections.by_seed(suite, table),
            sections.VIEWS: sections.pair_views(suite, self.views),
            "Differences of single scores": sections.single_differences(suite, table),
            judge.TITLE: judge.beyond_section(self.beyond),
            sections.AGGREGATES: sections.aggregates(suite, table),
            "Further metrics": sections.further(suite, table),
            "What one run spent": sections.cost(suite, table),
            "Beside the stored reference": reference_section(suite, table, stored) if stored else ([], []),
            "Beside the published numbers": sections.published(suite, table),
            sections.RUNS: sections.run_ids(table),
        }
        return {title: section for title, section in content.items() if section[1]}

    @property
    def leads(self) -> dict[str, str]:
        """Title of a section to the words that its reader needs first."""
        return {
            "Scores": " ".join([*sums(self.suite), scores_lead(self.suite)]),
            "Differences": TESTED_LEAD,
            PAIRS: f"Row less row. {TESTED_LEAD}",
        }

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
        warning = [nano_warning(suite.name, suite.config)] if suite.nano else []
        return Verdict([*warning, *own, *beside, *sentences], seeds)

    @property
    def warnings(self) -> list[str]:
        """The notes on scores beyond the held-out judges, and on controls that cannot calibrate these."""
        return [*beyond_notes(self.beyond), *self.broken]

    def notes(self, left_out: Collection[str] = ()) -> list[str]:
        """The notes under the table: what the reader must know about these runs first, definitions last.

        Those on the sections `left_out`, by their titles, are left out too.
        """
        missing = [self.reference.note] if self.reference.note else []
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
    """Write the files of `render_table` atomically: {file name: path}; see `load_main_table`."""
    return write_table_files(suite_folder, load_main_table(suite_folder, rows, seeds))


def write_table_files(suite_folder: Path | str, main: MainTable) -> dict[str, Path]:
    """Write the files of `render_table` atomically: {file name: path}."""
    return write_files(Path(suite_folder) / FOLDER, render_table(main))


def load_main_table(
    suite_folder: Path | str,
    rows: Sequence[Row] | None = None,
    seeds: Sequence[int] | None = None,
    reference: Path | None = None,
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
    table = add_reference(add_published(summarise(suite, tests), suite), suite, stored.runs)
    place = stored_folder(suite.name, reference).parent
    is_stored = stored.folder.resolve() == folder.resolve()  # a copy quotes the controls that the original quotes
    parents = place if is_stored else folder.parent, place
    calibrating, broken = calibration_suites(suite, *parents)
    beyond = beyond_judges(suite, calibrating)
    controls, table = control_results(suite, *parents), add_beyond(table, beyond)
    return MainTable(suite, table, with_effects(suite, tests), beyond, controls, stored, broken)


def render_table(main: MainTable) -> dict[str, str]:
    """File name to text: main.md, main.csv, main.tex, and main_narrow.tex for one column of two."""
    return {
        f"{NAME}.md": _markdown(main),
        f"{NAME}.csv": formatting.csv(main.table),
        f"{NAME}.tex": _tex(main),
        f"{NAME}_narrow.tex": _tex(main, COLUMN_WIDTH),
    }


def more_seeds(seeds: Sequence[int]) -> str:
    """The override that names the seeds."""
    return f"seeds='[{', '.join(map(str, seeds))}]'"


def _markdown(main: MainTable) -> str:
    sentences, seeds = main.verdict
    command = (
        f"More seeds: the same `bench run`, with the same overrides and {more_seeds(seeds)}. Fix their number "
        "beforehand: looking again after each few finds a difference too often where there is none."
    )
    parts = [f"# {main.suite.name}: main table", f"**{headline(main)}**", checks_line(badges(main))]
    parts += [f"## {VERDICT}", bullets([*sentences, *([command] if seeds else [])])]
    for title, (header, rows) in main.sections.items():
        lead = [main.leads[title]] if title in main.leads else []
        parts += [f"## {title}", *lead, formatting.markdown(header, rows)]
    parts += [f"## {NOTES}", bullets(main.notes())]
    parts += [f"## {LEGEND}", bullets(main.legend("\n".join(parts)))]
    return "\n\n".join(parts) + "\n"


def checks_line(found: Sequence[Badge]) -> str:
    """The checks in one paragraph: what failed, what is missing, then the names of those that passed."""
    parts = []
    for state in ("failed", "missing"):
        texts = [f"{badge.name} ({badge.text})" for badge in found if badge.state == state]
        parts += [f"**{state}**: {'; '.join(texts)}."] if texts else []
    passed = ", ".join(badge.name for badge in found if badge.state == "passed")
    return f"Checks: {' '.join([*parts, *([f'passed: {passed}.'] if passed else [])])}"


def bullets(lines: Sequence[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def _tex(main: MainTable, width: int = TEXT_WIDTH) -> str:
    """Scores, differences and pairs of rows as LaTeX floats of this width."""
    name, titles = main.suite.name, _titles(main)
    scored = without(main.sections["Scores"], "seeds")
    parts = [("scores", "Scores", named(scored, titles), scores_lead(main.suite))]
    if "Differences" in main.sections:
        parts.append(("differences", "Differences", named(main.sections["Differences"], titles[1:]), TESTED_LEAD))
    if PAIRS in main.sections:
        by_name = {runs.row.name: row_title(runs.row) for runs in main.suite.rows}
        of_pairs = between_rows(main.tests, main.suite.primary)
        pairs = [f"{by_name[row['row']]} - {by_name[row['other']]}" for _, row in of_pairs.iterrows()]
        parts.append(("pairs", PAIRS, named(main.sections[PAIRS], pairs), TESTED_LEAD))
    floats = [
        latex_table(
            section,
            Caption(f"{name}: {title.lower()}", f"tab:{name}-{key}", f"{_short_note(main)} {lead}"),
            width,
            JOINED,
        )
        for key, title, section, lead in parts
    ]
    return "\n".join([PACKAGES, *floats])


def _titles(main: MainTable) -> list[str]:
    """Names of the base and of each row, with the seeds of a row that lacks some, and the dagger of a failed gate."""
    titles = [row_title(Row(BASE, BASE, "none"))]
    for runs, (_, line) in zip(main.suite.rows, main.table.iloc[1:].iterrows(), strict=True):
        done, planned = len(runs.finished), len(main.suite.seeds)
        seeds = "" if done == planned else f" ({done} of {planned} seeds)"
        titles.append(f"{row_title(runs.row)}{seeds}{' †' if line['failed_gates'] else ''}")
    return titles


def _short_note(main: MainTable) -> str:
    """What a reader of a paper must know: n, the interval, that nano is a miniature, what speaks against the rows."""
    suite = main.suite
    prompts = len(suite.runs[0].cells) if suite.runs else 0
    nano = nano_note(suite.config) if suite.nano else ""
    gate = " †: a run fails a validity gate." if (main.table["failed_gates"] != "").any() else ""
    suspected = [row_title(row) for row in suspected_rows(suite, main.table, main.beyond)]
    hacked = f" Exploitation of the score is suspected: {'; '.join(suspected)}." if suspected else ""
    failed = [result.kind.title for result in main.control_results if result.passed is False]
    controls = f" FAILED: {', '.join(failed).lower()}." if failed else ""
    return (
        f"{nano}Means over {len(suite.seeds)} seeds and {prompts} {scored_prompts(suite.config)} prompts, with 95 % "
        f"intervals of seeds and prompts.{gate}{hacked}{controls}"
    )
