"""Differences between a stored run and its repetition: training numbers, scores, software and hardware."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import store
from bench.core.errors import BenchError
from bench.suite.difference import differences

if TYPE_CHECKING:
    import pandas as pd

#: Fields of a line of `train.jsonl` that depend on the clock or on restarts.
NOT_COMPARED = ("seconds.", "ledger.restarts")
ABSENT = "not recorded"


class Difference(NamedTuple):
    """One number of `train.jsonl` that differs."""

    update: int
    field: str
    """Dotted name in the line, e.g. `grad_norm.0`."""
    stored: Any
    again: Any

    @property
    def size(self) -> float:
        """Absolute difference; infinite if one of the two is not a number."""
        if isinstance(self.stored, (int, float)) and isinstance(self.again, (int, float)):
            return abs(self.stored - self.again)
        return math.inf

    def __str__(self) -> str:
        return f"update {self.update}, {self.field}: {self.stored} stored, {self.again} again ({self.size:.2g} apart)"


@dataclass
class TrainingDiff:
    """Comparison of the lines of two `train.jsonl`."""

    updates: int
    compared: int = 0
    """Count of compared numbers."""
    gaps: list[Difference] = field(default_factory=list)
    one_sided: dict[str, str] = field(default_factory=dict)
    """Field that only one of the two runs has, to "stored" or "second"."""

    @property
    def largest(self) -> Difference | None:
        """The difference of the largest size; None if no number differs."""
        return max(self.gaps, key=lambda gap: gap.size, default=None)


def line_fields(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every field of a line that is compared; lists have their items and their length."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from line_fields(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        yield f"{name}.length", len(value)
        for index, item in enumerate(value):
            yield from line_fields(item, f"{name}.{index}")
    elif not name.startswith(NOT_COMPARED):
        yield name, value


def compare_lines(
    stored: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]], updates: int
) -> TrainingDiff:
    """Compare the first `updates` lines of two runs, all numbers except seconds and restarts."""
    diff = TrainingDiff(updates)
    for update in range(updates):
        if update >= min(len(stored), len(again)):
            if len(stored) != len(again):
                lengths = (f"{len(lines)} lines" for lines in (stored, again))
                diff.gaps.append(Difference(update, "train.jsonl", *lengths))
            break
        left, right = dict(line_fields(stored[update])), dict(line_fields(again[update]))
        for name in left.keys() ^ right.keys():
            diff.one_sided.setdefault(name, "stored" if name in left else "second")
        both = [name for name in left if name in right]
        diff.compared += len(both)
        diff.gaps += [Difference(update, n, left[n], right[n]) for n in both if left[n] != right[n]]
    return diff


def score_floors(stored: pd.DataFrame, again: pd.DataFrame) -> dict[str, float]:
    """Metric to its largest absolute difference over the held-out videos, score units.

    Two runs with other videos or metrics are a `BenchError`.
    """
    left, right = (frame.set_index(store.SCORE_KEY)["value"] for frame in (stored, again))
    if not left.index.equals(right.index):
        unmatched = sorted(set(left.index) ^ set(right.index))
        example = dict(zip(store.SCORE_KEY, unmatched[0], strict=True))
        raise BenchError(
            f"the two runs scored other videos or metrics, such as {example}: restore the run's folder, or the "
            "prompts that it was made with."
        )
    return {str(name): float(gap) for name, gap in (left - right).abs().groupby(level="metric").max().items()}


def curve_floors(stored: pd.DataFrame, again: pd.DataFrame) -> dict[str, float]:
    """Metric to its largest absolute difference over the points of two curves; infinite where one lacks a score."""
    left, right = (frame.set_index(["update", *store.SCORE_KEY])["value"] for frame in (stored, again))
    gaps = (left - right).abs().fillna(math.inf)
    return {str(name): float(gap) for name, gap in gaps.groupby(level="metric").max().items()}


def environment(
    provenance: Mapping[str, Any],
    backbone: Mapping[str, Any],
    evaluators: Mapping[str, Mapping[str, Any]],
    prompts: str,
) -> dict[str, Any]:
    """Everything besides the settings that may change a number: sources, versions, hardware, weights, prompts."""
    hardware = provenance.get("hardware", {})
    return {
        "sources": provenance.get("source_digest", ABSENT),
        "python": provenance.get("python", ABSENT),
        **{f"package {name}": version for name, version in provenance.get("packages", {}).items()},
        "CPU": hardware.get("cpu", ABSENT),
        "machine": hardware.get("machine", ABSENT),
        "GPU": provenance.get("gpu", "none"),
        "processes": provenance.get("processes", 1),
        **{f"backbone {name}": value for name, value in backbone.items()},
        **{f"{evaluator} {name}": value for evaluator, entry in evaluators.items() for name, value in entry.items()},
        "prompts": prompts,
    }


def environment_changes(stored: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """One phrase for each entry in which two `environment`s differ."""
    changes = differences(stored, again, absent=ABSENT)
    return [f"{name}: {left} stored, {right} again" for name, (left, right) in changes.items()]
