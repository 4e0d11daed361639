"""The ratio audit as plain text: each trained step, whether a row passes, and the error of each practice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

HEADERS = ("largest |ratio - 1|", "mean |log-ratio|", "beyond clip range")
KEYS = ("largest", "mean_log_ratio", "beyond_clip")


def ratio_page(audit: Mapping[str, Any]) -> str:
    """The audit of one suite; `audit` is the result of `bench.audit.ratio.audit_suite`."""
    policy = "fresh policy" if audit["policy"] == "fresh" else f"policy of {audit['policy']}"
    head = f"{audit['suite']}: ratio audit before the first update, seed {audit['seed']}, {policy}"
    body = f"{audit['samples']} samples in each trained step, scored again by the training forward"
    parts = [head, body, "", _steps(audit["rows"]), ""]
    parts += [_verdict(row, audit["tolerance"]) for row in audit["rows"]]
    parts += ["", "One practice of other codebases at a time, in the second scoring of the same rollout:", ""]
    parts += [_practices(audit["rows"]), "", *_left_out(audit["rows"])]
    return "\n".join(parts).rstrip()


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2g}"


def _cells(entry: Mapping[str, Any]) -> list[str]:
    return [_number(entry[key]) for key in KEYS[:2]] + [f"{100 * entry[KEYS[2]]:.3g} %"]


def _table(headers: Sequence[str], lines: Sequence[Sequence[str]], texts: int) -> str:
    align = ["left"] * texts + ["right"] * (len(headers) - texts)
    return tabulate(lines, headers=headers, disable_numparse=True, colalign=align)


def _steps(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [[row["row"], str(step["step"]), *_cells(step)] for row in rows for step in row["steps"]]
    return _table(["row", "step", *HEADERS], lines, 1)


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
    return _table(["practice", "row", *HEADERS, "clip range"], lines, 2)


def _left_out(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per practice and reason, with the labels of the rows unless it is all of them."""
    labels: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, entry in row["practices"].items():
            if "left_out" in entry:
                labels.setdefault((name, entry["left_out"]), []).append(row["row"])
    lines = []
    for (name, reason), left_out in labels.items():
        suffix = "" if len(left_out) == len(rows) else f" ({', '.join(left_out)})"
        lines.append(f"left out: {name}{suffix}: {reason}")
    return lines
