"""The ratio audit as plain text: the verdict, each trained step, and what each practice would make of the ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

HEADS = ("largest |ratio - 1|", "mean |log-ratio|", "beyond clip range")
KEYS = ("largest", "mean_log_ratio", "beyond_clip")


def ratio_page(found: Mapping[str, Any]) -> str:
    """The whole audit of one suite; `found` is what `bench.audit.ratio.audit_suite` returns."""
    policy = "fresh policy" if found["policy"] == "fresh" else f"policy of {found['policy']}"
    head = f"{found['suite']}: ratio audit before the first update, seed {found['seed']}, {policy}"
    body = f"{found['samples']} samples in each trained step, scored again by the training forward"
    parts = [head, body, "", _steps(found["rows"]), ""]
    parts += [_verdict(row, found["tolerance"]) for row in found["rows"]]
    parts += ["", "One practice of other codebases at a time, in the second scoring of the same rollout:", ""]
    parts += [_practices(found["rows"]), "", *_left_out(found["rows"])]
    return "\n".join(parts).rstrip()


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2g}"


def _cells(entry: Mapping[str, Any]) -> list[str]:
    return [_number(entry[key]) for key in KEYS[:2]] + [f"{100 * entry[KEYS[2]]:.3g} %"]


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], texts: int) -> str:
    align = ["left"] * texts + ["right"] * (len(heads) - texts)
    return tabulate(lines, headers=heads, disable_numparse=True, colalign=align)


def _steps(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [[row["row"], str(step["step"]), *_cells(step)] for row in rows for step in row["steps"]]
    return _table(["row", "step", *HEADS], lines, 1)


def _verdict(row: Mapping[str, Any], tolerance: float) -> str:
    sign = "passes" if row["passed"] else "FAILS"
    return (
        f"{row['row']} {sign}: largest {_number(row['largest'])}, tolerance {tolerance:g}, "
        f"clip range {row['clip_range']:.3g}"
    )


def _practices(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [name, row["row"], *_cells(entry), f"{row['clip_range']:.2g}"]
        for name in rows[0]["practices"]
        for row in rows
        if "left_out" not in (entry := row["practices"][name])
    ]
    return _table(["practice", "row", *HEADS, "clip range"], lines, 2)


def _left_out(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per practice and reason, with the rows that it holds for unless it holds for all."""
    why: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, entry in row["practices"].items():
            if "left_out" in entry:
                why.setdefault((name, entry["left_out"]), []).append(row["row"])
    lines = []
    for (name, reason), which in why.items():
        rows_named = "" if len(which) == len(rows) else f" ({', '.join(which)})"
        lines.append(f"left out: {name}{rows_named}: {reason}")
    return lines
