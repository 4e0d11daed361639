"""The numbers of the main table: each row, its differences to the base, and its costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from bench.report.data.differences import (
    interval_columns,
    tested_scores,
)
from bench.report.data.division import NOT_RECORDED, division
from bench.report.data.records import RowRuns, Run, SuiteRecords, failed_gates
from bench.report.data.selection import BASE
from bench.report.data.statistics import (
    Interval,
    bootstrap_improvement,
    bootstrap_iqm,
    one_way,
    paired_difference,
    two_way,
)

#: Ledger totals that are counts; `reward_calls` is summed over the evaluators.
COUNTS = ("nfe_rollout", "nfe_train", "nfe_anchor", "reward_calls", "videos", "decodes", "updates")
#: Seed of the bootstrap's own generator: the same draws for every row.
BOOTSTRAP_SEED = 0
#: Ends of the columns of a test.
P_VALUES = ("_p", "_p_holm")


def summarise(suite: SuiteRecords, tests: pd.DataFrame) -> pd.DataFrame:
    """main.csv without the published and reference columns, one line per row, the base first; NaN if unknown.

    The p-values of differences to the base are those of `tests`, the table of `tested_differences`. The columns of a
    metric are there if the metric was scored. `<primary>_iqm`, `<primary>_by_seed` and `improvement` are about the
    column `suite.primary`.
    """
    rows = [_base(suite)] + [_row(suite, runs, tests) for runs in suite.rows]
    table = pd.DataFrame(rows)
    for name in ("n_seeds", "n_failed", *COUNTS):
        table[name] = table[name].astype("Int64")
    lead = ["row", "method", "kl", "division", "seeds", "n_seeds", "n_failed"]
    tail = ["failed_gates", "run_ids"]
    middle = [column for column in table.columns if column not in (*lead, *tail)]
    return table[[*lead, *middle, *tail]]


def _metrics(suite: SuiteRecords) -> list[str]:
    return suite.columns or [suite.primary]


def _base(suite: SuiteRecords) -> dict[str, Any]:
    line: dict[str, Any] = {"row": BASE, "method": BASE, "kl": "none", "n_seeds": 0, "n_failed": 0}
    line |= {"division": NOT_RECORDED, "seeds": ""}
    for name in _metrics(suite):
        cells = suite.base.cells.get(name) if suite.base else None
        line |= interval_columns(name, None if cells is None else one_way(cells.to_numpy()))
        line |= interval_columns(f"{name}_delta", None)
        line |= {f"{name}_delta{end}": np.nan for end in P_VALUES if name in tested_scores(suite)}
    primary = suite.base.cells.get(suite.primary) if suite.base else None
    iqm = None if primary is None else bootstrap_iqm(primary.to_numpy(), _generator())
    line |= {f"{suite.primary}_by_seed": "", **interval_columns(f"{suite.primary}_iqm", iqm)}
    line |= interval_columns("improvement", None)
    line |= dict.fromkeys(COUNTS, pd.NA)
    return line | _identity([suite.base] if suite.base else [])


def _row(suite: SuiteRecords, runs: RowRuns, tests: pd.DataFrame) -> dict[str, Any]:
    line: dict[str, Any] = {"row": runs.row.label, "method": runs.row.method, "kl": runs.row.kl}
    line |= {"division": division(runs.records), "seeds": " ".join(map(str, runs.seeds))}
    line |= {"n_seeds": len(runs.finished), "n_failed": len(runs.failed)}
    for name in _metrics(suite):
        x = runs.matrix(name)
        base = suite.base.cells[name].to_numpy() if suite.base else None
        line |= interval_columns(name, None if x is None else two_way(x))
        delta = None if x is None or base is None else paired_difference(x, base)
        line |= interval_columns(f"{name}_delta", delta)
        if name in tested_scores(suite):
            line |= _p_values(tests, name, runs.row.name)
    x = runs.matrix(suite.primary)
    line[f"{suite.primary}_by_seed"] = "" if x is None else " ".join(f"{mean:.8g}" for mean in x.mean(1))
    line |= interval_columns(f"{suite.primary}_iqm", None if x is None else bootstrap_iqm(x, _generator()))
    base = suite.base.cells[suite.primary].to_numpy() if suite.base and x is not None else None
    line |= interval_columns("improvement", _improvement(x, base, _sign(suite)))
    return line | spent(runs) | _identity(runs.finished)


def _p_values(tests: pd.DataFrame, score: str, row: str) -> dict[str, float]:
    """The columns `<score>_delta_p` and `<score>_delta_p_holm` of a row less the base; NaN if not tested."""
    found = tests[(tests["row"] == row) & (tests["other"] == BASE) & (tests["score"] == score)]
    return {f"{score}_delta{end}": float(found[f"diff{end}"].iloc[0]) if len(found) else np.nan for end in P_VALUES}


def _sign(suite: SuiteRecords) -> int:
    """1 if more is better in the column that rows are compared by, -1 if less is."""
    return suite.metrics[suite.primary].sign if suite.columns else 1


def _improvement(x: Any, base: Any, sign: int) -> Interval | None:
    return None if x is None or base is None else bootstrap_improvement(sign * x, sign * base, _generator())


def spent(runs: RowRuns) -> dict[str, Any]:
    """Ledger totals of one run, rounded mean over the row's finished runs; NA where a total is not recorded."""
    columns: dict[str, Any] = {}
    for name in COUNTS:
        totals = [count(run.record.ledger.get(name)) for run in runs.finished]
        known = [total for total in totals if total is not None]
        columns[name] = round(sum(known) / len(known)) if known else pd.NA
    return columns


def count(total: Any) -> int | None:
    """A total of the ledger as one number, summed over evaluators; None if it is not recorded."""
    if isinstance(total, Mapping):
        return int(sum(total.values()))
    return None if total is None else int(total)


def _identity(runs: list[Run]) -> dict[str, Any]:
    failed = sorted({name for run in runs for name in failed_gates(run.record)})
    return {"failed_gates": " ".join(failed), "run_ids": " ".join(run.record.digest[:8] for run in runs)}


def _generator() -> np.random.Generator:
    return np.random.default_rng(BOOTSTRAP_SEED)
