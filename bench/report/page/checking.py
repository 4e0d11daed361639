"""What a page checks: pairs of rows as a matrix, and each validity gate in one line with its exceptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.report import formatting
from bench.report.data.badges import State, gate_state, gated_records, state_of_all
from bench.report.data.differences import between_rows, common_seeds, comparator_of, tested_scores
from bench.report.data.resampling import improvement
from bench.report.page.grids import Grid
from bench.report.page.subject import Subject
from bench.report.tables.main import MainTable
from bench.store.record import RunRecord


class GateLine(NamedTuple):
    """One gate over all runs."""

    name: str
    state: State
    text: str
    exceptions: Sequence[str]
    """Runs that fail it or have no result."""


def pairs(subject: Subject, main: MainTable) -> list[Grid]:
    """For each tested score the differences of the rows as a matrix: row of the line less row of the column.

    A suite that compares each row with one has that one as its only column.
    """
    grids = []
    titles = {entry.runs.row.name: entry.title for entry in subject.entries if entry.runs in main.suite.rows}
    rows = {runs.row.name: runs for runs in main.suite.rows}
    comparator = comparator_of(main.suite)
    columns = list(rows) if comparator is None else [comparator.row.name]
    for score in tested_scores(main.suite):
        found = between_rows(main.tests, score)
        if found.empty:
            continue
        lines = []
        digits, sign = formatting.decimals(found, "diff"), main.suite.metrics[score].sign
        for one in rows:
            if rows[one] is comparator:
                continue
            cells = []
            for other in columns:
                sides = found[(found["row"] == one) & (found["other"] == other)]
                mirrored = found[(found["row"] == other) & (found["other"] == one)]
                if len(sides) == len(mirrored) == 0:
                    cells.append("")
                    continue
                line = sides.iloc[0] if len(sides) else _mirrored(mirrored.iloc[0])
                x, y = (rows[name].matrix(score, common_seeds(rows[one], rows[other])) for name in (one, other))
                cells.append(
                    _pair(line, digits, None if x is None or y is None else float(improvement(sign * x, sign * y)))
                )
            lines.append([titles[one], *cells])
        title = f"{main.suite.metrics[score].title}: row less column"
        heads = [("Row", "text"), *((titles[name], "number") for name in columns)]
        grids.append(Grid(f"pairs-{score.replace('_', '-')}", title, heads, lines))
    return grids


def _mirrored(row: pd.Series[Any]) -> pd.Series[Any]:
    """A pair the other way round."""
    return pd.Series({**row, "diff": -row["diff"], "diff_lo": -row["diff_hi"], "diff_hi": -row["diff_lo"]})


def _pair(row: pd.Series[Any], digits: int, better: float | None) -> str:
    """Difference, p after Holm, and the probability that a run of the row is better than one of the column."""
    if row["same_runs"] or pd.isna(row["diff"]):
        return "the same runs" if row["same_runs"] else formatting.MISSING
    text, star = formatting.interval(row, "diff", digits), formatting.is_significant(row, "diff")
    chance = "" if better is None else f", P {better:.2f}"
    shown = formatting.marked(text, is_starred=star)
    return formatting.Cell(f"{shown} (p {formatting.p_value(row['diff_p_holm'])}{chance})", row["diff"])


def gates(records: Sequence[RunRecord]) -> list[GateLine]:
    """Each gate over all runs: how many pass it, and which do not."""
    lines = []
    for name, runs in gated_records(records).items():
        states = {run_name(record): gate_state(record, name) for record in runs}
        failed = [
            f"{run_name(each)}: failed{_detail(each, name)}" for each in runs if states[run_name(each)] == "failed"
        ]
        missing = [run for run, state in states.items() if state == "missing"]
        passed = len(states) - len(failed) - len(missing)
        absent = [f"no result: {', '.join(missing)}"] if missing and len(missing) < len(states) else []
        text = f"passed in {passed} of {len(states)} runs"
        lines.append(GateLine(name, state_of_all(list(states.values())), text, [*failed, *absent]))
    return lines


def _detail(record: RunRecord, name: str) -> str:
    """What a gate recorded, in brackets; "" for nothing."""
    gate = record.gates.get(name)
    details = gate.items() if isinstance(gate, Mapping) else ()
    text = ", ".join(f"{key} {value}" for key, value in details if key != "passed" and not isinstance(value, Mapping))
    return f" ({text})" if text else ""


def run_name(record: RunRecord) -> str:
    """Row and seed of a run."""
    return record.row if record.seed is None else f"{record.row}, seed {record.seed}"
