"""The checks of a suite in three states, for the first lines of its table and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from bench.report import formatting
from bench.report.data.controls import CONTROLS, Control, ControlResult, is_control
from bench.report.data.differences import between_rows
from bench.report.data.main_numbers import MainNumbers
from bench.report.data.records import SuiteRecords, failed_gates
from bench.report.data.wording import span
from bench.store.record import RunRecord
from bench.store.replay import read_replay

RATIO = "ratio_audit"
#: Validity gates that every suite should have.
GATES = ("golden_scores", RATIO)

State = Literal["passed", "missing", "failed"]


class Badge(NamedTuple):
    """One check."""

    name: str
    state: State
    """ "missing": nobody looked, or what is there decides nothing."""
    text: str
    """What was found, without full stop."""


def badges(main: MainNumbers) -> list[Badge]:
    """The checks of a suite: runs, budget, controls, each validity gate, replays, smallest detectable effect."""
    suite = main.suite
    return [
        _seeds(suite),
        _budget(suite),
        *_controls(main),
        *_gates(suite),
        _replays(suite),
        *([] if is_control(suite) else [_effect(main)]),
    ]


def _seeds(suite: SuiteRecords) -> Badge:
    """Failed: a run failed; missing: a run has not been done yet."""
    planned = len(suite.rows) * len(suite.seeds)
    done, failed = sum(len(row.finished) for row in suite.rows), sum(len(row.failed) for row in suite.rows)
    state: State = "failed" if failed else "passed" if done == planned and suite.base else "missing"
    parts = [f"{done} of {planned} runs finished"]
    parts += [f"{failed} failed"] if failed else []
    parts += [] if suite.base else ["the base has not run"]
    return Badge("seeds done", state, ", ".join(parts))


def _budget(suite: SuiteRecords) -> Badge:
    """Unequal runs make no table (`load_records`), so this is missing or passed."""
    runs = sum(len(row.finished) for row in suite.rows)
    if runs < 2:
        return Badge("equal budget", "missing", "fewer than two trained runs")
    text = f"equal settings, NFE and reward calls in all {runs} runs"
    opened = [row.row.label for row in suite.rows if row.row.open]
    return Badge("equal budget", "passed", f"{text}; open division: {', '.join(opened)}" if opened else text)


def _controls(main: MainNumbers) -> list[Badge]:
    """Both controls of a suite; for a suite that is a control, itself. Missing: it was not run, or it is undecided."""
    found = {result.kind: result for result in main.control_results}
    kinds = found if is_control(main.suite) else CONTROLS
    return [_control(kind, found.get(kind)) for kind in kinds]


def _control(kind: Control, result: ControlResult | None) -> Badge:
    state: State = "missing" if result is None or result.passed is None else "passed" if result.passed else "failed"
    return Badge(kind.title.lower(), state, "not run" if result is None else result.verdict.rstrip("."))


def _gates(suite: SuiteRecords) -> list[Badge]:
    """Failed: a run fails the gate; missing: a run has no result of it."""
    return [_gate(name, records) for name, records in gated_records([run.record for run in suite.runs]).items()]


def gated_records(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Each gate to the records that should have it: those of `GATES`, and those that a record has."""
    names = dict.fromkeys([*GATES, *(name for record in records for name in record.gates)])
    gated = {name: [each for each in records if name != RATIO or _has_ratio(each)] for name in names}
    return {name: records for name, records in gated.items() if records}


def _has_ratio(record: RunRecord) -> bool:
    """Whether a run has the ratio of a noisy step: not the base, nor forward methods, whose records name a family."""
    return record.seed is not None and "family" not in record.extra


def gate_state(record: RunRecord, name: str) -> State:
    """State of one gate of a run; missing: the record has no result of it."""
    if name in failed_gates(record):
        return "failed"
    gate = record.gates.get(name)
    return "missing" if gate is None or (isinstance(gate, Mapping) and gate.get("passed") is None) else "passed"


def state_of_all(states: Sequence[State]) -> State:
    """Failed if a run fails; passed if all pass, and there is one."""
    return "failed" if "failed" in states else "passed" if states and set(states) == {"passed"} else "missing"


def _gate(name: str, records: Sequence[RunRecord]) -> Badge:
    states = [gate_state(record, name) for record in records]
    failed, text = states.count("failed"), f"passed in {states.count('passed')} of {len(states)} runs"
    return Badge(name, state_of_all(states), f"{text}, failed in {failed}" if failed else text)


def _replays(suite: SuiteRecords) -> Badge:
    """Failed: the repetition of a run has other numbers."""
    replays = [replay for run in suite.runs if (replay := read_replay(run.folder, run.record))]
    if not replays:
        return Badge("replay", "missing", "no run was repeated with `bench replay`")
    equal = sum(replay.equal for replay in replays)
    text = f"{len(replays)} of {len(suite.runs)} runs repeated, {equal} with equal bits"
    return Badge("replay", "passed" if equal == len(replays) else "failed", text)


def _effect(main: MainNumbers) -> Badge:
    """Missing: in some pair a difference as large as the best row's gain over the base could stay unfound."""
    name, suite = "smallest detectable effect", main.suite
    pairs = between_rows(main.tests, suite.primary)
    sizes = [float(size) for size in pairs["diff_mde"].dropna()] if len(pairs) else []
    if not sizes:
        return Badge(name, "missing", "no pair of rows is tested")
    metric = suite.metrics[suite.primary]
    gain = (metric.sign * main.table[f"{suite.primary}_delta"]).max()
    text = f"{metric.title}: {span(sizes, 'pair')}; the best gain over the base is {formatting.number(gain)}"
    return Badge(name, "passed" if max(sizes) <= gain else "missing", text)
