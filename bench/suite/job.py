"""Runs to be done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.suite.schema import Experiment, RowSpec


@dataclass(frozen=True)
class Job:
    """One run to do: `row` and `seed` are None for the untrained base."""

    exp: Experiment
    row: RowSpec | None
    seed: int | None
    folder: Path
    digest: str

    @property
    def label(self) -> str:
        run = "base" if self.row is None else f"{self.row.name} seed {self.seed}"
        return f"{self.exp.variant}: {run}" if self.exp.variant else run
