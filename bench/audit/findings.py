"""What the checks of `bench verify` work on and what they yield: a stored run, findings, checks passed over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.audit.differences import NOT_COMPARED, line_fields
from bench.core.hashing import digest
from bench.store.record import RunRecord
from bench.suite.schema import RowSpec, Suite

if TYPE_CHECKING:
    import pandas as pd

RERUN = "delete the folder and run `bench run` again, or restore all its files together"


class Finding(NamedTuple):
    """One line of the report."""

    path: Path
    text: str
    """The problem and how to fix it."""
    wrong: bool = True
    """Whether the finding invalidates the results; a note does not."""
    blocks: bool = False
    """Whether the run cannot be read, so that its suite and its tables cannot be checked."""

    @property
    def line(self) -> str:
        """The finding as text, with its path relative to the current folder if it is below it."""
        cwd = Path.cwd()
        path = self.path.relative_to(cwd) if self.path.is_relative_to(cwd) else self.path
        return f"{'WRONG' if self.wrong else 'note '} {path}: {self.text}."


class Note(NamedTuple):
    """What a reader should know about a run that is not wrong."""

    text: str


class Gap(NamedTuple):
    """A check that is passed over, because an older record does not have what it needs."""

    fields: str
    """What is missing."""


Result = str | Note | Gap
"""What a check of a run yields: a problem without its fix, a note, or what it could not check."""


def missing(record: RunRecord, fields: str) -> str | Gap:
    """The result of a check whose fields are missing: a gap of an older record, a problem of every other one."""
    return Gap(fields) if record.rules == 1 else f"{fields} missing, although rules {record.rules} ask for it"


@dataclass(frozen=True)
class StoredRun:
    """A run whose files can be read."""

    folder: Path
    record: RunRecord
    suite: Suite
    scores: pd.DataFrame
    lines: Sequence[dict[str, Any]]
    """Lines of `train.jsonl`; empty for the base."""

    @property
    def name(self) -> str:
        """Row and seed, for messages."""
        record = self.record
        return record.row if record.seed is None else f"{record.row}/seed-{record.seed}"

    @cached_property
    def row(self) -> RowSpec | None:
        """The row in the run's own configuration; None for the base, and where there is none of this name."""
        return next((row for row in self.suite.rows if row.name == self.record.row), None)

    @cached_property
    def log_digest(self) -> str:
        """Digest of what training logged, without clock, restarts and the number of the update."""
        return digest(
            [
                [field for field in line_fields(line) if not field[0].startswith(("ledger", *NOT_COMPARED))]
                for line in self.lines
            ]
        )
