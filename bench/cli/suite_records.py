"""The records of a suite or study, which `bench table`, `figures`, `report` and `gallery` read."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.errors import BenchError
from bench.core.progress import working

if TYPE_CHECKING:
    from bench.report.data.ablation import AblationLevel
    from bench.report.data.selection import Row
    from bench.suite.schema import Suite


@dataclass(frozen=True)
class RecordedSuite:
    """A suite, or one variant of a study, whose records have its settings."""

    suite: Suite
    rows: list[Row]
    """The suite's rows as its table shows them."""
    results: Path
    """Folder of all suites' records."""

    @property
    def folder(self) -> Path:
        """Folder of this suite's records."""
        return self.results / self.suite.name

    @property
    def study_folder(self) -> Path:
        """Folder of the study that the variant belongs to; of the suite itself if it is not a variant."""
        return self.results / self.suite.study


def recorded_suites(args: argparse.Namespace) -> list[RecordedSuite]:
    """The suite, or every variant of the study; records of other settings are a `BenchError`."""
    from bench.cli.suite_arguments import load_suites

    suites = load_suites(args)  # for its errors, before the rest is imported
    with working(f"reading the records of {suites[0].study}"):
        from bench.core.provenance import source_digest
        from bench.report.data.selection import rows_of

        recorded, sources = [], source_digest()
        for suite in suites:
            recorded.append(RecordedSuite(suite, rows_of(suite), args.results))
            _check_settings(recorded[-1], sources, args.command)
    return recorded


def ablation_levels(recorded: list[RecordedSuite]) -> list[AblationLevel]:
    """The levels that the suite or study compares; empty if no method has two rows, and for a search."""
    from bench.report.data.ablation import levels_of
    from bench.report.data.loading import load_records

    if recorded[0].suite.search is not None:
        return []
    return levels_of({each.suite.variant: load_records(each.folder, each.rows, each.suite.seeds) for each in recorded})


def _check_settings(recorded: RecordedSuite, harness: str, command: str) -> None:
    """Refuse records of other settings than the suite's; print a note if their sources are other ones."""
    from bench import store
    from bench.core.hashing import digest
    from bench.suite.checkpoints import Checkpoint
    from bench.suite.recorded import record_difference
    from bench.suite.sources import run_sources

    suite, folder = recorded.suite, recorded.folder
    stale, missing, checkpoints = 0, set[str](), dict[str, Checkpoint]()
    sources: dict[tuple[tuple[str, str], ...], str | None] = {}
    rows = {row.name: row for row in suite.rows}
    runs = [folder / "base", *(store.run_folder(folder, row, seed) for row in rows for seed in suite.seeds)]
    for run in runs:
        if not (run / store.RUN).exists():
            continue
        record = store.read_record(run)
        change = record_difference(run, record, suite, checkpoints)
        if change:
            raise BenchError(
                f"record {run} was made with other settings: {change}. Give `bench {command}` the YAML and the "
                f"overrides of that run or its folder {recorded.study_folder}, or run the suite under a name of its "
                "own with suite=NAME."
            )
        plugins = tuple(suite.run_plugins(rows.get(record.row)))
        if plugins not in sources:  # rows of the same plug-ins have the same sources
            own = run_sources(suite, rows.get(record.row), harness)
            lost = {plugin for plugin, files in own["plugins"].items() if not files}
            missing |= lost
            sources[plugins] = None if lost else digest(own)
        stale += sources[plugins] not in (None, record.provenance.get("source_digest"))
    if missing:
        print(f"note: not found from this folder, so not compared: {', '.join(sorted(missing))}", file=sys.stderr)
    if stale:
        print(f"note: the sources have changed since {stale} of these runs were made", file=sys.stderr)
