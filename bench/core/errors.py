"""The exceptions of the project."""

from __future__ import annotations


class BenchError(Exception):
    """A mistake that the user can mend: one sentence saying what, where and how. The command line exits with 2."""


class DivergedError(BenchError):
    """A run met a non-finite number: recorded as failed and counted, never dropped."""


class BudgetFieldError(BenchError):
    """A method class declares a field that belongs to the suite's budget."""
