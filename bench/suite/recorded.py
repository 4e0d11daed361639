"""The suite of a results folder from its records, and what a record has otherwise than a suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from bench.core.errors import BenchError
from bench.core.hashing import digest
from bench.store.files import find
from bench.store.record import RUN, RunRecord, read_inputs, read_record, run_folder
from bench.suite.checkpoints import Checkpoint, checkpoint_names
from bench.suite.difference import first_difference, row_difference, settings_difference
from bench.suite.paths import resolve
from bench.suite.schema import PILOT_SEED, RowSpec, Suite

SUITE_FILE = "suite.yaml"
"""The suite that `bench run` stores in the folder of its records."""


def named_folder(path: Path) -> Path:
    """The path, absolute if its last part is no name, such as "."."""
    return path.resolve() if path.name in ("", "..") else path


def results_of(folder: Path) -> Path:
    """The folder of all suites' records that contains a suite's folder, or that of a variant of a study."""
    folder = named_folder(folder)
    if (folder / SUITE_FILE).is_file():
        return folder.parent
    records = _records(folder)
    is_variant = (folder.parent / SUITE_FILE).is_file() or (bool(records) and "/" in records[0].suite)
    return folder.parent.parent if is_variant else folder.parent


def suite_of_record(run: Path, record: RunRecord) -> Suite:
    """The suite of a run, as its record has it; one that this version does not accept is a `BenchError`."""
    try:
        return Suite.model_validate(record.config)
    except ValidationError as cause:
        first = cause.errors()[0]
        raise BenchError(
            f"record {run / RUN} has a configuration that this version does not accept "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}): check out the commit that it names."
        ) from cause


def recorded_suites(folder: Path) -> list[Suite]:
    """The suite of the records in a folder, or all variants of a study in the order of their names.

    Records of different settings are a `BenchError`. Rows and seeds are those of all records' configurations, without
    pilot seeds if there are others.
    """
    records = _records(folder)
    if records:
        study = folder.parent.name if "/" in records[0].suite else None
        return [_suite(folder, records, folder.name if study is None else f"{study}/{folder.name}")]
    variants = {path.name: below for path in sorted(folder.iterdir()) if path.is_dir() and (below := _records(path))}
    if not variants:
        raise BenchError(f"{folder} stores no suite and no records: name a suite's YAML, or run `bench run` first.")
    for name, below in variants.items():
        if "/" not in below[0].suite:
            raise BenchError(f"{folder} holds several suites: name one of them, such as {folder / name}.")
    return [_suite(folder / name, below, f"{folder.name}/{name}") for name, below in variants.items()]


def _records(folder: Path) -> list[RunRecord]:
    paths = [path.parent for path in sorted([*find(folder, f"*/{RUN}"), *find(folder, f"*/seed-*/{RUN}")])]
    records = {path: read_record(path) for path in paths}
    return [record for path, record in records.items() if path == run_folder(folder, record.row, record.seed)]


def _suite(folder: Path, records: Sequence[RunRecord], name: str) -> Suite:
    try:
        suites = [Suite.model_validate(record.config) for record in records]
    except ValidationError as cause:
        first = cause.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise BenchError(
            f"{folder} has a record whose configuration is not one of this version ({key}: {first['msg']}): name the "
            "suite's YAML."
        ) from cause
    largest = max(suites, key=lambda suite: (len(suite.seeds), len(suite.rows)))
    for suite in suites:
        if change := first_difference(suite.shared(), largest.shared()):
            raise BenchError(f"{folder} holds runs of several settings ({change}): name the suite's YAML.")
    ordered = [largest, *suites]
    own = {record.row: _row(suite, record.row) for record, suite in zip(records, suites, strict=True)}
    rows = {row.name: own.get(row.name) or row for suite in ordered for row in suite.rows}
    seeds = list(dict.fromkeys(seed for suite in ordered for seed in suite.seeds))
    reported = [seed for seed in seeds if seed < PILOT_SEED]
    return largest.model_copy(update={"suite": name, "rows": list(rows.values()), "seeds": reported or seeds})


def record_difference(
    run: Path, record: RunRecord, suite: Suite, checkpoints: dict[str, Checkpoint] | None = None
) -> str | None:
    """The first setting that a recorded run had otherwise than the suite has it; None if nothing differs.

    Of a path that is written otherwise, what it leads to is compared, where that is known on both sides: the prompts,
    and the files of a checkpoint. `checkpoints`: a cache, read and extended, so that many runs hash each one once.
    """
    before, row = suite_of_record(run, record), _row(suite, record.row)
    change = settings_difference(before, suite) or (row and row_difference(before, row))
    if change:
        return change
    if before.prompts != suite.prompts and _other_prompts(record, suite):
        return "the prompts are other ones there and here"
    there, digests = checkpoint_names(before), read_inputs(run).get("checkpoints", {})
    cache = {} if checkpoints is None else checkpoints
    for use, name in checkpoint_names(suite).items():
        own = cache.setdefault(name, Checkpoint(name))
        known = there.get(use) != name and use in digests and own.path.exists()
        if known and own.digest != digests[use]:
            return f"checkpoint {use} is {there.get(use)} there and {name} here, with other files"
    return None


def _other_prompts(record: RunRecord, suite: Suite) -> bool:
    """Whether the suite's prompt files, if they exist, have other prompts than those of the record."""
    scored = suite.evaluation.prompts
    if not all(resolve(name).is_file() for name in (suite.prompts.train, getattr(suite.prompts, scored))):
        return False
    return digest([suite.prompt_list("train"), suite.prompt_list(scored)]) != record.prompts_digest


def _row(suite: Suite, name: str) -> RowSpec | None:
    """The row with this name; None for the base."""
    return next((row for row in suite.rows if row.name == name), None)
