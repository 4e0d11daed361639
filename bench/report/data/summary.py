"""The numbers of the main table: one row per table row, from the loaded records only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.core.errors import BenchError
from bench.core.provenance import ROOT
from bench.report.data.records import BASE, RowRuns, Run, Suite, failed_gates
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

#: Columns that main.csv always has, in this order, whether or not the scores allow them.
METRICS = ("overall", "trained", "vq", "mq", "ta", "clipscore", "pickscore", "gold_overall")
PUBLISHED = ("overall", "vq", "mq", "ta", "clipscore", "pickscore")
PUBLISHED_FILE = "sage_grpo_setting_b.csv"
#: Ledger totals that are counts; `reward_calls` is summed over the scorers.
COUNTS = ("nfe_rollout", "nfe_train", "nfe_anchor", "reward_calls", "videos", "decodes", "updates")
#: Seed of the bootstrap's own generator: the same draws for every row.
BOOTSTRAP_SEED = 0


def summarise(suite: Suite) -> pd.DataFrame:
    """main.csv without the published and reference columns; nan where there is nothing to say."""
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


def _metrics(suite: Suite) -> list[str]:
    return list(dict.fromkeys([*METRICS, *suite.columns]))


def _base(suite: Suite) -> dict[str, Any]:
    out: dict[str, Any] = {"row": BASE, "method": BASE, "kl": "none", "n_seeds": 0, "n_failed": 0}
    for name in _metrics(suite):
        cells = suite.base.cells.get(name) if suite.base else None
        _put(out, name, None if cells is None else one_way(cells.to_numpy()))
        _put(out, f"{name}_delta", None)
    for name in ("overall_delta", "trained_delta", "vs_best_delta"):
        out[f"{name}_p"] = np.nan
    overall = suite.base.cells.get("overall") if suite.base else None
    iqm = None if overall is None else bootstrap_iqm(overall.to_numpy(), _generator())
    _put(out, "overall_iqm", iqm)
    _put(out, "improvement", None)
    out |= {"overall_mde": np.nan, "vs_best_row": "", **dict.fromkeys(COUNTS, pd.NA)}
    _put(out, "vs_best_delta", None)
    return out | _identity([suite.base] if suite.base else [])


def _row(suite: Suite, runs: RowRuns) -> dict[str, Any]:
    out: dict[str, Any] = {"row": runs.row.label, "method": runs.row.method, "kl": runs.row.kl}
    out |= {"n_seeds": len(runs.finished), "n_failed": len(runs.failed)}
    deltas: dict[str, Estimate] = {}
    for name in _metrics(suite):
        x = runs.matrix(name)
        _put(out, name, None if x is None else two_way(x))
        if x is not None and suite.base is not None:
            deltas[name] = paired_difference(x, suite.base.cells[name].to_numpy())
        _put(out, f"{name}_delta", deltas.get(name))
    for name in ("overall", "trained"):
        out[f"{name}_delta_p"] = deltas[name].p if name in deltas else np.nan
    delta = deltas.get("overall")
    out["overall_mde"] = detectable_effect(delta.se, delta.df) if delta else np.nan
    overall = runs.matrix("overall")
    _put(out, "overall_iqm", None if overall is None else bootstrap_iqm(overall, _generator()))
    against = suite.base.cells["overall"].to_numpy() if suite.base and delta else None
    _put(out, "improvement", _improvement(overall, against))
    out |= _best_other(suite, runs) | spent(runs) | _identity(runs.finished)
    return out


def _improvement(overall: Any, base: Any) -> Interval | None:
    return None if overall is None or base is None else bootstrap_improvement(overall, base, _generator())


def _best_other(suite: Suite, runs: RowRuns) -> dict[str, Any]:
    """Difference to the trained row with the highest Overall among the others, over the seeds that both have."""
    out: dict[str, Any] = {"vs_best_row": "", "vs_best_delta_p": np.nan}
    _put(out, "vs_best_delta", None)
    means = {
        other.row.label: x.mean()
        for other in suite.rows
        if other is not runs and (x := other.matrix("overall")) is not None
    }
    if runs.matrix("overall") is None or not means:
        return out
    best = next(other for other in suite.rows if other.row.label == max(means, key=lambda label: means[label]))
    out["vs_best_row"] = best.row.label
    common = sorted(set(runs.seeds) & set(best.seeds))
    mine, theirs = runs.matrix("overall", common), best.matrix("overall", common)
    if mine is not None and theirs is not None:
        estimate = paired_difference(mine, theirs)
        _put(out, "vs_best_delta", estimate)
        out["vs_best_delta_p"] = estimate.p
    return out


def spent(runs: RowRuns) -> dict[str, Any]:
    """Ledger totals of one run, averaged over the row's finished runs (equal ones stay exact)."""
    out: dict[str, Any] = {}
    for name in COUNTS:
        totals = [_count(run.record.ledger.get(name)) for run in runs.finished]
        known = [total for total in totals if total is not None]
        out[name] = round(sum(known) / len(known)) if known else pd.NA
    return out


def _count(total: Any) -> int | None:
    if isinstance(total, Mapping):
        return int(sum(total.values()))
    return None if total is None else int(total)


def _identity(runs: list[Run]) -> dict[str, Any]:
    failed = sorted({name for run in runs for name in failed_gates(run.record)})
    return {"failed_gates": " ".join(failed), "run_ids": " ".join(run.record.digest[:8] for run in runs)}


def _put(out: dict[str, Any], name: str, value: Estimate | Interval | None) -> None:
    """The three columns `name`, `name_lo`, `name_hi`."""
    out |= triple(name, value)


def triple(name: str, value: Estimate | Interval | None) -> dict[str, float]:
    """The columns `name`, `name_lo`, `name_hi` of a number with its interval; nan where there is none."""
    values = (np.nan,) * 3 if value is None else (value[0], value.lo, value.hi)
    return dict(zip((name, f"{name}_lo", f"{name}_hi"), values, strict=True))


def _generator() -> np.random.Generator:
    return np.random.default_rng(BOOTSTRAP_SEED)


# numbers from elsewhere -----------------------------------------------------------------------------------------
def add_published(table: pd.DataFrame, suite: Suite, folder: Path | None = None) -> pd.DataFrame:
    """Append `published_*`, the paper's full-size numbers, matched on method and KL policy; empty where none is known.

    A row that changes its method's parameters is another method than the published one and stays empty.
    """
    path = (folder or ROOT / "results" / "published") / PUBLISHED_FILE
    if not path.is_file():
        raise BenchError(f"published numbers {path} are missing: restore them with `git checkout -- {path.parent}`.")
    published = pd.read_csv(path).set_index(["method", "kl"])[list(PUBLISHED)].add_prefix("published_")
    table = table.join(published, on=["method", "kl"])
    variants = [runs.row.label for runs in suite.rows if runs.row.variant]
    table.loc[table["row"].isin(variants), list(published.columns)] = np.nan
    return table
