"""Which settings the runs of one table must share, and the settings in which two suites differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.core.errors import BenchError
from bench.core.hashing import canonical_json
from bench.report.data.records import Run, SuiteRecords, run_name
from bench.store.record import RunRecord
from bench.suite.difference import differences, differing_parts, without_extra_files

#: Keys of the configuration, besides the budget, that must be equal in the closed division.
EQUAL_SETTINGS = (
    *("reward", "decode", "last_step", "uncond_branch", "group_noise", "noise_policy", "advantage", "evaluation"),
    *("clip_reference_size", "evaluator_params", "shuffle_rewards"),
)
#: Totals of the ledger that must be equal for all runs of the closed division.
EQUAL_SPENDING = ("nfe_rollout", "nfe_train", "reward_calls")
#: Settings in which two suites may differ: their names, and parameters of evaluators, which choose a device.
#: What decides an evaluator's scores is in its fingerprint.
SUITE_SPECIFIC = ("suite", "evaluator_params")


def comparable_settings(run: Run) -> dict[str, Any]:
    """Everything that must be equal for the runs of one table, by name."""
    return {**recorded_settings(run.record), "scored videos": run.videos, "metrics": list(run.cells.columns)}


def recorded_settings(record: RunRecord) -> dict[str, Any]:
    """The part of `comparable_settings` that needs no scores."""
    return {
        "suite": record.suite,
        "rules": record.rules,
        "prompts digest": record.prompts_digest,
        **{key: _with_defaults(key, record.config.get(key)) for key in EQUAL_SETTINGS},
        "backbone fingerprint": record.backbone,
        "evaluator fingerprints": record.evaluators,
        "budget": record.budget,
        "budget digest": record.budget_digest,
    }


LATER_OPTIONS: dict[str, dict[str, Any]] = {"evaluation": {"prompts": "heldout"}}
"""Options that older records do not have, with their value there; of all others it is None."""


def _with_defaults(key: str, setting: Any) -> Any:
    """A setting without options that are None or decide no score, and with those that older records do not have."""
    if not isinstance(setting, Mapping):
        return setting
    deciding = without_extra_files(setting) if key == "evaluation" else setting
    return {k: v for k, v in {**LATER_OPTIONS.get(key, {}), **deciding}.items() if v is not None}


def differing_settings(a: SuiteRecords, b: SuiteRecords, ignoring: Sequence[str] = ()) -> dict[str, tuple[Any, Any]]:
    """Name to the two values of each comparable setting in which two suites differ; empty if one has no runs.

    The runs of one suite are equal in all of these (`load_records`), so that the first run stands for all. The names
    in `SUITE_SPECIFIC` and in `ignoring` do not count.
    """
    if not (a.runs and b.runs):
        return {}
    pairs = differences(comparable_settings(a.runs[0]), comparable_settings(b.runs[0]))
    return {name: pair for name, pair in pairs.items() if name not in (*SUITE_SPECIFIC, *ignoring)}


def incomparable_setting(a: SuiteRecords, b: SuiteRecords, ignoring: Sequence[str] = ()) -> str | None:
    """Name of the first setting of `differing_settings`; None if the suites compare."""
    return next(iter(differing_settings(a, b, ignoring)), None)


def refuse_unequal(suite: SuiteRecords) -> None:
    """Raise a `BenchError` unless all runs have equal `comparable_settings` and the same spending."""
    problem = "do not compare"
    fix = (
        "Rows of a table must be equal in this; run the run that differs again with the suite's settings, or move "
        "its folder away."
    )
    runs = suite.runs
    for run in runs[1:]:
        values = comparable_settings(run)
        for setting, value in comparable_settings(runs[0]).items():
            sides = (run_name(runs[0].record), value), (run_name(run.record), values[setting])
            check_equal(setting, *sides, problem=problem, fix=fix)
    trained = [run.record for run in runs if run.record.seed is not None]
    for record in trained:
        for name in EQUAL_SPENDING:
            if name not in record.ledger:
                raise BenchError(
                    f"run {run_name(record)} has no {name} in its ledger: run it again with this version."
                )
            sides = (run_name(trained[0]), trained[0].ledger[name]), (run_name(record), record.ledger[name])
            check_equal(f"ledger {name}", *sides, problem=problem, fix=fix)


def check_equal(setting: str, a: tuple[str, Any], b: tuple[str, Any], *, problem: str, fix: str) -> None:
    """Raise a `BenchError` unless two runs, each with its name and its value of `setting`, have equal values."""
    if canonical_json(a[1]) != canonical_json(b[1]):
        left, right = differing_parts(a[1], b[1])
        raise BenchError(f"runs {a[0]} and {b[0]} {problem}: {setting} {left} against {right}. {fix}")
