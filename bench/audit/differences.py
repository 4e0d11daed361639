"""In what two runs of one digest differ, number by number: the nondeterminism floor, and the record of a replay.

Nothing here imports torch: the main table quotes `replay.json`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import store
from bench.core.errors import BenchError
from bench.core.hashing import plain

if TYPE_CHECKING:
    import pandas as pd

#: Parts of a line of `train.jsonl` that the clock or a restart decides.
NOT_COMPARED = ("seconds.", "ledger.restarts")
ABSENT = "not recorded"


# training -----------------------------------------------------------------------------------------------------
class Difference(NamedTuple):
    """One number that differs."""

    update: int
    field: str
    """Dotted name in the line, e.g. `grad_norm.0`."""
    stored: Any
    again: Any

    @property
    def size(self) -> float:
        """Absolute difference; infinite where one of the two is no number."""
        if isinstance(self.stored, (int, float)) and isinstance(self.again, (int, float)):
            return abs(self.stored - self.again)
        return math.inf

    def __str__(self) -> str:
        return f"update {self.update}, {self.field}: {self.stored} stored, {self.again} again ({self.size:.2g} apart)"


@dataclass
class TrainingDiff:
    """Lines of `train.jsonl` compared."""

    updates: int
    compared: int = 0
    """Numbers."""
    gaps: list[Difference] = field(default_factory=list)
    one_sided: dict[str, str] = field(default_factory=dict)
    """Fields that only one of two lines has, to which one."""

    @property
    def largest(self) -> Difference | None:
        return max(self.gaps, key=lambda gap: gap.size, default=None)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every number of a line with its dotted name."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        yield f"{name}.length", len(value)
        for place, item in enumerate(value):
            yield from leaves(item, f"{name}.{place}")
    elif not name.startswith(NOT_COMPARED):
        yield name, value


def compare_lines(
    stored: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]], updates: int
) -> TrainingDiff:
    """The first `updates` lines of two runs, all numbers but seconds and restarts."""
    found = TrainingDiff(updates)
    for update in range(updates):
        if update >= min(len(stored), len(again)):
            there, here = (f"{len(lines)} lines" for lines in (stored, again))
            if there != here:
                found.gaps.append(Difference(update, "train.jsonl", there, here))
            break
        left, right = dict(leaves(stored[update])), dict(leaves(again[update]))
        for name in left.keys() ^ right.keys():
            found.one_sided.setdefault(name, "stored" if name in left else "second")
        both = [name for name in left if name in right]
        found.compared += len(both)
        found.gaps += [Difference(update, n, left[n], right[n]) for n in both if left[n] != right[n]]
    return found


# scores -------------------------------------------------------------------------------------------------------
def score_floors(stored: pd.DataFrame, again: pd.DataFrame) -> dict[str, float]:
    """Largest absolute difference of each metric over the held-out videos; other videos or metrics are refused."""
    left, right = (frame.set_index(store.SCORE_KEY)["value"] for frame in (stored, again))
    if not left.index.equals(right.index):
        odd = sorted(set(left.index) ^ set(right.index))
        raise BenchError(
            f"the two runs scored other videos or metrics, e.g. {dict(zip(store.SCORE_KEY, odd[0], strict=True))}: "
            "restore the run's folder, or the prompts that it was made with."
        )
    return {str(name): float(gap) for name, gap in (left - right).abs().groupby(level="metric").max().items()}


# where both were made -----------------------------------------------------------------------------------------
def environment(
    provenance: Mapping[str, Any],
    backbone: Mapping[str, Any],
    evaluators: Mapping[str, Mapping[str, Any]],
    prompts: str,
) -> dict[str, Any]:
    """All beside the settings that may move a number, by name: sources, versions, hardware, weights, prompts."""
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
        **{f"{scorer} {name}": value for scorer, entry in evaluators.items() for name, value in entry.items()},
        "prompts": prompts,
    }


def environment_changes(stored: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """What differs between two `surroundings`, one phrase each."""
    names = list(dict.fromkeys([*stored, *again]))
    pairs = [(name, stored.get(name, ABSENT), again.get(name, ABSENT)) for name in names]
    return [f"{name}: {left} stored, {right} again" for name, left, right in pairs if plain(left) != plain(right)]
