"""Controls of a suite: training on gold must improve on the base, training on shuffled rewards must not.

An interval that is wide shows nothing. So a negative control does not pass because its intervals contain 0: each upper
limit must lie below half of the effect that the positive control has in the same row.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.core.errors import BenchError
from bench.core.provenance import ROOT
from bench.report import formatting
from bench.report.data.comparable import incomparable_setting
from bench.report.data.differences import interval_columns
from bench.report.data.loading import load_records
from bench.report.data.power import detectable_difference
from bench.report.data.records import SuiteRecords
from bench.report.data.selection import settings_key
from bench.report.data.statistics import LEAST_SEEDS, two_way
from bench.store.files import find
from bench.store.record import RUN

CONFIGS = ROOT / "bench" / "configs"
SEEDS = 6
"""Seeds that a control takes; one with fewer says so."""
SHARE = 0.5
"""The upper limits of a negative control must lie below this share of the positive control's mean effect."""
UNDECIDED = f"Undecided: runs are missing or failed, or fewer than {LEAST_SEEDS} seeds are finished."


class Control(NamedTuple):
    """One kind of control."""

    title: str
    suffix: str
    """Name of the control's suite after the name of the suite that it is a control of."""
    negative: bool
    """Whether the rewards are shuffled within each group, so that nothing can be learned."""


CONTROLS = POSITIVE, NEGATIVE = (
    Control("Positive control", "_control_gold", False),
    Control("Negative control", "_control_shuffled", True),
)


class ControlResult(NamedTuple):
    """What one control of a suite shows."""

    kind: Control
    passed: bool | None
    """None: it was not run, or it is undecided."""
    verdict: str
    """In one or two sentences."""
    line: str
    """Its origin, seeds, differences and verdict; in bold if it fails."""


class Limits(NamedTuple):
    """Below which upper limit the rows of a negative control pass."""

    of_row: dict[str, float]
    """Settings of the row, as `_settings` gives them, to the limit, units of the reward."""
    missing: str
    """Why a row has no limit."""


def is_control(suite: SuiteRecords) -> bool:
    """Whether the suite is itself a control, by its name or by its shuffled rewards."""
    return _kind(suite) is not None


def _kind(suite: SuiteRecords) -> Control | None:
    shuffled = bool(suite.config.get("shuffle_rewards"))
    return next((kind for kind in CONTROLS if suite.name.endswith(kind.suffix) or (shuffled and kind.negative)), None)


def control_results(suite: SuiteRecords, own: Path, stored: Path) -> list[ControlResult]:
    """One result per control of the suite; for a suite that is itself a control, its own.

    `own` and `stored` are the parents of the suites' folders; a control in `own` comes before one in `stored`. A
    control without runs is named only if the project contains its YAML.
    """
    kind = _kind(suite)
    if kind is not None:
        return [_result(kind, suite, f"This suite is a {kind.title.lower()}", own, stored)]
    results = []
    for control in CONTROLS:
        name = suite.name + control.suffix
        runs = _find_runs(own / name, stored / name)
        if runs is not None:
            results.append(_control_result(control, suite, runs, own, stored))
        elif (CONFIGS / f"{name}.yaml").is_file():
            verdict = f"Not run. Run `bench run {name}`."
            results.append(ControlResult(control, None, verdict, f"{control.title} {name}: {verdict}"))
    return results


def _find_runs(own: Path, stored: Path) -> tuple[Path, str] | None:
    """The first of the two folders that holds trained runs, and a description of their origin."""
    folders = [(own, "your own runs"), (stored, "our stored runs")]
    if own.resolve() == stored.resolve():
        folders = folders[1:]
    return next(((path, origin) for path, origin in folders if find(path, f"*/seed-*/{RUN}")), None)


def _control_result(
    kind: Control, suite: SuiteRecords, runs: tuple[Path, str], own: Path, stored: Path
) -> ControlResult:
    """The result of a control from its records; a control whose records cannot be loaded has failed."""
    folder, origin = runs
    try:
        control = load_records(folder)
    except BenchError as error:
        line = f"**{kind.title} {folder.name} ({origin}) has no verdict: {error}**"
        return ControlResult(kind, False, "Its records cannot be loaded.", line)
    setting = incomparable_setting(suite, control, ignoring=("reward", "shuffle_rewards"))
    warning = f"; made with ANOTHER {setting} than this table" if setting else ""
    return _result(kind, control, f"{kind.title} {control.name} ({origin}{warning})", own, stored)


def _result(kind: Control, control: SuiteRecords, start: str, own: Path, stored: Path) -> ControlResult:
    """Seeds, reward, difference of the Reward to the base with its 95 % interval, and verdict."""
    table = _differences(control)
    digits = formatting.decimals(table, "delta")
    rows = [
        f"{row['row']} {formatting.interval(row, 'delta', digits)}"
        f"{f' (MDE of one test {formatting.number(row.mde)})' if kind.negative and row.mde > 0 else ''}{row['part']}"
        for _, row in table.iterrows()
    ]
    reward = " + ".join(f"{weight:g} {name}" for name, weight in control.weights.items()) or "not recorded"
    shuffled = bool(control.config.get("shuffle_rewards"))
    seeds = len(control.seeds)
    passed: bool | None = False
    if shuffled != kind.negative:
        has = "are" if shuffled else "are not"
        verdict = f"It is NOT a {kind.title.lower()}: its rewards {has} shuffled."
    else:
        passed, verdict = _negative(table, _limits(control, own, stored)) if shuffled else _positive(table)
        verdict += f" A control takes {SEEDS} seeds; this one has {seeds}." if seeds < SEEDS else ""
    text = (
        f"{start}: {seeds} seeds, reward {reward}{', shuffled within each group' if shuffled else ''}; "
        f"Reward - base: {', '.join(rows)}. {verdict}"
    )
    return ControlResult(kind, passed, verdict, text if passed is not False else f"**{text}**")


def _differences(control: SuiteRecords) -> pd.DataFrame:
    """Reward - base of each row with its interval and its MDE, NaN if unknown, and a text if seeds are missing."""
    lines = []
    base = control.base.cells.get("trained") if control.base else None
    for runs in control.rows:
        x = runs.matrix("trained")
        difference = None if x is None or base is None else x - base.to_numpy()
        estimate = None if difference is None else two_way(difference)
        done, failed = len(runs.finished), len(runs.failed)
        lines.append(
            {
                **{"row": runs.row.name, **interval_columns("delta", estimate)},
                "mde": np.nan if difference is None else detectable_difference(difference),
                "part": "" if done == len(control.seeds) else f" ({done}/{len(control.seeds)} seeds, {failed} failed)",
                "settings": settings_key(runs.finished[0].record) if runs.finished else "",
            }
        )
    return pd.DataFrame(lines, columns=["row", "delta", "delta_lo", "delta_hi", "mde", "part", "settings"])


def _limits(control: SuiteRecords, own: Path, stored: Path) -> Limits:
    """The limits of a negative control from the positive one, whose runs lie in `own` or in `stored`."""
    name = control.name.removesuffix(NEGATIVE.suffix) + POSITIVE.suffix
    runs = _find_runs(own / name, stored / name)
    if runs is None:
        return Limits({}, "the positive control is missing")
    try:
        positive = load_records(runs[0])
    except BenchError:
        return Limits({}, "the records of the positive control cannot be read")
    setting = incomparable_setting(control, positive, ignoring=("shuffle_rewards",))
    if setting:
        return Limits({}, f"the positive control was made with another {setting}")
    effects = _differences(positive)
    shown = effects[effects["delta_lo"] > 0]
    limits = {str(row["settings"]): SHARE * float(row["delta"]) for _, row in shown.iterrows()}
    return Limits(limits, "the positive control shows no effect in that row, or has no such row")


def _positive(table: pd.DataFrame) -> tuple[bool | None, str]:
    """Whether a positive control passes (None: unknown), and the verdict as a sentence."""
    if (table["delta_lo"] > 0).any():
        return True, "It passes: an interval lies above 0."
    return (None, UNDECIDED) if _incomplete(table) else (False, "It FAILS: no interval lies above 0.")


def _negative(table: pd.DataFrame, limits: Limits) -> tuple[bool | None, str]:
    """Whether a negative control passes (None: unknown), and the verdict as a sentence with its numbers."""
    above = table["row"][table["delta_lo"] > 0].tolist()
    if above:
        return False, f"It FAILS: {', '.join(above)} rises although its rewards are shuffled."
    if _incomplete(table):
        return None, UNDECIDED
    limit = table["settings"].map(limits.of_row).astype(float)
    unknown = table["row"][limit.isna()].tolist()
    if unknown:
        return None, f"Undecided for {', '.join(unknown)}: {limits.missing}."
    passed = bool((table["delta_hi"] < limit).all())
    start = "It passes: each upper limit lies" if passed else "Undecided for want of power: an upper limit must lie"
    numbers = [
        f"{row['row']} {formatting.number(row['delta_hi'])} against {formatting.number(bound)}"
        for (_, row), bound in zip(table.iterrows(), limit, strict=True)
    ]
    share = "half of the positive control's effect in the same row"
    return passed or None, f"{start} below {share} ({', '.join(numbers)})."


def _incomplete(table: pd.DataFrame) -> bool:
    """Whether seeds are missing, or an interval."""
    return bool(table["delta_lo"].isna().any() or (table["part"] != "").any())
