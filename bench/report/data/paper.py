"""What the paper's figures and its table need, found in a folder of stored results by what the runs have recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.report.data.differences import interval_columns
from bench.report.data.loading import load_records, records_below
from bench.report.data.published import FOLDER, NAME, SCORES
from bench.report.data.records import RowRuns, SuiteRecords
from bench.report.data.selection import BASE, recorded_rows
from bench.report.data.statistics import one_way, two_way
from bench.store.files import find
from bench.store.record import RUN, RunRecord
from bench.suite.schema import PILOT_SEED

#: The settings of SAGE-GRPO's paper by the weights of their reward.
SETTINGS = {"A": {"VQ": 1.0, "MQ": 1.0, "TA": 1.0}, "B": {"VQ": 0.5, "MQ": 0.5, "TA": 1.0}}
METHODS = ("dance_grpo", "flow_grpo", "cps", "sage_grpo")
KL_POLICIES = ("none", "fixed", "stepwise", "moving", "dual")
PUBLISHED, NANO, FULL = "published, 8.3 B model", "nano, miniature", "measured here, full size"
STEPS = "steps.csv"


class StoredSuite(NamedTuple):
    """The finished training runs of one suite, without their scores."""

    name: str
    folder: Path
    records: list[RunRecord]
    updates: int


def stored_suites(folder: Path) -> list[StoredSuite]:
    """Suites below a folder whose runs compare methods: own noise, true rewards, no pilot seeds; sorted by name.

    A folder `reference` below it holds results of its own and is passed over.
    """
    runs = [path.parent for path in find(folder, f"**/{RUN}") if path.relative_to(folder).parts[0] != "reference"]
    places = sorted({run.parent.parent if run.name.startswith("seed-") else run.parent for run in runs})
    suites = []
    for place in places:
        records = [record for _, record in records_below(place)]
        trained = [r for r in records if r.status == "finished" and r.seed is not None and r.seed < PILOT_SEED]
        if trained and not trained[0].config.get("shuffle_rewards") and _native(trained[0].config):
            updates = max(record.updates_done for record in trained)
            suites.append(StoredSuite(trained[0].suite, place, trained, updates))
    return suites


def _native(config: Any) -> bool:
    return bool((config.get("noise_policy") or {}).get("kind", "native") == "native")


def _best(suites: Iterable[StoredSuite], count: Callable[[StoredSuite], int], least: int) -> StoredSuite | None:
    """The suite with the largest count, then the most updates, runs, and the first name; None below `least`."""
    known = [suite for suite in suites if count(suite) >= least]
    return min(known, key=lambda s: (-count(s), -s.updates, -len(s.records), s.name), default=None)


def suite_of_equalizers(suites: Sequence[StoredSuite]) -> StoredSuite | None:
    """The suite in which most methods have rows with and without an equalizer."""
    return _best(suites, lambda suite: len(equalizer_methods(suite.records)), 1)


def equalizer_methods(records: Sequence[RunRecord]) -> list[str]:
    """Methods with rows that differ in their equalizer."""
    kinds: dict[str, set[Any]] = {}
    for record in records:
        kinds.setdefault(str(record.method), set()).add(record.method_params.get("equalizer"))
    return [method for method, values in kinds.items() if len(values) > 1]


def suite_of_methods(suites: Sequence[StoredSuite]) -> StoredSuite | None:
    """The suite with most methods."""
    return _best(suites, lambda suite: len({record.method for record in suite.records}), 1)


def suite_of_kl(suites: Sequence[StoredSuite]) -> StoredSuite | None:
    """The suite with most KL policies."""
    return _best(suites, lambda suite: len({record.kl for record in suite.records}), 3)


def noise_energy(folder: Path) -> pd.DataFrame | None:
    """The steps of the stored SDE study whose noise has an exact integral; None without a study.

    One line per method and step: step, sigma, variance, rate_integral, extra (variance less integral), in units of
    the noise's variance. Of several studies the first by name.
    """
    paths = find(folder, f"*/{STEPS}")
    if not paths:
        return None
    frame = pd.read_csv(paths[0])
    known = frame.groupby("method")["rate_integral"].transform("count") > 0
    columns = ["method", "eta", "step", "sigma", "variance", "rate_integral", "extra"]
    return frame.loc[known & (frame["variance"] > 0), columns].assign(study=paths[0].parent.name)


def paper_table(suites: Sequence[StoredSuite]) -> pd.DataFrame:
    """One line per block (published, measured here), setting, method and KL policy, in the paper's order.

    Columns: block, setting, method, kl, suite, n_seeds, updates, and the scores, each with `_lo`, `_hi` for measured
    ones; NaN where no number is known. Measured rows are those of the method's defaults, from the suite with most
    seeds and then most updates; the base is that of the same suite.
    """
    published = pd.read_csv(FOLDER / f"{NAME}.csv").set_index(["method", "kl"])
    chosen = {setting: _chosen(suites, weights) for setting, weights in SETTINGS.items()}
    measured = {key for rows in chosen.values() for key in rows}
    keys = [(BASE, "none")]
    keys += [
        (method, kl)
        for method in METHODS
        for kl in KL_POLICIES
        if method == "sage_grpo" or (method, kl) in published.index or (method, kl) in measured
    ]
    loaded = {suite.folder: load_records(suite.folder) for rows in chosen.values() for suite in rows.values()}
    lines: list[dict[str, Any]] = []
    for setting, rows in chosen.items():
        for key in keys:
            known = setting == "B" and key in published.index
            scores = {name: published.loc[key, name] if known else np.nan for name in SCORES}
            lines.append({"block": PUBLISHED, "setting": setting, "method": key[0], "kl": key[1], **scores})
        for key in keys:
            suite = rows.get(key) or (next(iter(rows.values()), None) if key[0] == BASE else None)
            lines.append(_measured_line(setting, key, loaded[suite.folder] if suite else None))
    frame = pd.DataFrame(lines)
    return frame[["block", "setting", "method", "kl", "suite", "n_seeds", "updates", *_score_columns()]].astype(
        {"n_seeds": "Int64", "updates": "Int64"}
    )


def _score_columns() -> list[str]:
    return [f"{name}{end}" for name in SCORES for end in ("", "_lo", "_hi")]


def _chosen(suites: Sequence[StoredSuite], weights: dict[str, float]) -> dict[tuple[str, str], StoredSuite]:
    """(method, KL) to the suite of this reward that has most seeds of the plain row, then most updates."""
    ranks: dict[tuple[str, str], tuple[tuple[int, int], StoredSuite]] = {}
    for suite in suites:
        reward = suite.records[0].config.get("reward") or {}
        if {name: float(w) for part in reward.values() for name, w in part.items()} != weights:
            continue
        for row in recorded_rows(suite.records[0].config, suite.records):
            seeds = sum(record.row == row.label for record in suite.records)
            rank, key = (seeds, suite.updates), (row.method, row.kl)
            if seeds and not row.variant and (key not in ranks or rank > ranks[key][0]):
                ranks[key] = rank, suite
    order = sorted(ranks, key=lambda key: (-ranks[key][1].updates, ranks[key][1].name))
    return {key: ranks[key][1] for key in order}


def _measured_line(setting: str, key: tuple[str, str], suite: SuiteRecords | None) -> dict[str, Any]:
    """The line of one measured row; the base is the untrained model as the suite scored it."""
    line: dict[str, Any] = {"block": NANO if suite is None or suite.nano else FULL, "setting": setting}
    line |= {"method": key[0], "kl": key[1], "suite": suite.name if suite else "", "n_seeds": pd.NA, "updates": pd.NA}
    rows = [] if suite is None else [runs for runs in suite.rows if _is_plain(runs, key)]
    for name in SCORES:
        estimate = None
        if key[0] == BASE and suite and suite.base and name in suite.base.cells:
            estimate = one_way(suite.base.cells[name].to_numpy())
        elif rows and (x := rows[0].matrix(name)) is not None:
            estimate = two_way(x)
        line |= interval_columns(name, estimate)
    return line | (_runs_of(rows[0]) if rows else {})


def _is_plain(runs: RowRuns, key: tuple[str, str]) -> bool:
    """Whether the row is the method with this KL policy and its default parameters."""
    return (runs.row.method, runs.row.kl) == key and not runs.row.variant


def _runs_of(runs: RowRuns) -> dict[str, int]:
    """Number of a row's runs, and their updates."""
    return {"n_seeds": len(runs.finished), "updates": max(run.record.updates_done for run in runs.finished)}
