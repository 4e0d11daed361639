"""The numbers of an ablation: levels that differ in one setting, each compared with the first level of its group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from bench.core.errors import BenchError
from bench.core.hashing import canonical_json
from bench.report import formatting
from bench.report.data import dynamics
from bench.report.data.comparable import check_equal, comparable_settings
from bench.report.data.differences import (
    common_seeds,
    compares_pairs,
    interval_columns,
    pair_difference,
    pair_matrix,
    same_runs,
    tested_columns,
)
from bench.report.data.metrics import FURTHER, LABELS, REWARD, MetricColumn, ordered
from bench.report.data.power import detectable_difference
from bench.report.data.records import RowRuns, Run, SuiteRecords, failed_gates
from bench.report.data.selection import BASE, row_settings
from bench.report.data.statistics import LEVEL, Estimate, holm, paired_difference, two_way
from bench.suite.difference import flatten
from bench.suite.schema import UNSHARED

#: Names in `comparable_settings` that must be equal for all levels of an ablation.
EQUAL_SETTINGS = (
    *("prompts digest", "evaluation", "backbone fingerprint", "evaluator fingerprints"),
    *("budget", "scored videos"),
)
#: Totals of the ledger that must be equal for all levels. Reward calls are not: the reward may differ.
EQUAL_SPENDING = ("nfe_rollout", "nfe_train")


@dataclass(frozen=True)
class AblationLevel:
    """One level of an ablation: the runs of one row under one setting."""

    group: str
    """Levels are compared within their group; its first level is the baseline of the others."""
    name: str
    runs: RowRuns
    base: Run | None
    """The untrained model, as the level's own suite scored it."""
    config: Mapping[str, Any]
    """The configuration of the suite with its name, its seeds and, as `row`, the settings of this row."""
    metrics: Mapping[str, MetricColumn] = field(default_factory=dict)
    """The columns that the level's suite has scored."""

    @property
    def suite(self) -> str:
        """Name of the level's suite."""
        return str(self.config["suite"])

    @property
    def seeds(self) -> list[int]:
        """The seeds that the suite plans."""
        return list(self.config["seeds"])


def levels_of_suite(suite: SuiteRecords) -> list[AblationLevel]:
    """Every method with at least two rows is a group, and its rows are the levels, in the order of the suite."""
    methods: dict[str, list[RowRuns]] = {}
    for runs in suite.rows:
        methods.setdefault(runs.row.method, []).append(runs)
    return [
        _level(method, runs.row.label, runs, suite)
        for method, rows in methods.items()
        if len(rows) > 1
        for runs in rows
    ]


def levels_of_study(suites: Mapping[str, SuiteRecords]) -> list[AblationLevel]:
    """Variant name to its suite, the baseline first: every row is a group, the variants are its levels."""
    if len(suites) < 2:
        raise BenchError(
            f"the study has {len(suites)} variant(s) ({', '.join(suites)}): an ablation compares at least two, add "
            "another one under 'variants:' in the YAML."
        )
    (first, labels), *others = [
        (variant, [runs.row.label for runs in suite.rows]) for variant, suite in suites.items()
    ]
    for variant, rows in others:
        if set(rows) != set(labels):
            raise BenchError(
                f"variants {first} and {variant} do not have the same rows ({', '.join(labels)} against "
                f"{', '.join(rows)}): give all variants of the study the same rows and run them again."
            )
    return [
        _level(label, variant, next(runs for runs in suite.rows if runs.row.label == label), suite)
        for label in labels
        for variant, suite in suites.items()
    ]


def _level(group: str, name: str, runs: RowRuns, suite: SuiteRecords) -> AblationLevel:
    settings = row_settings(runs.finished[0].record) if runs.finished else {}
    config = {**suite.config, "suite": suite.name, "seeds": suite.seeds, "row": settings}
    name += formatting.OPEN_MARK if runs.row.open else ""
    return AblationLevel(group, name, runs, suite.base, config, suite.metrics)


def levels_of(suites: Mapping[str, SuiteRecords]) -> list[AblationLevel]:
    """Levels of a study (variant to suite), or of one suite under the key ""; [] if there is nothing to compare.

    A suite whose main table tests the pairs of its rows has no levels: one difference has one p-value.
    """
    if list(suites) != [""]:
        return levels_of_study(suites)
    return [] if compares_pairs(suites[""]) else levels_of_suite(suites[""])


def by_group(levels: Sequence[AblationLevel]) -> dict[str, list[AblationLevel]]:
    """Group to its levels, both in the order of `levels`."""
    groups: dict[str, list[AblationLevel]] = {}
    for level in levels:
        groups.setdefault(level.group, []).append(level)
    return groups


def level_metrics(levels: Sequence[AblationLevel]) -> dict[str, MetricColumn]:
    """The scores of an ablation: the one that levels are compared by, then gold Overall, then the others in order.

    The first is Overall, else the reward if it is the same in all levels, else the first metric. Further metrics and a
    reward that differs between levels are left out, since its values would not compare.
    """
    known = {name: metric for level in levels for name, metric in level.metrics.items() if name not in FURTHER}
    if REWARD in known and ("overall" in known or len({canonical_json(lv.config.get("reward")) for lv in levels}) > 1):
        del known[REWARD]
    names = ordered(list(known)) or ["overall"]
    names = list(dict.fromkeys([names[0], *(name for name in names if name == "gold_overall"), *names]))
    return {name: known.get(name, MetricColumn(name, LABELS[name])) for name in names}


def to_first_columns(metrics: Mapping[str, MetricColumn]) -> dict[str, str]:
    """Score to the column of its difference to the first level of the group."""
    first, *others = metrics
    short = {first: "to_first", "gold_overall": "to_first_gold"}
    return {name: short.get(name, f"to_first_{name}") for name in (first, *others)}


def level_scores(metrics: Mapping[str, MetricColumn]) -> list[str]:
    """Scores whose differences are tested: the first one and gold Overall, its check."""
    return [name for index, name in enumerate(metrics) if index == 0 or name == "gold_overall"]


def refuse_mixed(levels: Sequence[AblationLevel]) -> None:
    """Raise a `BenchError` unless all runs have equal `EQUAL_SETTINGS` and all trained runs equal `EQUAL_SPENDING`."""
    problem = "are not levels of one ablation"
    fix = "Run the run that differs again with the settings of the others, or leave it out."
    first: tuple[str, Run] | None = None
    trained: tuple[str, Run] | None = None
    for name, run in _runs(levels):
        first = first or (name, run)
        left, right = comparable_settings(first[1]), comparable_settings(run)
        for setting in EQUAL_SETTINGS:
            sides = (first[0], _spent(left[setting])), (name, _spent(right[setting]))
            check_equal(setting, *sides, problem=problem, fix=fix)
        if run.record.seed is None:
            continue
        trained = trained or (name, run)
        for total in EQUAL_SPENDING:
            sides = (trained[0], trained[1].record.ledger.get(total)), (name, run.record.ledger.get(total))
            check_equal(f"ledger {total}", *sides, problem=problem, fix=fix)


def _spent(setting: Any) -> Any:
    """A setting without the learning rate, which a study may vary: it spends nothing."""
    return {key: value for key, value in setting.items() if key != "lr"} if isinstance(setting, Mapping) else setting


def _runs(levels: Sequence[AblationLevel]) -> Iterator[tuple[str, Run]]:
    """Name and run of every finished run; the base of each suite appears once."""
    seen: set[str] = set()
    for level in levels:
        if level.base is not None and level.suite not in seen:
            seen.add(level.suite)
            yield f"{level.suite}/{BASE}", level.base
        for run in level.runs.finished:
            yield f"{level.suite}/{run.record.row}/seed-{run.record.seed}", run


def compare_levels(levels: Sequence[AblationLevel]) -> pd.DataFrame:
    """One line per level: its scores, and its differences to the base and to the first level of its group.

    Columns: group, level, n_seeds, n_failed; each of `level_metrics` with `_lo`, `_hi`, and for `level_scores`
    `<score>_delta` (to the base of the level's own suite, paired by prompt); `to_first*` (to the group's first level,
    paired by seed and prompt over the `to_first_seeds` seeds that both finished; NaN where both are the same runs)
    with `_lo`, `_hi`, and for `level_scores` also `_p`, `_p_holm` (over all tests of the table), `_margin` (see
    `tested_columns`) and `_mde` (the smallest detectable difference at Holm's first step); `dynamics.columns`;
    failed_gates, run_ids. Scores are in score units; intervals are 95 % intervals; NaN where a number is unknown.
    """
    refuse_mixed(levels)
    metrics = level_metrics(levels)
    tested = level_scores(metrics)
    sides = [(level, group[0]) for group in by_group(levels).values() for level in group]
    estimates = [_to_first(level, first, metrics) for level, first in sides]
    p = [estimate.p if (estimate := found[score]) else np.nan for found in estimates for score in tested]
    adjusted, level_of_test = iter(holm(p)), LEVEL / max(1, int(np.isfinite(p).sum()))
    setbacks = {name: dynamics.setbacks(group[0].runs) for name, group in by_group(levels).items()}
    lines = []
    for (level, first), found in zip(sides, estimates, strict=True):
        columns: dict[str, Any] = {"to_first_seeds": len(_compared_seeds(level, first))}
        for score, name in to_first_columns(metrics).items():
            if score not in tested:
                columns |= interval_columns(name, found[score])
                continue
            columns |= tested_columns(name, found[score], next(adjusted))
            x = pair_matrix(level.runs, first.runs, score, _compared_seeds(level, first))
            columns[f"{name}_mde"] = np.nan if x is None else detectable_difference(x, level_of_test)
        baseline = setbacks[level.group] if columns["to_first_seeds"] else {}
        lines.append(_scores_of(level, metrics) | columns | _training_of(level, baseline))
    return pd.DataFrame(lines)


def shows_same_runs(level: AblationLevel, first: AblationLevel) -> bool:
    """Whether a level's runs have the scores of those of its baseline: then there is nothing to compare."""
    return level is not first and same_runs(level.runs, first.runs)


def _compared_seeds(level: AblationLevel, first: AblationLevel) -> list[int]:
    """The seeds over which a level is compared with its baseline; [] for the baseline and for the same runs."""
    return [] if level is first or same_runs(level.runs, first.runs) else common_seeds(level.runs, first.runs)


def _to_first(
    level: AblationLevel, first: AblationLevel, metrics: Mapping[str, MetricColumn]
) -> dict[str, Estimate | None]:
    """Score to the difference of a level to its baseline."""
    seeds = _compared_seeds(level, first)
    return {score: pair_difference(level.runs, first.runs, score, seeds) for score in metrics}


def _scores_of(level: AblationLevel, metrics: Mapping[str, MetricColumn]) -> dict[str, Any]:
    """The level's name, its counts, its scores, and those of the tested ones less the base."""
    runs = level.runs
    line: dict[str, Any] = {"group": level.group, "level": level.name}
    line |= {"n_seeds": len(runs.finished), "n_failed": len(runs.failed)}
    for score in metrics:
        x = runs.matrix(score)
        line |= interval_columns(score, None if x is None else two_way(x))
        if score in level_scores(metrics):
            base = level.base.cells.get(score) if level.base else None
            delta = None if x is None or base is None else paired_difference(x, base.to_numpy())
            line |= interval_columns(f"{score}_delta", delta)
    return line


def _training_of(level: AblationLevel, baseline: Mapping[int | None, float]) -> dict[str, Any]:
    """How training went, beside the setbacks of the baseline's seeds, and which runs these are."""
    runs = level.runs
    failed = sorted({gate for run in runs.finished for gate in failed_gates(run.record)})
    line = {**dynamics.columns(runs, baseline), "failed_gates": " ".join(failed)}
    return line | {"run_ids": " ".join(run.record.digest[:8] for run in runs.finished)}


def settings_that_differ(levels: Sequence[AblationLevel]) -> dict[str, dict[str, list[str]]]:
    """Dotted key to each of its values to the names of the levels that have it, for keys in which levels differ.

    Only levels with finished runs count. A setting that is None or absent is "not set".
    """
    known = {level.name: _as_text(level.config) for level in levels if level.runs.finished}
    keys = dict.fromkeys(key for settings in known.values() for key in settings)
    differing: dict[str, dict[str, list[str]]] = {}
    for key in keys:
        values: dict[str, list[str]] = {}
        for name, settings in known.items():
            values.setdefault(settings.get(key, "not set"), []).append(name)
        if len(values) > 1:
            differing[key] = values
    return differing


def _as_text(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted keys of the settings that are not None to their values; the suite's name, seeds and rows do not count."""
    settings = flatten({key: value for key, value in config.items() if key not in ("suite", *UNSHARED)})
    return {
        key: f"{value:.6g}" if isinstance(value, float) else str(value)
        for key, value in settings.items()
        if value is not None
    }
