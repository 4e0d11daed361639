"""What a main table, its badges and its headline are made of: the numbers of one suite."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from bench.report.data.controls import ControlResult
from bench.report.data.records import SuiteRecords


@dataclass(frozen=True)
class MainNumbers:
    """The numbers of one suite, computed once."""

    suite: SuiteRecords
    table: pd.DataFrame
    """The columns of main.csv, one line per row, the base first."""
    tests: pd.DataFrame
    """The numbers of `tested_differences` and `with_effects`."""
    beyond: pd.DataFrame
    """The frame of `beyond_judges`."""
    control_results: list[ControlResult]
    """One result per control."""
