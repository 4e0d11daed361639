"""The project's stored runs beside which a suite is shown: found by the settings of the suite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bench.core.provenance import CHECKOUT, ROOT
from bench.report.data.comparable import SUITE_SPECIFIC, recorded_settings
from bench.report.data.loading import load_records, records_below
from bench.report.data.records import SuiteRecords, is_nano
from bench.report.data.selection import settings_key
from bench.store.files import find
from bench.store.record import RUN, RunRecord
from bench.suite.difference import differences, shortened

STORED = ROOT / ("results" if CHECKOUT else "bench/report") / "reference"
"""The project's stored runs: in a checkout below its results, in a wheel inside the package (see setup.py)."""


def stored_folder(name: str, reference: Path | None = None, own: Path | None = None) -> Path:
    """Folder of the stored reference runs of the suite `name`: `reference`, or the project's own. It may not exist.

    It is `own`, a folder of runs of this suite, if these are the stored ones: copies of the same files.
    """
    if reference is not None:
        return reference
    return own if own is not None and _same_runs(own, STORED / name) else STORED / name


def _same_runs(folder: Path, stored: Path) -> bool:
    """Whether every record in `folder` that `stored` has too is the same file, byte for byte, and there is one."""
    runs = [path.relative_to(stored) for path in stored.rglob(RUN) if (folder / path.relative_to(stored)).is_file()]
    return bool(runs) and all((folder / run).read_bytes() == (stored / run).read_bytes() for run in runs)


class Reference(NamedTuple):
    """The stored runs beside which a suite is shown."""

    folder: Path
    """Folder of the stored suite's records; it may not exist."""
    runs: SuiteRecords | None = None
    """The stored runs, with the suite's own labels; None if there are none."""
    note: str | None = None
    """Why there are none, if stored runs with nearly the same settings exist."""


def find_reference(suite: SuiteRecords, folder: Path, reference: Path | None = None) -> Reference:
    """The stored runs with the settings of the suite whose records are in `folder`.

    `reference` names the folder of the stored runs. Without it, the project's stored suites are searched: that of the
    same name comes first, then of those with the suite's settings the one with the most equal rows. A stored suite
    itself has no reference.
    """
    named = stored_folder(suite.name, reference, folder)
    if folder.resolve().is_relative_to(STORED.resolve()) or named.resolve() == folder.resolve():
        return Reference(named)
    own = next((run.record for run in suite.runs), None)
    if reference is not None or own is None:
        return Reference(named, _stored_runs(suite, named))
    stored = {path: _differing(own, records[0][1]) for path, records in _stored_suites(suite.nano)}
    fitting = [path for path, differing in stored.items() if not differing]
    if named in fitting or (named in stored and not fitting):
        return Reference(named, _stored_runs(suite, named))
    if fitting:
        best = max(fitting, key=lambda path: len(_equal_rows(suite, path)))
        return Reference(best, _stored_runs(suite, best))
    if not stored:
        return Reference(named)
    nearest = min(stored, key=lambda path: len(stored[path]))
    setting, (own_value, stored_value) = next(iter(stored[nearest].items()))
    key, (here, there) = next(iter(differences({setting: own_value}, {setting: stored_value}, nested=True).items()))
    name = nearest.relative_to(STORED).as_posix()
    note = (
        f"No stored reference has these settings: the nearest, {name}, differs: {key} is {shortened(there)} there and "
        f"{shortened(here)} here."
    )
    return Reference(named, note=note)


def _stored_suites(nano: bool) -> Iterator[tuple[Path, list[tuple[Path, RunRecord]]]]:
    """Folder and records of each of the project's stored suites, of the miniature model or of others."""
    folders = sorted([*find(STORED, f"*/*/{RUN}"), *find(STORED, f"*/*/*/{RUN}")])
    for folder in dict.fromkeys(path.parent.parent for path in folders if not path.parent.name.startswith("seed-")):
        records = records_below(folder)
        if is_nano(records[0][1].config) == nano:
            yield folder, records


def _differing(own: RunRecord, stored: RunRecord) -> dict[str, tuple[Any, Any]]:
    """Name to the two values of each setting in which the records of two suites differ, such as their budgets."""
    pairs = differences(recorded_settings(own), recorded_settings(stored))
    return {name: pair for name, pair in pairs.items() if name not in SUITE_SPECIFIC}


def _equal_rows(suite: SuiteRecords, folder: Path) -> dict[str, str]:
    """Label of each row of the suite to that of the stored row with the same method, KL policy and parameters."""
    stored = {
        settings_key(record): record.row
        for _, record in records_below(folder)
        if record.seed is not None and record.status == "finished"
    }
    own = {runs.row.label: settings_key(runs.finished[0].record) for runs in suite.rows if runs.finished}
    return {label: stored[settings] for label, settings in own.items() if settings in stored}


def _stored_runs(suite: SuiteRecords, folder: Path) -> SuiteRecords | None:
    """The stored runs of the suite's rows under its own labels; a row without an equal one gets that of its label."""
    if not find(folder, f"**/{RUN}"):
        return None
    equal = _equal_rows(suite, folder)
    labels = {runs.row: equal.get(runs.row.label, runs.row.label) for runs in suite.rows}
    stored = load_records(folder, [row._replace(label=label) for row, label in labels.items()])
    by_label = {runs.row.label: runs for runs in stored.rows}
    rows = [replace(by_label[label], row=row) for row, label in labels.items()]
    return replace(stored, rows=rows)
