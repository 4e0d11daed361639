"""A search over settings: every row of a suite becomes trials, whose settings are drawn once for all rows."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from bench.core.hashing import digest
from bench.core.limits import TRIALS

Range = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]
"""Smallest and largest value, both above 0."""
Absent = Literal["eta", "equalizer"]
"""Settings of the search that a method may not have."""
BASES = {"lr": 2, "equalizer": 3, "eta": 5}
"""The base of each setting's Halton sequence: the most even sequence for the learning rate, then the equalizer."""


class Trial(NamedTuple):
    """What one trial has otherwise than the row; all None for trial 0: each method's own default."""

    lr: float | None = None
    """Learning rate; None: the suite's."""
    eta_factor: float | None = None
    """Factor on the method's own eta; None: 1."""
    equalizer: str | None = None
    """None: the row's own."""

    def without(self, settings: Collection[Absent]) -> Trial:
        """The trial of a row whose method lacks these settings."""
        eta = None if "eta" in settings else self.eta_factor
        return Trial(self.lr, eta, None if "equalizer" in settings else self.equalizer)


class TrialRow(Protocol):
    """What the search reads of a row, and how it changes one."""

    @property
    def name(self) -> str: ...

    label: str | None
    params: dict[str, Any]
    lr: float | None
    eta_factor: float | None
    lacks: list[Absent]

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self: ...


RowT = TypeVar("RowT", bound=TrialRow)


class SearchSpec(BaseModel):
    """The space and the number of trials, the same for every row.

    Trial 0 is the row as it is. The settings of trial k are point k of a Halton sequence (Halton 1960), shifted by a
    vector that the seed decides (Cranley and Patterson 1976): fewer trials are the first ones of more trials. The
    trials of a row leave out what its method lacks, and are as many.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    trials: int = Field(ge=2, le=TRIALS)
    """Trials of each row, with the default as the first."""
    seed: int = 0
    """Another seed draws other trials."""
    lr: Range
    """Smallest and largest learning rate; log-uniform."""
    eta: Range
    """Smallest and largest factor on the method's own eta; log-uniform. The product is at most 1, or that eta where it
    is larger."""
    equalizer: list[Literal["off", "derived", "released"]] = Field(min_length=1)
    """Equalizers, each as likely as the others."""

    def trial(self, number: int) -> Trial:
        """The settings of a trial, numbers with 3 significant digits."""
        if number == 0:
            return Trial()
        point = {key: (radical_inverse(number, base) + self._shift(key)) % 1 for key, base in BASES.items()}
        index = int(point["equalizer"] * len(self.equalizer))
        return Trial(_log_uniform(self.lr, point["lr"]), _log_uniform(self.eta, point["eta"]), self.equalizer[index])

    def _shift(self, key: str) -> float:
        """A number from 0 to below 1 that the seed and the setting decide: the first 48 bits of a sha256."""
        return int(digest(["search", self.seed, key])[:12], 16) / 2**48

    def expand(self, rows: Sequence[RowT]) -> list[RowT]:
        """The rows with `NAME.t0`, `NAME.t1` and so on in place of a row NAME; a trial stays as it is.

        So does a row that sets params without a label, which the suite refuses.
        """
        expanded: list[RowT] = []
        for row in rows:
            if trial_of(row.name) or (row.params and row.label is None):
                expanded.append(row)
                continue
            expanded += [row.model_copy(update=self._changes(row, number)) for number in range(self.trials)]
        return expanded

    def _changes(self, row: TrialRow, number: int) -> dict[str, Any]:
        """The fields of a row that its trial changes."""
        label, trial = {"label": f"{row.name}.t{number}"}, self.trial(number).without(row.lacks)
        if trial == Trial():
            return label
        drawn = {} if trial.equalizer is None else {"equalizer": trial.equalizer}
        return {**label, "lr": trial.lr, "eta_factor": trial.eta_factor, "params": {**row.params, **drawn}}

    def errors(self, rows: Sequence[TrialRow]) -> Iterator[str]:
        """One sentence for each range that is none, and for each row that has other settings than its trial."""
        for key, (lo, hi) in (("lr", self.lr), ("eta", self.eta)):
            if lo > hi:
                yield f"search.{key} is [{lo:g}, {hi:g}]: write the smaller value first."
        if len(set(self.equalizer)) < len(self.equalizer):
            yield f"search.equalizer is {self.equalizer}: name each equalizer once."
        for row in rows:
            named = trial_of(row.name)
            trial = self.trial(named[1]).without(row.lacks) if named and named[1] < self.trials else None
            if trial is None:
                yield f"row {row.name!r} is none of the search's {self.trials} trials: remove it, or the search."
                continue
            equalizer = row.params.get("equalizer") if trial.equalizer else None
            if Trial(row.lr, row.eta_factor, equalizer) != trial:
                yield (
                    f"row {row.name!r} has other settings than the search draws for it: leave lr, eta_factor and the "
                    "label's end to the search."
                )


def trial_of(name: str) -> tuple[str, int] | None:
    """The row and the number of a trial from its name, `("cps-fixed", 3)` for "cps-fixed.t3"; None for no trial."""
    match = re.fullmatch(r"(.+)\.t(0|[1-9][0-9]*)", name)
    return (match[1], int(match[2])) if match else None


def radical_inverse(number: int, base: int) -> float:
    """The number's digits in this base, mirrored at the point: 1, 2, 3 in base 2 are .5, .25, .75."""
    value, scale = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        scale /= base
        value += digit * scale
    return value


def _log_uniform(bounds: Sequence[float], point: float) -> float:
    lo, hi = bounds
    return float(f"{lo * math.exp(point * math.log(hi / lo)):.3g}")
