"""`bench verify`: whether records are whole and comparable, and stored tables what they give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from bench import store
from bench.audit.verify_run import Finding, check_run
from bench.core.errors import BenchError
from bench.report.data.records import load_suite, row_settings
from bench.report.data.selection import Selection, candidate_plans, levels_of, packaged_suites, records_of
from bench.report.tables.ablation import NAME as ABLATION
from bench.report.tables.ablation import render_ablation
from bench.report.tables.main import FOLDER, NAME, render_table

#: A folder with one of these is a run's.
MARKS = (store.RUN, store.SCORES, store.TRAIN, store.STARTED, store.CHECKPOINT, store.JOB, store.POLICY)
#: Plans that are tried before a table counts as not being that of its records.
MOST_SELECTIONS = 12
NOT_CHECKED = "not checked, since a run below it cannot be read: mend that run first"
_REMAKE = "write the tables again with `bench table`, or restore the records that they were made from"


class Report(NamedTuple):
    """What was found, and in how much."""

    findings: list[Finding]
    runs: int
    suites: int
    tables: int

    @property
    def wrong(self) -> int:
        """Findings that make results unfit."""
        return sum(finding.wrong for finding in self.findings)

    @property
    def text(self) -> str:
        """A line per finding and the summary."""
        counts = f"{self.runs} runs, {self.suites} suites, {self.tables} stored tables"
        notes = len(self.findings) - self.wrong
        verdict = f"{self.wrong} wrong" if self.wrong else "all well"
        summary = f"{counts}: {verdict}{f', {notes} to note' if notes else ''}"
        return "\n".join([*(finding.line for finding in self.findings), summary])


def verify(folders: Sequence[Path]) -> Report:
    """Check everything below the folders, each run, suite and table once."""
    runs: set[Path] = set()
    tables: set[Path] = set()
    for folder in folders:
        found = {path.parent for mark in MARKS for path in folder.rglob(mark)}
        if not found:
            raise BenchError(f"{folder} holds no run (no {store.RUN} anywhere below): name a folder of records.")
        runs |= found
        tables |= {path for path in folder.rglob(FOLDER) if path.is_dir()}
    findings: list[Finding] = []
    for run in sorted(runs):
        findings += check_run(run)
    unread = {finding.where for finding in findings if finding.blocks}
    suites = sorted({_suite_of(run) for run in runs})
    for check, places in ((_check_suite, suites), (_check_tables, sorted(tables))):
        for place in places:
            top = place if check is _check_suite else place.parent
            blocked = any(top in run.parents for run in unread)
            findings += [Finding(place, NOT_CHECKED, wrong=False)] if blocked else check(place)
    stored = sum(len(_stored(place)) for place in tables)
    return Report(findings, len(runs), len(suites), stored)


def _suite_of(run: Path) -> Path:
    """`results/<suite>` of a run's folder."""
    return run.parent.parent if run.name.startswith("seed-") else run.parent


# suites -------------------------------------------------------------------------------------------------------
def _check_suite(folder: Path) -> Iterator[Finding]:
    """The records of one suite compare with each other, pilot seeds too, and no run stands in it twice."""
    try:
        records = records_of(folder)
        seeds = sorted({record.seed for record in records if record.seed is not None})
        if records:
            load_suite(folder, seeds=seeds or None)
    except BenchError as error:
        yield Finding(folder, str(error).rstrip("."))
        return
    first = {record.digest: record for record in reversed(records)}
    for record in records:
        one = first[record.digest]
        if (one.seed, row_settings(one)) != (record.seed, row_settings(record)):
            names = [store.run_folder("", run.row, run.seed).as_posix() for run in (one, record)]
            yield Finding(
                folder, f"{names[0]} and {names[1]} have one digest, {one.digest}: the second is a copy, run it again"
            )


# tables -------------------------------------------------------------------------------------------------------
def _stored(place: Path) -> dict[str, bytes]:
    """The stored tables of one folder, by file name."""
    names = [f"{name}.{end}" for name in (NAME, ABLATION) for end in ("md", "csv", "tex")]
    return {name: (place / name).read_bytes() for name in names if (place / name).is_file()}


def _check_tables(place: Path) -> Iterator[Finding]:
    """Stored tables are, byte for byte, what `bench table` writes from the records with one of their plans."""
    stored = _stored(place)
    if not stored:
        return
    folder, best = place.parent, None
    try:
        for texts in islice(_renderings(folder, stored), MOST_SELECTIONS):
            odd = [name for name, content in stored.items() if texts.get(name) != content.decode(errors="replace")]
            if not odd:
                return
            if best is None or len(odd) < len(best[0]):
                best = odd, texts
    except BenchError as error:
        yield Finding(place, f"the tables cannot be checked ({str(error).rstrip('.')}): {_REMAKE}")
        return
    if best is None:
        yield Finding(place, f"tables without records: {_REMAKE}")
        return
    for name in best[0]:
        line = _first_difference(stored[name].decode(errors="replace"), best[1].get(name, ""))
        yield Finding(
            place / name, f"is not what `bench table` writes from these records, from line {line} on: {_REMAKE}"
        )


def _first_difference(text: str, other: str) -> int:
    """Number of the first line in which two texts differ."""
    a, b = text.split("\n"), other.split("\n")
    return next((number for number, (x, y) in enumerate(zip(a, b, strict=False), 1) if x != y), min(len(a), len(b)))


def _renderings(folder: Path, stored: dict[str, bytes]) -> Iterator[dict[str, str]]:
    """The texts that `bench table` writes, one mapping per plan; the parts that are not stored are left out."""
    variants = _variants(folder, stored)
    if not variants:
        return
    known = {name: list(candidate_plans(path)) for name, path in variants.items()}
    for place in range(max(map(len, known.values()))):
        plan = {name: found[min(place, len(found) - 1)] for name, found in known.items()}
        yield {**_main(folder, plan, stored), **_ablation(folder, variants, plan, stored)}


def _variants(folder: Path, stored: dict[str, bytes]) -> dict[str, Path]:
    """Folders of a study's variants, its baseline first, or that of the suite itself as ""; {} without records.

    No record says which variant stands first: the project's own YAML does, else the stored table itself.
    """
    if records_of(folder):
        return {"": folder}
    below = {path.name for path in folder.iterdir() if records_of(path)}
    listed = [exp.variant for exp in packaged_suites().values() if exp.variant and exp.study == folder.name]
    listed = listed if set(listed) == below else _order_in(stored)
    return {name: folder / name for name in (listed if set(listed) == below else sorted(below))}


def _order_in(stored: dict[str, bytes]) -> list[str]:
    """Variants in the order of the stored ablation.csv."""
    lines = stored.get(f"{ABLATION}.csv", b"").decode(errors="replace").splitlines()[1:]
    return list(dict.fromkeys(line.split(",")[1] for line in lines if line.count(",") > 1))


def _main(folder: Path, plan: dict[str, Selection], stored: dict[str, bytes]) -> dict[str, str]:
    if "" not in plan or not any(name.startswith(f"{NAME}.") for name in stored):
        return {}
    return render_table(folder, *plan[""])


def _ablation(
    folder: Path, variants: dict[str, Path], plan: dict[str, Selection], stored: dict[str, bytes]
) -> dict[str, str]:
    if not any(name.startswith(f"{ABLATION}.") for name in stored):
        return {}
    levels = levels_of({name: load_suite(path, *plan[name]) for name, path in variants.items()})
    return render_ablation(levels, folder.name) if levels else {}
