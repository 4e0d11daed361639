"""The runs of one suite against each other and against its log of starts; the base against those of other suites."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import store
from bench.audit.findings import RERUN, Finding, StoredRun, missing
from bench.audit.verify_scores import ROUNDING, pickscore_scale
from bench.core.errors import BenchError
from bench.core.hashing import canonical_json
from bench.report.data.loading import load_records
from bench.report.data.selection import row_settings
from bench.store.attempts import ATTEMPTS, Attempt, read_attempts
from bench.suite.difference import shortened, without_extra_files

Pair = tuple[StoredRun, StoredRun]


def check_suite(folder: Path, runs: Sequence[StoredRun]) -> Iterator[Finding]:
    """The records of one suite compare with each other, pilot seeds too, and no run is a copy of another one."""
    try:
        seeds = sorted({run.record.seed for run in runs if run.record.seed is not None})
        if runs:
            load_records(folder, seeds=seeds or None)
    except BenchError as error:
        yield Finding(folder, str(error).rstrip("."))
        return
    yield from _copies(folder, runs)
    yield from _scales(folder, runs)
    yield from _attempts(folder, runs)


def _first_pairs(runs: Sequence[StoredRun], key: Any) -> Iterator[Pair]:
    """Each run with the first one that has the same key; None is no key."""
    first: dict[Hashable, StoredRun] = {}
    for run in runs:
        value = key(run)
        if value is not None and first.setdefault(value, run) is not run:
            yield first[value], run


def _copies(folder: Path, runs: Sequence[StoredRun]) -> Iterator[Finding]:
    """No two runs have one digest, no two of a row the same scores, and no two seeds the same curve."""
    copies = set()
    for one, other in _first_pairs(runs, lambda run: run.record.digest):
        if _identity(one) != _identity(other):
            copies.add(other.name)
            yield Finding(
                folder,
                f"{one.name} and {other.name} have one digest, {one.record.digest}: the second is a copy, "
                "run it again",
            )
    trained = [run for run in runs if run.record.seed is not None and run.name not in copies]
    for one, other in _first_pairs(trained, _scores_of_row):
        copies.add(other.name)
        yield Finding(
            folder,
            f"{one.name} and {other.name} have the same scores, {one.record.scores_digest}, in every bit: two seeds "
            "of a row never do, so one is a copy of the other; run it again",
        )
    for one, other in _first_pairs([run for run in trained if run.lines], lambda run: run.log_digest):
        if one.record.seed != other.record.seed and other.name not in copies:
            yield Finding(
                folder,
                f"{one.name} and {other.name} have the same {store.TRAIN} although their seeds differ: one is a copy "
                "of the other; run it again",
            )


def _identity(run: StoredRun) -> tuple[Any, ...]:
    return run.record.seed, row_settings(run.record)


def _scores_of_row(run: StoredRun) -> Hashable:
    digest = run.record.scores_digest
    return None if digest is None else (run.record.row, digest)


def _scales(folder: Path, runs: Sequence[StoredRun]) -> Iterator[Finding]:
    """PickScore's logit scale, a constant of its weights, is the same in all runs."""
    known: tuple[StoredRun, float] | None = None
    for run in runs:
        metrics = {name: group for name, group in run.scores.groupby("metric")["value"]}
        if not {"pickscore", "pickscore_cosine"} <= metrics.keys():
            continue
        own, cosine = (metrics[name].reset_index(drop=True) for name in ("pickscore", "pickscore_cosine"))
        scale = pickscore_scale(own, cosine)
        first, expected = known = known or (run, scale)
        if not np.isclose(scale, expected, rtol=ROUNDING, atol=0):
            yield Finding(
                folder,
                f"{run.name} has pickscore = {scale:.7g} pickscore_cosine, but {first.name} {expected:.7g}, although "
                f"their weights are the same: {RERUN}",
            )


def _attempts(folder: Path, runs: Sequence[StoredRun]) -> Iterator[Finding]:
    """Every run has its line in the log of starts; runs that were started and are not shown are a note."""
    try:
        attempts = read_attempts(folder)
    except BenchError as error:
        yield Finding(folder, str(error).rstrip("."))
        return
    for run in runs:
        problem = _attempt_problem(run, attempts)
        if problem is not None:
            yield Finding(run.folder, f"{problem}: restore the file, or run it again")
    shown = {run.record.digest for run in runs}
    hidden = dict.fromkeys(f"{_label(a)}" for a in attempts or [] if a.digest not in shown)
    if hidden:
        started, names = len({attempt.digest for attempt in attempts or []}), shortened(", ".join(hidden), 200)
        text = f"{started} runs were started and {len(shown)} are shown; without a record: {names}"
        yield Finding(folder, text, wrong=False)


def _label(attempt: Attempt) -> str:
    name = store.run_folder("", attempt.row, attempt.seed).as_posix()
    return f"{name} ({attempt.digest})"


def _attempt_problem(run: StoredRun, attempts: Sequence[Attempt] | None) -> str | None:
    """What is wrong with the line of a run in the log of starts; None if it is there."""
    record = run.record
    if record.attempt is None:
        gap = missing(record, "attempt")
        return gap if isinstance(gap, str) else None
    if attempts is None:
        return f"the record of {run.name} names a line of {ATTEMPTS}, but there is no such file"
    line = next((attempt for attempt in attempts if attempt.hash == record.attempt), None)
    if line is None:
        return f"the record of {run.name} names a line that {ATTEMPTS} does not have, {record.attempt[:16]}"
    if (line.row, line.seed, line.digest) != (record.row, record.seed, record.digest):
        return f"the record of {run.name} names the start of {_label(line)} in {ATTEMPTS}"
    return None


def check_bases(bases: Sequence[StoredRun]) -> Iterator[Finding]:
    """Untrained models that were evaluated alike on one kind of machine have equal scores in all suites."""
    for one, other in _first_pairs(bases, _evaluation):
        if one.record.scores_digest != other.record.scores_digest:
            yield Finding(
                other.folder,
                f"the base of {other.record.suite} has other scores than that of {one.record.suite}, although model, "
                f"evaluators, prompts, evaluation and hardware are the same: {RERUN}",
            )


def _evaluation(run: StoredRun) -> str:
    """Everything that decides the scores of an untrained model."""
    record, budget, provenance = run.record, run.suite.budget, run.record.provenance
    hardware = provenance.get("hardware", {})
    used = {name: record.evaluators.get(name) for name in run.suite.evaluation.evaluators}
    sampling = [budget.shift, budget.guidance, budget.micro_batch]
    cpu = str(hardware.get("cpu"))
    host = None if "family" in cpu else provenance.get("system")  # older records have a name that many models share
    machine = [cpu, host, hardware.get("machine"), provenance.get("gpu"), provenance.get("packages")]
    evaluation = without_extra_files(run.suite.evaluation.model_dump(mode="json"))
    return canonical_json([record.backbone, used, record.prompts_digest, evaluation, sampling, machine])
