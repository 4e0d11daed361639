"""A user study: the votes on one report, the records that they are about, and the numbers of both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from bench.report.data.loading import load_records
from bench.report.data.preferences import checks, preferences, raters
from bench.report.data.records import SuiteRecords
from bench.report.data.selection import BASE, Row, row_title
from bench.report.data.vote_files import PAIR
from bench.report.data.votes import Votes, check_records

EVERYONE, WITHOUT = "all raters", "without raters who failed"


@dataclass(frozen=True)
class UserStudy:
    """Votes, and the records that they are about."""

    votes: Votes
    suite: SuiteRecords | None
    """None: no records, so that rows have no titles."""

    @property
    def _rows(self) -> list[Row]:
        """The rows of the records, the base first; without records, those that were voted on, by label."""
        if self.suite is None:
            return [Row(label, label, "") for label in sorted(self.votes.labels)]
        return [Row(BASE, BASE, "none"), *(runs.row for runs in self.suite.rows)]

    @cached_property
    def titles(self) -> dict[str, str]:
        """Label to title of the rows that were voted on; without records the title is the label."""
        title = row_title if self.suite is not None else (lambda row: row.label)
        return {row.label: title(row) for row in self._rows if row.label in self.votes.labels}

    @property
    def without_votes(self) -> list[str]:
        """Titles of the rows that nobody voted on."""
        return [row_title(row) for row in self._rows if row.label not in self.votes.labels]

    @cached_property
    def raters(self) -> pd.DataFrame:
        """The frame of `raters`."""
        return raters(self.votes.answers)

    @cached_property
    def checks(self) -> pd.DataFrame:
        """The frame of `checks`."""
        return checks(self.votes.answers)

    @cached_property
    def failed(self) -> list[str]:
        """Aliases of the raters who failed on identical pairs."""
        return self.raters.loc[self.raters["passed"].eq(False).fillna(False), "alias"].tolist()

    @cached_property
    def numbers(self) -> dict[str, pd.DataFrame]:
        """The frames of `preferences`: of `EVERYONE`, and where some raters failed, but not all, `WITHOUT` them."""
        answers, rows = self.votes.answers, list(self.titles)
        frames = {EVERYONE: preferences(answers, rows)}
        passed = answers[~answers["alias"].isin(self.failed)]
        if self.failed and (passed["kind"] == PAIR).any():
            frames[WITHOUT] = preferences(passed, rows)
        return frames

    @cached_property
    def table(self) -> pd.DataFrame:
        """All numbers: the column `raters_used`, a name in `numbers`, then the columns of `preferences`."""
        parts = [frame.assign(raters_used=name) for name, frame in self.numbers.items()]
        table = pd.concat(parts, ignore_index=True)
        return table[["raters_used", *table.columns[:-1]]]


def load_user_study(votes: Votes, folder: Path | None) -> UserStudy:
    """The votes, checked against the records in `folder` (None: not checked)."""
    suite = None if folder is None else load_records(folder)
    if suite is not None:
        check_records(votes, suite)
    return UserStudy(votes, suite)
