"""The numbers of the main table: each row against the base and the best other row, and every pair of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.core.errors import BenchError
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

#: Columns that main.csv always has, in this order; NaN if their metrics were not scored.
METRICS = ("overall", "trained", "vq", "mq", "ta", "clipscore", "pickscore", "gold_overall")
PUBLISHED = ("overall", "vq", "mq", "ta", "clipscore", "pickscore")
PUBLISHED_FOLDER, PUBLISHED_FILE = Path(__file__).parents[1] / "published", "sage_grpo_setting_b.csv"
#: Ledger totals that are counts; `reward_calls` is summed over the evaluators.
COUNTS = ("nfe_rollout", "nfe_train", "nfe_anchor", "reward_calls", "videos", "decodes", "updates")
#: Seed of the bootstrap's own generator: the same draws for every row.
BOOTSTRAP_SEED = 0
#: Scores that every pair of rows is compared by, and their names.
PAIR_SCORES = {"overall": "Overall", "gold_overall": "gold Overall"}
#: With more rows than this the pairs are left out: after the correction for so many tests none would be significant.
MOST_ROWS_FOR_PAIRS = 6


def summarise(suite: SuiteRecords) -> pd.DataFrame:
    """main.csv without the published and reference columns, one line per row, the base first; NaN if unknown."""
    rows = [_base(suite)] + [_row(suite, runs) for runs in suite.rows]
    table = pd.DataFrame(rows)
    for name in ("overall_delta", "trained_delta", "vs_best_delta"):
        table[f"{name}_p_holm"] = holm(table[f"{name}_p"].tolist())
    for name in ("n_seeds", "n_failed", *COUNTS):
        table[name] = table[name].astype("Int64")
    lead = ["row", "method", "kl", "n_seeds", "n_failed"]
    tail = ["failed_gates", "run_ids"]
    middle = [column for column in table.columns if column not in (*lead, *tail)]
    return table[[*lead, *middle, *tail]]


def _metrics(suite: SuiteRecords) -> list[str]:
    return list(dict.fromkeys([*METRICS, *suite.columns]))


def _base(suite: SuiteRecords) -> dict[str, Any]:
    line: dict[str, Any] = {"row": BASE, "method": BASE, "kl": "none", "n_seeds": 0, "n_failed": 0}
    for name in _metrics(suite):
        cells = suite.base.cells.get(name) if suite.base else None
        line |= interval_columns(name, None if cells is None else one_way(cells.to_numpy()))
        line |= interval_columns(f"{name}_delta", None)
    for name in ("overall_delta", "trained_delta", "vs_best_delta"):
        line[f"{name}_p"] = np.nan
    overall = suite.base.cells.get("overall") if suite.base else None
    iqm = None if overall is None else bootstrap_iqm(overall.to_numpy(), _generator())
    line |= interval_columns("overall_iqm", iqm)
    line |= interval_columns("improvement", None)
    line |= {"overall_mde": np.nan, "vs_best_row": "", **dict.fromkeys(COUNTS, pd.NA)}
    line |= interval_columns("vs_best_delta", None)
    return line | _identity([suite.base] if suite.base else [])


def _row(suite: SuiteRecords, runs: RowRuns) -> dict[str, Any]:
    line: dict[str, Any] = {"row": runs.row.label, "method": runs.row.method, "kl": runs.row.kl}
    line |= {"n_seeds": len(runs.finished), "n_failed": len(runs.failed)}
    deltas: dict[str, Estimate] = {}
    for name in _metrics(suite):
        x = runs.matrix(name)
        line |= interval_columns(name, None if x is None else two_way(x))
        if x is not None and suite.base is not None:
            deltas[name] = paired_difference(x, suite.base.cells[name].to_numpy())
        line |= interval_columns(f"{name}_delta", deltas.get(name))
    for name in ("overall", "trained"):
        line[f"{name}_delta_p"] = deltas[name].p if name in deltas else np.nan
    delta = deltas.get("overall")
    line["overall_mde"] = detectable_effect(delta.se, delta.df) if delta else np.nan
    overall = runs.matrix("overall")
    line |= interval_columns("overall_iqm", None if overall is None else bootstrap_iqm(overall, _generator()))
    base = suite.base.cells["overall"].to_numpy() if suite.base and delta else None
    line |= interval_columns("improvement", _improvement(overall, base))
    return line | _best_other(suite, runs) | spent(runs) | _identity(runs.finished)


def _improvement(overall: Any, base: Any) -> Interval | None:
    return None if overall is None or base is None else bootstrap_improvement(overall, base, _generator())


def _best_other(suite: SuiteRecords, runs: RowRuns) -> dict[str, Any]:
    """Difference to the other trained row with the highest Overall, over the seeds that both have."""
    columns: dict[str, Any] = {"vs_best_row": "", "vs_best_delta_p": np.nan, **interval_columns("vs_best_delta", None)}
    means = {
        other.row.label: x.mean()
        for other in suite.rows
        if other is not runs and (x := other.matrix("overall")) is not None
    }
    if runs.matrix("overall") is None or not means:
        return columns
    best = next(other for other in suite.rows if other.row.label == max(means, key=lambda label: means[label]))
    columns["vs_best_row"] = best.row.label
    common = sorted(set(runs.seeds) & set(best.seeds))
    estimate = pair_difference(runs, best, "overall", common)
    return (
        columns | interval_columns("vs_best_delta", estimate) | {"vs_best_delta_p": estimate.p if estimate else np.nan}
    )


def pair_difference(runs: RowRuns, other: RowRuns, score: str, seeds: Sequence[int]) -> Estimate | None:
    """Difference of one score between two rows, paired by seed and prompt; None without these seeds or this score."""
    x, y = runs.matrix(score, seeds), other.matrix(score, seeds)
    return None if x is None or y is None else paired_difference(x, y)


def pairs_of_rows(suite: SuiteRecords) -> pd.DataFrame:
    """One line per pair of trained rows: `row`, `other`, and `<score>_diff` with `_lo`, `_hi`, `_p`, `_p_holm`.

    Differences row - other in score units, paired by prompt and by seed over the seeds that both finished; 95 %
    intervals; Holm's adjustment over all pairs of one score. Empty with more than `MOST_ROWS_FOR_PAIRS` rows.
    """
    lines = []
    for one, other in combinations(suite.rows if len(suite.rows) <= MOST_ROWS_FOR_PAIRS else [], 2):
        line: dict[str, Any] = {"row": one.row.label, "other": other.row.label}
        common = sorted(set(one.seeds) & set(other.seeds))
        for score in PAIR_SCORES:
            estimate = pair_difference(one, other, score, common)
            line |= interval_columns(f"{score}_diff", estimate) | {
                f"{score}_diff_p": estimate.p if estimate else np.nan
            }
        lines.append(line)
    table = pd.DataFrame(lines)
    for score in PAIR_SCORES if lines else ():
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


def add_published(table: pd.DataFrame, suite: SuiteRecords, folder: Path | None = None) -> pd.DataFrame:
    """Append `published_*`, the paper's full-size numbers, matched on method and KL policy; empty where none is known.

    A row that changes parameters of its method is not the published method and stays empty.
    """
    path = (folder or PUBLISHED_FOLDER) / PUBLISHED_FILE
    if not path.is_file():
        raise BenchError(f"published numbers {path} are missing: restore them with `git checkout -- {path.parent}`.")
    published = pd.read_csv(path).set_index(["method", "kl"])[list(PUBLISHED)].add_prefix("published_")
    table = table.join(published, on=["method", "kl"])
    variants = [runs.row.label for runs in suite.rows if runs.row.variant]
    table.loc[table["row"].isin(variants), list(published.columns)] = np.nan
    return table
