"""The numbers of an ablation: runs that differ in one thing, grouped, and each level beside its group's first one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.core.errors import BenchError
from bench.core.hashing import canonical_json
from bench.report.data import dynamics
from bench.report.data.records import (
    BASE,
    RowRuns,
    Run,
    Suite,
    comparable_rows,
    differing_rows,
    failed_gates,
    row_settings,
)
from bench.report.data.statistics import Array, Estimate, detectable_effect, holm, paired_difference, two_way
from bench.report.data.summary import triple

#: Scores that mean the same in every level. The training reward does not: its weights may be what differs.
SCORES = ("overall", "gold_overall", "vq", "mq", "ta", "clipscore", "pickscore")
#: Score to the column of its difference to the group's first level.
TO_FIRST = {
    "overall": "to_first",
    "gold_overall": "to_first_gold",
    "vq": "to_first_vq",
    "mq": "to_first_mq",
    "ta": "to_first_ta",
}
#: Differences that are tested: p after Holm and the smallest effect that would be found.
TESTED = ("to_first", "to_first_gold")
#: What all levels of an ablation share, beyond what the runs of one suite do: names of `records.compared`.
HELD = (
    *("prompts digest", "evaluation", "backbone fingerprint", "evaluator fingerprints"),
    *("budget", "budget digest", "scored videos"),
)
#: Totals of the ledger that an equal budget makes equal. Reward calls may differ with the reward.
SPENT = ("nfe_rollout", "nfe_train")


@dataclass(frozen=True)
class AblationLevel:
    """One level of an ablation: the runs of one row under one setting."""

    group: str
    """What the level is compared within; the group's first level is the baseline of the others."""
    name: str
    runs: RowRuns
    base: Run | None
    """The untrained model as the level's own suite scored it."""
    config: Mapping[str, Any]
    """The suite's configuration, with its name and seeds and, as `row`, the settings of this row."""

    @property
    def suite(self) -> str:
        """Name of the suite that the runs belong to."""
        return str(self.config["suite"])

    @property
    def seeds(self) -> list[int]:
        """The seeds that the suite asks for."""
        return list(self.config["seeds"])


# levels -------------------------------------------------------------------------------------------------------
def levels_of_suite(suite: Suite) -> list[AblationLevel]:
    """Every method with at least two rows is a group, its rows are the levels; in the order of the suite."""
    methods: dict[str, list[RowRuns]] = {}
    for runs in suite.rows:
        methods.setdefault(runs.row.method, []).append(runs)
    return [
        _level(method, runs.row.label, runs, suite)
        for method, rows in methods.items()
        if len(rows) > 1
        for runs in rows
    ]


def levels_of_study(suites: Mapping[str, Suite]) -> list[AblationLevel]:
    """Variant name to its suite, the baseline first: every row is a group, the variants are its levels."""
    if len(suites) < 2:
        raise BenchError(
            f"the study has {len(suites)} variant(s) ({', '.join(suites)}): an ablation compares at least two, add "
            "another one under 'variants:' in the YAML."
        )
    (first, one), *others = [
        (variant, {runs.row.label: runs for runs in suite.rows}) for variant, suite in suites.items()
    ]
    for variant, rows in others:
        if set(rows) != set(one):
            raise BenchError(
                f"variants {first} and {variant} do not have the same rows ({', '.join(one)} against "
                f"{', '.join(rows)}): give all variants of the study the same rows and run them again."
            )
    return [
        _level(label, variant, next(runs for runs in suite.rows if runs.row.label == label), suite)
        for label in one
        for variant, suite in suites.items()
    ]


def _level(group: str, name: str, runs: RowRuns, suite: Suite) -> AblationLevel:
    settings = row_settings(runs.finished[0].record) if runs.finished else {}
    config = {**suite.config, "suite": suite.name, "seeds": suite.seeds, "row": settings}
    return AblationLevel(group, name, runs, suite.base, config)


def grouped(levels: Sequence[AblationLevel]) -> dict[str, list[AblationLevel]]:
    """Group to its levels, both in the given order."""
    groups: dict[str, list[AblationLevel]] = {}
    for level in levels:
        groups.setdefault(level.group, []).append(level)
    return groups


# fairness -----------------------------------------------------------------------------------------------------
def refuse_mixed(levels: Sequence[AblationLevel]) -> None:
    """Levels share prompts, model, scorers, evaluation, budget and videos, and their runs spent alike."""
    first: tuple[str, Run] | None = None
    trained: tuple[str, Run] | None = None
    for name, run in _runs(levels):
        first = first or (name, run)
        left, right = comparable_rows(first[1]), comparable_rows(run)
        for what in HELD:
            _refuse(what, (first[0], left[what]), (name, right[what]))
        if run.record.seed is None:
            continue
        trained = trained or (name, run)
        for what in SPENT:
            spent = [one.record.ledger.get(what) for one in (trained[1], run)]
            _refuse(f"ledger {what}", (trained[0], spent[0]), (name, spent[1]))


def _runs(levels: Sequence[AblationLevel]) -> Iterator[tuple[str, Run]]:
    """All runs with their names, and each suite's base once."""
    seen: set[str] = set()
    for level in levels:
        if level.base is not None and level.suite not in seen:
            seen.add(level.suite)
            yield f"{level.suite}/{BASE}", level.base
        for run in level.runs.finished:
            yield f"{level.suite}/{run.record.row}/seed-{run.record.seed}", run


def _refuse(what: str, a: tuple[str, Any], b: tuple[str, Any]) -> None:
    if canonical_json(a[1]) != canonical_json(b[1]):
        left, right = differing_rows(a[1], b[1])
        raise BenchError(
            f"runs {a[0]} and {b[0]} are no levels of one ablation: {what} {left} against {right}; run the odd one "
            "again with the others' settings, or leave it out."
        )


# numbers ------------------------------------------------------------------------------------------------------
def compare_levels(levels: Sequence[AblationLevel]) -> pd.DataFrame:
    """One line per level: its scores, its difference to the base and, paired by seed and prompt, to the first level.

    Columns: group, level, n_seeds, n_failed; each of `SCORES` with `_lo`, `_hi`; `overall_delta` and
    `gold_overall_delta` (to the level's own base); `to_first*` (to the group's first level, over the seeds that both
    finished, `to_first_seeds` of them; nothing where its runs are the same) with `_lo`, `_hi`, `_p`, and for `TESTED`
    `_p_holm` (over the whole table) and `_mde`; `course.columns`; failed_gates, run_ids. Intervals are
    95 % ones; nan where there is nothing to say.
    """
    refuse_mixed(levels)
    lines = []
    for first, *others in grouped(levels).values():
        falls = dynamics.setbacks(first.runs)  # read once for all that are compared with it
        lines += [_line(first, first, {}), *[_line(level, first, falls) for level in others]]
    table = pd.DataFrame(lines)
    for name in TESTED:
        at = list(table.columns).index(f"{name}_p") + 1
        table.insert(at, f"{name}_p_holm", holm(table[f"{name}_p"].tolist()))
    return table


def _line(level: AblationLevel, first: AblationLevel, falls: Mapping[int | None, float]) -> dict[str, Any]:
    """A level beside its group's first one, whose setbacks by seed are `falls`."""
    runs = level.runs
    out: dict[str, Any] = {"group": level.group, "level": level.name}
    out |= {"n_seeds": len(runs.finished), "n_failed": len(runs.failed)}
    for score in SCORES:
        x = runs.matrix(score)
        out |= triple(score, None if x is None else two_way(x))
        if score in ("overall", "gold_overall"):
            base = level.base.cells.get(score) if level.base else None
            out |= triple(f"{score}_delta", _difference(x, None if base is None else base.to_numpy()))
    alone = level is first or same_runs(level, first)
    common = [] if alone else sorted(set(runs.seeds) & set(first.runs.seeds))
    out["to_first_seeds"] = len(common)
    for score, name in TO_FIRST.items():
        estimate = _difference(runs.matrix(score, common), first.runs.matrix(score, common))
        out |= triple(name, estimate) | {f"{name}_p": estimate.p if estimate else np.nan}
        if name in TESTED:
            out[f"{name}_mde"] = detectable_effect(estimate.se, estimate.df) if estimate else np.nan
    failed = sorted({gate for run in runs.finished for gate in failed_gates(run.record)})
    out |= dynamics.columns(runs, {} if alone else falls) | {"failed_gates": " ".join(failed)}
    return out | {"run_ids": " ".join(run.record.digest[:8] for run in runs.finished)}


def same_runs(level: AblationLevel, first: AblationLevel) -> bool:
    """Whether a level's runs are those of the first one, shared by digest: then there is nothing to compare."""
    mine, theirs = ({run.record.digest for run in one.runs.finished} for one in (level, first))
    return level is not first and bool(mine) and mine <= theirs


def _difference(x: Array | None, other: Array | None) -> Estimate | None:
    return None if x is None or other is None else paired_difference(x, other)


def settings_that_differ(levels: Sequence[AblationLevel]) -> dict[str, dict[str, list[str]]]:
    """Dotted key to each of its values to the levels that have it, for keys in which levels with runs differ."""
    known = {level.name: _flat(level.config) for level in levels if level.runs.finished}
    keys = dict.fromkeys(key for settings in known.values() for key in settings)
    found: dict[str, dict[str, list[str]]] = {}
    for key in keys:
        values: dict[str, list[str]] = {}
        for name, settings in known.items():
            values.setdefault(settings.get(key, "not set"), []).append(name)
        if len(values) > 1:
            found[key] = values
    return found


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Dotted keys to values as text; names, seeds and other rows are no settings, and None is an option left off."""
    out: dict[str, str] = {}
    for key, value in settings.items():
        if not above and key in ("suite", "seeds", "rows"):
            continue
        if isinstance(value, Mapping):
            out |= _flat(value, f"{above}{key}.")
        elif value is not None:
            out[f"{above}{key}"] = f"{value:.6g}" if isinstance(value, float) else str(value)
    return out
