"""What a page is about: the rows of a suite, or of all variants of a study, each under a label of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.report.data.differences import prompt_texts
from bench.report.data.metrics import MetricColumn
from bench.report.data.records import RowRuns, Run, SuiteRecords
from bench.report.data.selection import BASE, Row, row_title
from bench.report.data.votes import votes_digest
from bench.report.looks import Look, looks
from bench.report.tables.main import MainTable


@dataclass(frozen=True)
class Entry:
    """One row of the page: a row of the suite, or a row of one variant of the study."""

    label: str
    """The row's label; in a study `<variant>/<label>`."""
    title: str
    """For readers, such as "SAGE-GRPO, dual KL"."""
    runs: RowRuns
    variant: str
    """Name of the variant; "" in a suite."""
    look: Look


def page_label(variant: str, label: str) -> str:
    """Label of a row in the page; `variant` is "" in a suite."""
    return f"{variant}/{label}" if variant else label


@dataclass(frozen=True)
class Subject:
    """The records that a page shows."""

    name: str
    """Name of the suite or of the study."""
    folder: Path
    """Where the page is written; links are relative to it."""
    tables: Mapping[str, MainTable]
    """Variant to its main table; the key is "" for a suite."""

    @property
    def is_study(self) -> bool:
        """Whether the page shows the variants of a study."""
        return "" not in self.tables

    @cached_property
    def suites(self) -> list[SuiteRecords]:
        """The records of the suite, or those of each variant."""
        return [main.suite for main in self.tables.values()]

    @property
    def suite(self) -> SuiteRecords:
        """The records of the suite, or of the study's first variant, whose base and prompts are those of all."""
        return self.suites[0]

    @property
    def base(self) -> Run | None:
        """The untrained model."""
        return next((suite.base for suite in self.suites if suite.base), None)

    @cached_property
    def entries(self) -> list[Entry]:
        """All rows with their looks, in the order of the suite; a study's rows stand together over its variants."""
        sides = [(variant, runs) for variant, main in self.tables.items() for runs in main.suite.rows]
        order = list(dict.fromkeys(runs.row.label for _, runs in sides))
        sides.sort(key=lambda side: order.index(side[1].row.label))
        labels = [page_label(variant, runs.row.label) for variant, runs in sides]
        found = looks([runs.row._replace(label=label) for label, (_, runs) in zip(labels, sides, strict=True)])
        return [
            Entry(
                label,
                f"{row_title(runs.row)}: {variant}" if variant else row_title(runs.row),
                runs,
                variant,
                found[label],
            )
            for label, (variant, runs) in zip(labels, sides, strict=True)
        ]

    @cached_property
    def base_look(self) -> Look:
        """How the base is drawn."""
        return looks([Row(BASE, BASE, "none")])[BASE]

    @cached_property
    def metrics(self) -> dict[str, MetricColumn]:
        """The scores that all suites have, by their columns."""
        first, *others = (suite.metrics for suite in self.suites)
        return {name: metric for name, metric in first.items() if all(name in other for other in others)}

    @property
    def primary(self) -> str:
        """The column that rows are compared by."""
        return self.suite.primary

    @property
    def nano(self) -> bool:
        """Whether the model is the miniature one."""
        return any(suite.nano for suite in self.suites)

    @cached_property
    def seeds(self) -> list[int]:
        """All planned seeds, ascending."""
        return sorted({seed for suite in self.suites for seed in suite.seeds})

    @cached_property
    def prompts(self) -> list[str]:
        """The scored prompts, in order; [] without a finished run."""
        return next((texts for suite in self.suites if (texts := prompt_texts(suite))), [])

    @cached_property
    def runs(self) -> list[Run]:
        """The base and every finished run."""
        return [*([self.base] if self.base else []), *(run for entry in self.entries for run in entry.runs.finished)]

    @property
    def digest(self) -> str:
        """What the page's votes are about, as `bench votes` computes it from the records."""
        return votes_digest(self.runs)
