"""The controls of a suite in its table's footer: training on gold must beat the base, shuffled rewards must not."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.core.errors import BenchError
from bench.core.provenance import ROOT
from bench.report import formatting
from bench.report.data.records import Suite, _incomparable, load_suite
from bench.report.data.statistics import paired_difference
from bench.store.record import RUN

CONFIGS = ROOT / "bench" / "configs"
UNDECIDED = "Undecided: runs are missing or failed, or fewer than two seeds finished."


class Control(NamedTuple):
    """One kind of control."""

    title: str
    suffix: str
    """What the control's suite is called after the name of the suite that it is a control of."""
    negative: bool
    """Whether the rewards are shuffled within the group, so that nothing can be learnt."""


CONTROLS = (
    Control("Positive control", "_control_gold", False),
    Control("Negative control", "_control_shuffled", True),
)


def is_control(suite: Suite) -> bool:
    """Whether the suite is itself a control, by its name or by its shuffled rewards."""
    return _kind(suite) is not None


def _kind(suite: Suite) -> Control | None:
    shuffled = bool(suite.config.get("shuffle_rewards"))
    return next((kind for kind in CONTROLS if suite.name.endswith(kind.suffix) or (shuffled and kind.negative)), None)


def control_notes(suite: Suite, own: Path, stored: Path) -> list[str]:
    """One line per control of the suite, or what a control suite says of itself.

    `own` and `stored` are the folders that hold the suites' folders: a control in `own` stands before one in `stored`.
    A control that is nowhere is named only if its suite comes with the project.
    """
    kind = _kind(suite)
    if kind is not None:
        return [_line(kind, suite, f"This suite is a {kind.title.lower()}")]
    notes, absent = [], []
    for control in CONTROLS:
        name = suite.name + control.suffix
        found = _found(own / name, stored / name)
        if found is not None:
            notes.append(_loaded(control, suite, *found))
        elif (CONFIGS / f"{name}.yaml").is_file():
            absent.append(control)
    if absent:
        commands = " and ".join(f"`bench run bench/configs/{suite.name}{control.suffix}.yaml`" for control in absent)
        title = absent[0].title if len(absent) < len(CONTROLS) else "Controls"
        notes.append(f"{title}: not run; {commands} would do it.")
    return notes


def _found(own: Path, stored: Path) -> tuple[Path, str] | None:
    """The first of the two folders that holds trained runs, and whose runs they are."""
    places = [(own, "your own runs"), (stored, "our stored runs")]
    if own.resolve() == stored.resolve():
        places = places[1:]
    return next(((path, whose) for path, whose in places if any(path.glob(f"*/seed-*/{RUN}"))), None)


def _loaded(kind: Control, suite: Suite, folder: Path, whose: str) -> str:
    """The line of a control from its records; records that do not load are a failed control, not a missing one."""
    try:
        control = load_suite(folder)
    except BenchError as error:
        return f"**{kind.title} {folder.name} ({whose}) cannot be judged: {error}**"
    other = _incomparable(suite, control, ignoring=("reward", "shuffle_rewards"))
    made = f"; made with ANOTHER {other} than this table" if other else ""
    return _line(kind, control, f"{kind.title} {control.name} ({whose}{made})")


def _line(kind: Control, control: Suite, start: str) -> str:
    """Seeds, reward, `trained - base` of each row with its 95 % interval, and the verdict; bold if it fails."""
    table = _differences(control)
    digits = formatting.decimals(table, "delta")
    rows = [f"{row['row']} {formatting.interval(row, 'delta', digits)}{row['part']}" for _, row in table.iterrows()]
    reward = " + ".join(f"{weight:g} {name}" for name, weight in control.weights.items()) or "not recorded"
    shuffled = ", shuffled within each group" if control.config.get("shuffle_rewards") else ""
    passed, why = _judged(kind, control, table)
    text = f"{start}: {len(control.seeds)} seeds, reward {reward}{shuffled}; trained - base: {', '.join(rows)}. {why}"
    return text if passed is not False else f"**{text}**"


def _differences(control: Suite) -> pd.DataFrame:
    """`trained - base` of each row with its interval, nan where it is unknown, and how many seeds lack."""
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


def _judged(kind: Control, control: Suite, table: pd.DataFrame) -> tuple[bool | None, str]:
    """Whether the control passes (None: not known yet), and the sentence that says so."""
    if bool(control.config.get("shuffle_rewards")) != kind.negative:
        has = "are not" if kind.negative else "are"
        return False, f"It is NO {kind.title.lower()}: its rewards {has} shuffled."
    above = table["row"][table["delta_lo"] > 0].tolist()
    open_ = table["delta_lo"].isna().any() or (table["part"] != "").any()
    if kind.negative:
        if above:
            return False, f"It FAILS: {', '.join(above)} rises although its rewards say nothing."
        return (None, UNDECIDED) if open_ else (True, "It passes: no interval lies above 0.")
    if above:
        return True, "It passes: an interval lies above 0."
    return (None, UNDECIDED) if open_ else (False, "It FAILS: no interval lies above 0, even on gold.")
