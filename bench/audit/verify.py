"""`bench verify`: are records complete and comparable, and do stored tables follow from them?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import store
from bench.audit.findings import Finding, Gap, StoredRun
from bench.audit.verify_run import check_run
from bench.audit.verify_suite import check_bases, check_suite
from bench.audit.verify_tables import check_tables, stored_tables
from bench.core.errors import BenchError
from bench.core.progress import track
from bench.core.rules import RULES
from bench.report.tables.main import FOLDER

#: Files that mark the folder of a run.
RUN_FILES = (store.RUN, store.SCORES, store.TRAIN, store.STARTED, store.CHECKPOINT, store.JOB, store.POLICY)
NOT_CHECKED = "not checked, because a run below it cannot be read: fix that run first"


class Report(NamedTuple):
    """Findings, and the number of checked runs, suites and stored tables."""

    findings: list[Finding]
    runs: int
    suites: int
    tables: int
    repeatable: list[Path]
    """The runs that can be read, have finished and were made under the rules of this version."""
    drawn: int | None = None
    """Number of runs that were drawn to be done again; None if nobody asked for that."""
    repeated: int = 0
    """Number of those that were done again."""

    @property
    def wrong(self) -> int:
        """Number of findings that invalidate results."""
        return sum(finding.wrong for finding in self.findings)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong and every run that was drawn was done again."""
        return not self.wrong and self.repeated == (self.drawn or 0)

    @property
    def text(self) -> str:
        """A line per finding and the summary."""
        counts = f"{self.runs} runs, {self.suites} suites, {self.tables} stored tables"
        if self.drawn is not None:
            counts += f", {self.repeated} of {self.drawn} drawn runs done again"
        notes = len(self.findings) - self.wrong
        verdict = f"{self.wrong} wrong" if self.wrong else "all well" if self.passed else "not all done again"
        summary = f"{counts}: {verdict}{f', {notes} to note' if notes else ''}"
        return "\n".join([*(finding.line for finding in self.findings), summary])


def folders_of_runs(folders: Sequence[Path]) -> list[Path]:
    """Every folder of a run below the folders, once; a folder without runs is a `BenchError`."""
    runs: set[Path] = set()
    for folder in folders:
        below = {path.parent for name in RUN_FILES for path in store.find(folder, f"**/{name}")}
        if not below:
            raise BenchError(f"{folder} holds no run (no {store.RUN} anywhere below): name a folder of records.")
        runs |= below
    return sorted(runs)


def verify(folders: Sequence[Path]) -> Report:
    """Check every run, suite and stored table below the folders once."""
    paths = folders_of_runs(folders)
    tables = {path for folder in folders for path in store.find(folder, f"**/{FOLDER}") if path.is_dir()}
    findings: list[Finding] = []
    gaps: list[Gap] = []
    runs: dict[Path, StoredRun] = {}
    for path in track(paths, "checking runs"):
        for result in check_run(path):
            match result:
                case StoredRun():
                    runs[path] = result
                case Gap():
                    gaps.append(result)
                case Finding():
                    findings.append(result)
    unreadable = {finding.path for finding in findings if finding.blocks}
    suites: dict[Path, list[StoredRun]] = {suite_of(path): [] for path in paths}
    for path, run in runs.items():
        suites[suite_of(path)].append(run)
    checks: list[tuple[Path, Path, Callable[[], Iterator[Finding]]]] = [
        *((suite, suite, lambda suite=suite: check_suite(suite, suites[suite])) for suite in sorted(suites)),
        *((folder, folder.parent, lambda folder=folder: check_tables(folder)) for folder in sorted(tables)),
    ]
    for path, records, check in track(checks, "checking suites and tables"):
        blocked = any(records in run.parents for run in unreadable)
        findings += [Finding(path, NOT_CHECKED, wrong=False)] if blocked else check()
    findings += check_bases([run for run in runs.values() if run.record.seed is None])
    if gaps:
        older = len({path for path, run in runs.items() if run.record.rules == 1})
        fields = ", ".join(dict.fromkeys(gap.fields for gap in gaps))
        text = f"older records: {len(gaps)} checks of {older} runs need fields that they do not have ({fields})"
        findings.append(Finding(folders[0], text, wrong=False))
    stored = sum(len(stored_tables(folder)) for folder in tables)
    repeatable = [path for path, run in runs.items() if run.record.status == "finished" and run.record.rules == RULES]
    return Report(list(merged(findings, set(paths))), len(paths), len(suites), stored, repeatable)


def suite_of(run: Path) -> Path:
    """`results/<suite>` of a run's folder."""
    return run.parent.parent if run.name.startswith("seed-") else run.parent


def merged(findings: Iterable[Finding], runs: Collection[Path]) -> Iterator[Finding]:
    """The findings, with the equal notes on several of these runs of a suite as one."""
    groups: dict[object, list[Finding]] = {}
    for number, finding in enumerate(findings):
        single = finding.wrong or finding.path not in runs
        groups.setdefault(number if single else (suite_of(finding.path), finding.text), []).append(finding)
    for first, *others in groups.values():
        text = f"{len(others) + 1} runs: {first.text}"
        yield first._replace(path=suite_of(first.path), text=text) if others else first
