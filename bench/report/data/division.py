"""The division of a row, from its records: closed, open, or not recorded."""

from __future__ import annotations

from collections.abc import Sequence

from bench.store.record import RunRecord

CLOSED, OPEN, NOT_RECORDED = "closed", "open", ""
"""Values of the column `division`; records before version 2 of the rules have none."""


def division(records: Sequence[RunRecord]) -> str:
    """`OPEN` if one run of the row is open, `CLOSED` if all are closed, else `NOT_RECORDED`."""
    if open_reasons(records):
        return OPEN
    return CLOSED if records and all(record.open_reasons is not None for record in records) else NOT_RECORDED


def open_reasons(records: Sequence[RunRecord]) -> list[str]:
    """Why the row is open, each reason once; [] for a closed row and where nothing is recorded."""
    return list(dict.fromkeys(reason for record in records for reason in record.open_reasons or ()))
