"""The numbers of the main table: each row against the base and the best other row, and every pair of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from bench.report.data.division import NOT_RECORDED, division
from bench.report.data.metrics import FURTHER
from bench.report.data.records import RowRuns, Run, SuiteRecords, failed_gates
from bench.report.data.selection import BASE
from bench.report.data.statistics import (
    Estimate,
    Interval,
    bootstrap_improvement,
    bootstrap_iqm,
    detectable_effect,
    holm,
    one_way,
    paired_difference,
    two_way,
)

#: Ledger totals that are counts; `reward_calls` is summed over the evaluators.
COUNTS = ("nfe_rollout", "nfe_train", "nfe_anchor", "reward_calls", "videos", "decodes", "updates")
#: Seed of the bootstrap's own generator: the same draws for every row.
BOOTSTRAP_SEED = 0
#: With more rows than this the pairs are left out: after the correction for so many tests none would be significant.
MOST_ROWS_FOR_PAIRS = 6


def summarise(suite: SuiteRecords) -> pd.DataFrame:
    """main.csv without the published and reference columns, one line per row, the base first; NaN if unknown.

    The columns of a metric are there if the metric was scored. `<primary>_mde`, `<primary>_iqm`, `improvement` and
    `vs_best_*` are about the column `suite.primary`.
    """
    rows = [_base(suite)] + [_row(suite, runs) for runs in suite.rows]
    table = pd.DataFrame(rows)
    for name in _tested(suite):
        table[f"{name}_p_holm"] = holm(table[f"{name}_p"].tolist())
    for name in ("n_seeds", "n_failed", *COUNTS):
        table[name] = table[name].astype("Int64")
    lead = ["row", "method", "kl", "division", "seeds", "n_seeds", "n_failed"]
    tail = ["failed_gates", "run_ids"]
    middle = [column for column in table.columns if column not in (*lead, *tail)]
    return table[[*lead, *middle, *tail]]


def _metrics(suite: SuiteRecords) -> list[str]:
    return suite.columns or [suite.primary]


def _tested(suite: SuiteRecords) -> list[str]:
    """Differences that have a p-value: each metric to the base, without further metrics, and the best other row."""
    return [*(f"{name}_delta" for name in _metrics(suite) if name not in FURTHER), "vs_best_delta"]


def _base(suite: SuiteRecords) -> dict[str, Any]:
    line: dict[str, Any] = {"row": BASE, "method": BASE, "kl": "none", "n_seeds": 0, "n_failed": 0}
    line |= {"division": NOT_RECORDED, "seeds": ""}
    for name in _metrics(suite):
        cells = suite.base.cells.get(name) if suite.base else None
        line |= interval_columns(name, None if cells is None else one_way(cells.to_numpy()))
        line |= interval_columns(f"{name}_delta", None)
    line |= {f"{name}_p": np.nan for name in _tested(suite)}
    primary = suite.base.cells.get(suite.primary) if suite.base else None
    iqm = None if primary is None else bootstrap_iqm(primary.to_numpy(), _generator())
    line |= interval_columns(f"{suite.primary}_iqm", iqm)
    line |= interval_columns("improvement", None)
    line |= {f"{suite.primary}_mde": np.nan, "vs_best_row": "", **dict.fromkeys(COUNTS, pd.NA)}
    line |= interval_columns("vs_best_delta", None)
    return line | _identity([suite.base] if suite.base else [])


def _row(suite: SuiteRecords, runs: RowRuns) -> dict[str, Any]:
    line: dict[str, Any] = {"row": runs.row.label, "method": runs.row.method, "kl": runs.row.kl}
    line |= {"division": division(runs.records), "seeds": " ".join(map(str, runs.seeds))}
    line |= {"n_seeds": len(runs.finished), "n_failed": len(runs.failed)}
    deltas: dict[str, Estimate] = {}
    for name in _metrics(suite):
        x = runs.matrix(name)
        line |= interval_columns(name, None if x is None else two_way(x))
        if x is not None and suite.base is not None:
            deltas[name] = paired_difference(x, suite.base.cells[name].to_numpy())
        line |= interval_columns(f"{name}_delta", deltas.get(name))
        if name not in FURTHER:
            line[f"{name}_delta_p"] = deltas[name].p if name in deltas else np.nan
    delta = deltas.get(suite.primary)
    line[f"{suite.primary}_mde"] = detectable_effect(delta.se, delta.df) if delta else np.nan
    x = runs.matrix(suite.primary)
    line |= interval_columns(f"{suite.primary}_iqm", None if x is None else bootstrap_iqm(x, _generator()))
    base = suite.base.cells[suite.primary].to_numpy() if suite.base and delta else None
    line |= interval_columns("improvement", _improvement(x, base, _sign(suite)))
    return line | _best_other(suite, runs) | spent(runs) | _identity(runs.finished)


def _sign(suite: SuiteRecords) -> int:
    """1 if more is better in the column that rows are compared by, -1 if less is."""
    return suite.metrics[suite.primary].sign if suite.columns else 1


def _improvement(x: Any, base: Any, sign: int) -> Interval | None:
    return None if x is None or base is None else bootstrap_improvement(sign * x, sign * base, _generator())


def _best_other(suite: SuiteRecords, runs: RowRuns) -> dict[str, Any]:
    """Difference to the best other trained row by the primary column, over the seeds that both have.

    A row of the open division is no rival of a closed one.
    """
    columns: dict[str, Any] = {"vs_best_row": "", "vs_best_delta_p": np.nan, **interval_columns("vs_best_delta", None)}
    means = {
        other.row.label: _sign(suite) * x.mean()
        for other in suite.rows
        if other is not runs and other.row.open <= runs.row.open and (x := other.matrix(suite.primary)) is not None
    }
    if runs.matrix(suite.primary) is None or not means:
        return columns
    best = next(other for other in suite.rows if other.row.label == max(means, key=lambda label: means[label]))
    columns["vs_best_row"] = best.row.label
    estimate = pair_difference(runs, best, suite.primary, common_seeds(runs, best))
    return (
        columns | interval_columns("vs_best_delta", estimate) | {"vs_best_delta_p": estimate.p if estimate else np.nan}
    )


def common_seeds(runs: RowRuns, other: RowRuns) -> list[int]:
    """The seeds that both rows have finished, ascending."""
    return sorted(set(runs.seeds) & set(other.seeds))


def pair_difference(runs: RowRuns, other: RowRuns, score: str, seeds: Sequence[int]) -> Estimate | None:
    """Difference of one score between two rows, paired by seed and prompt; None without these seeds or this score."""
    x, y = runs.matrix(score, seeds), other.matrix(score, seeds)
    return None if x is None or y is None else paired_difference(x, y)


def pair_scores(suite: SuiteRecords) -> list[str]:
    """The columns that every pair of rows is compared by: the primary one, and gold Overall if it was scored."""
    return list(dict.fromkeys([suite.primary, *(name for name in ("gold_overall",) if name in suite.columns)]))


def pairs_of_rows(suite: SuiteRecords) -> pd.DataFrame:
    """One line per pair of rows: `row`, `other`, `<score>_diff` with `_lo`, `_hi`, `_p`, `_p_holm` and `_mde`.

    Differences row - other in score units, paired by prompt and by seed over the seeds that both finished; 95 %
    intervals; Holm's adjustment over all pairs of one score. Empty with more than `MOST_ROWS_FOR_PAIRS` rows.
    Open rows are marked in the names, and pairs with one come last.
    """
    lines = []
    rows = combinations(suite.rows if len(suite.rows) <= MOST_ROWS_FOR_PAIRS else [], 2)
    for one, other in sorted(rows, key=lambda pair: pair[0].row.open or pair[1].row.open):
        line: dict[str, Any] = {"row": one.row.name, "other": other.row.name}
        for score in pair_scores(suite):
            estimate = pair_difference(one, other, score, common_seeds(one, other))
            line |= interval_columns(f"{score}_diff", estimate) | {
                f"{score}_diff_p": estimate.p if estimate else np.nan,
                f"{score}_diff_mde": detectable_effect(estimate.se, estimate.df) if estimate else np.nan,
            }
        lines.append(line)
    table = pd.DataFrame(lines)
    for score in pair_scores(suite) if lines else ():
        table[f"{score}_diff_p_holm"] = holm(table[f"{score}_diff_p"].tolist())
    return table


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


def interval_columns(name: str, value: Estimate | Interval | None) -> dict[str, float]:
    """The columns `name`, `name_lo`, `name_hi` of a number and its 95 % interval; NaN if there is none."""
    values = (np.nan,) * 3 if value is None else (value[0], value.lo, value.hi)
    return dict(zip((name, f"{name}_lo", f"{name}_hi"), values, strict=True))


def _generator() -> np.random.Generator:
    return np.random.default_rng(BOOTSTRAP_SEED)
