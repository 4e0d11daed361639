"""Controls of a suite: training on gold must improve on the base, training on shuffled rewards must not."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.core.errors import BenchError
from bench.core.provenance import ROOT
from bench.report import formatting
from bench.report.data.records import SuiteRecords, incomparable_setting, load_records
from bench.report.data.statistics import paired_difference
from bench.store.files import find
from bench.store.record import RUN

CONFIGS = ROOT / "bench" / "configs"
UNDECIDED = "Undecided: runs are missing or failed, or fewer than two seeds are finished."


class Control(NamedTuple):
    """One kind of control."""

    title: str
    suffix: str
    """Name of the control's suite after the name of the suite that it is a control of."""
    negative: bool
    """Whether the rewards are shuffled within each group, so that nothing can be learned."""


CONTROLS = (
    Control("Positive control", "_control_gold", False),
    Control("Negative control", "_control_shuffled", True),
)


def is_control(suite: SuiteRecords) -> bool:
    """Whether the suite is itself a control, by its name or by its shuffled rewards."""
    return _kind(suite) is not None


def _kind(suite: SuiteRecords) -> Control | None:
    shuffled = bool(suite.config.get("shuffle_rewards"))
    return next((kind for kind in CONTROLS if suite.name.endswith(kind.suffix) or (shuffled and kind.negative)), None)


def control_notes(suite: SuiteRecords, own: Path, stored: Path) -> list[str]:
    """One line per control of the suite; for a suite that is itself a control, the line about itself.

    `own` and `stored` are the parents of the suites' folders; a control in `own` comes before one in `stored`. A
    control without runs is named only if the project contains its YAML.
    """
    kind = _kind(suite)
    if kind is not None:
        return [_line(kind, suite, f"This suite is a {kind.title.lower()}")]
    notes, absent = [], []
    for control in CONTROLS:
        name = suite.name + control.suffix
        runs = _find_runs(own / name, stored / name)
        if runs is not None:
            notes.append(_control_line(control, suite, *runs))
        elif (CONFIGS / f"{name}.yaml").is_file():
            absent.append(control)
    if absent:
        commands = " and ".join(f"`bench run {suite.name}{control.suffix}`" for control in absent)
        title = absent[0].title if len(absent) < len(CONTROLS) else "Controls"
        notes.append(f"{title}: not run. Run {commands}.")
    return notes


def _find_runs(own: Path, stored: Path) -> tuple[Path, str] | None:
    """The first of the two folders that holds trained runs, and a description of their origin."""
    folders = [(own, "your own runs"), (stored, "our stored runs")]
    if own.resolve() == stored.resolve():
        folders = folders[1:]
    return next(((path, origin) for path, origin in folders if find(path, f"*/seed-*/{RUN}")), None)


def _control_line(kind: Control, suite: SuiteRecords, folder: Path, origin: str) -> str:
    """The line of a control from its records; a control whose records cannot be loaded has failed."""
    try:
        control = load_records(folder)
    except BenchError as error:
        return f"**{kind.title} {folder.name} ({origin}) has no verdict: {error}**"
    setting = incomparable_setting(suite, control, ignoring=("reward", "shuffle_rewards"))
    warning = f"; made with ANOTHER {setting} than this table" if setting else ""
    return _line(kind, control, f"{kind.title} {control.name} ({origin}{warning})")


def _line(kind: Control, control: SuiteRecords, start: str) -> str:
    """Seeds, reward, difference of the Reward to the base with its 95 % interval, and verdict; in bold if it fails."""
    table = _differences(control)
    digits = formatting.decimals(table, "delta")
    rows = [f"{row['row']} {formatting.interval(row, 'delta', digits)}{row['part']}" for _, row in table.iterrows()]
    reward = " + ".join(f"{weight:g} {name}" for name, weight in control.weights.items()) or "not recorded"
    shuffled = ", shuffled within each group" if control.config.get("shuffle_rewards") else ""
    passed, verdict = _verdict(kind, control, table)
    text = (
        f"{start}: {len(control.seeds)} seeds, reward {reward}{shuffled}; Reward - base: {', '.join(rows)}. {verdict}"
    )
    return text if passed is not False else f"**{text}**"


def _differences(control: SuiteRecords) -> pd.DataFrame:
    """Reward - base of each row with its interval, NaN if unknown, and a text if seeds are missing."""
    lines = []
    base = control.base.cells.get("trained") if control.base else None
    for runs in control.rows:
        x = runs.matrix("trained")
        estimate = None if x is None or base is None else paired_difference(x, base.to_numpy())
        mean, lo, hi = (estimate.mean, estimate.lo, estimate.hi) if estimate else (np.nan,) * 3
        done, failed = len(runs.finished), len(runs.failed)
        part = "" if done == len(control.seeds) else f" ({done}/{len(control.seeds)} seeds, {failed} failed)"
        lines.append({"row": runs.row.label, "delta": mean, "delta_lo": lo, "delta_hi": hi, "part": part})
    return pd.DataFrame(lines, columns=["row", "delta", "delta_lo", "delta_hi", "part"])


def _verdict(kind: Control, control: SuiteRecords, table: pd.DataFrame) -> tuple[bool | None, str]:
    """Whether the control passes (None: unknown), and the verdict as a sentence."""
    if bool(control.config.get("shuffle_rewards")) != kind.negative:
        has = "are not" if kind.negative else "are"
        return False, f"It is NOT a {kind.title.lower()}: its rewards {has} shuffled."
    above = table["row"][table["delta_lo"] > 0].tolist()
    undecided = table["delta_lo"].isna().any() or (table["part"] != "").any()
    if kind.negative:
        if above:
            return False, f"It FAILS: {', '.join(above)} rises although its rewards are shuffled."
        return (None, UNDECIDED) if undecided else (True, "It passes: no interval lies above 0.")
    if above:
        return True, "It passes: an interval lies above 0."
    return (None, UNDECIDED) if undecided else (False, "It FAILS: no interval lies above 0.")
