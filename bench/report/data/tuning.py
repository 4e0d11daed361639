"""The numbers of a search over settings: the score of each trial, the chosen one, the best after k trials, the cost.

The first trial of a row is the suite's default: its learning rate, and the row as it is. Scores are the training
reward on the validation prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb, isfinite, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.core.errors import BenchError
from bench.report.data.loading import records_below
from bench.report.data.metrics import REWARD
from bench.report.data.records import RowRuns, SuiteRecords, failed_gates
from bench.store.record import RunRecord
from bench.suite.search import trial_of

SEARCH, TUNED = "_search", "_tuned"
"""Ends of the names of a search and of the suite that runs its chosen settings with fresh seeds."""


class Cost(NamedTuple):
    """What runs took."""

    runs: int
    minutes: float
    """Minutes of one process each, summed; those of a run that several suites share count in each of them."""


def trial_table(suite: SuiteRecords) -> pd.DataFrame:
    """The columns of tuning.csv, one line per trial in the order of the suite.

    row (without the trial), trial, method, lr, eta, equalizer (as the run has them; missing without a run), n_seeds
    and n_failed (finished runs, and those that failed or fail a validity gate), score_seed_N (mean over prompts and
    videos of each seed), score (mean over the seeds; NaN unless all have finished) and gold_overall in score units,
    rank (1 is the best; NaN without a score), chosen, run_ids. No trial of a row is chosen before all of its runs have
    finished or failed. Equal scores are in the order of the trials. A row that is no trial is a `BenchError`.
    """
    lines = [_line(suite, runs) for runs in suite.rows]
    order = list(dict.fromkeys(line["row"] for line in lines))
    lines.sort(key=lambda line: (order.index(line["row"]), line["trial"]))
    table = pd.DataFrame(lines)
    table["rank"] = table.groupby("row", sort=False)["score"].rank(method="first", ascending=False)
    done = (table["n_seeds"] + table["n_failed"]) == len(suite.seeds)
    table["chosen"] = (table["rank"] == 1) & done.groupby(table["row"]).transform("all")
    table["run_ids"] = table.pop("run_ids")  # the last column
    return table


def _line(suite: SuiteRecords, runs: RowRuns) -> dict[str, Any]:
    named = trial_of(runs.row.label)
    if named is None:
        raise BenchError(
            f"row {runs.row.label!r} of suite {suite.name} is no trial of its search: move its records away."
        )
    records = runs.records
    settings = _settings(records[0]) if records else {"lr": nan, "eta": nan, "equalizer": ""}
    line = {"row": named[0], "trial": named[1], "method": runs.row.method, **settings}
    means = {run.record.seed: run.cells.mean() for run in runs.finished if not failed_gates(run.record)}
    line |= {"n_seeds": len(means), "n_failed": len(records) - len(means)}
    line |= {f"score_seed_{seed}": means[seed][REWARD] if seed in means else nan for seed in suite.seeds}
    complete = list(means) == suite.seeds
    for name, column in (("score", REWARD), ("gold_overall", "gold_overall")):
        values = [float(scores[column]) for scores in means.values() if column in scores]
        line[name] = float(np.mean(values)) if complete and values else nan
    return line | {"run_ids": " ".join(run.record.digest[:8] for run in runs.finished)}


def _settings(record: RunRecord) -> dict[str, Any]:
    """Learning rate, eta and equalizer of a run."""
    entry, params = _entry(record), record.method_params
    lr = entry.get("lr") or record.budget.get("lr", nan)
    return {"lr": lr, "eta": params.get("eta", nan), "equalizer": params.get("equalizer", "")}


def _entry(record: RunRecord) -> Mapping[str, Any]:
    """The row of the record's configuration that the run belongs to."""
    return next(entry for entry in record.config["rows"] if entry.get("label") == record.row)


def best_after(default: float, draws: Sequence[float]) -> list[float]:
    """The expected largest score after 1, 2, ... trials: the default first, then the draws in random order.

    The mean over all orders, exactly: of the subsets of j out of m draws, comb(i, j - 1) / comb(m, j) have the one of
    rank i (0 is the smallest) as their largest. A failed draw is NaN and never the largest; with a failed default
    nothing is known.
    """
    count = len(draws)
    if not isfinite(default):
        return [nan] * (count + 1)
    values = sorted(max(default, draw) if isfinite(draw) else default for draw in draws)
    return [
        default,
        *(sum(comb(i, j - 1) * v for i, v in enumerate(values)) / comb(count, j) for j in range(1, count + 1)),
    ]


def best_table(table: pd.DataFrame) -> pd.DataFrame:
    """row, trials (from 1) and best (score units): `best_after` of each row of `trial_table` with a chosen trial."""
    lines = []
    for row, trials in table.groupby("row", sort=False):
        if trials["chosen"].any():
            scores = trials.sort_values("trial")["score"].tolist()
            best = best_after(scores[0], scores[1:])
            lines += [{"row": row, "trials": k, "best": value} for k, value in enumerate(best, 1)]
    return pd.DataFrame(lines, columns=["row", "trials", "best"])


def chosen_rows(suite: SuiteRecords, table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a suite that runs the chosen settings, as in its YAML; one per row with a chosen trial.

    Each has the `lr` of its trial, the suite's own for trial 0, so that all rows are of one division, the open one.
    """
    runs = {one.row.label: one for one in suite.rows}
    methods = table.drop_duplicates("row")["method"].tolist()
    rows = []
    for _, line in table[table["chosen"]].iterrows():
        entry = _entry(runs[f"{line['row']}.t{line['trial']}"].finished[0].record)
        name = line["method"] if methods.count(line["method"]) == 1 and ":" not in line["method"] else line["row"]
        entry = {**entry, "lr": float(line["lr"])}
        settings = {key: entry[key] for key in ("method", "kl", "lr", "eta_factor", "params") if entry.get(key)}
        rows.append({**settings, "label": f"{name}{TUNED.replace('_', '-')}"})
    return rows


def search_cost(suite: SuiteRecords) -> dict[str, Cost]:
    """Row to the cost of its trials, failed ones included."""
    records: dict[str, list[RunRecord]] = {}
    for runs in suite.rows:
        if trial := trial_of(runs.row.label):
            records.setdefault(trial[0], []).extend(runs.records)
    return {row: _cost(own) for row, own in records.items()}


def final_cost(folder: Path, name: str) -> tuple[str, Cost] | None:
    """Name and cost of the suite that runs the chosen settings; None without its records.

    It lies beside `folder`, that of the search `name`, and is called `<x>_tuned` if the search is called `<x>_search`.
    """
    tuned = name.removesuffix(SEARCH) + TUNED
    records = [record for _, record in records_below(folder.parent / tuned) if record.seed is not None]
    return (tuned, _cost(records)) if name.endswith(SEARCH) and records else None


def _cost(records: Sequence[RunRecord]) -> Cost:
    return Cost(len(records), sum(sum(record.seconds.values()) for record in records) / 60)
