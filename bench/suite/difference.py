"""Which settings differ between two suites or records."""

from __future__ import annotations

from typing import Any


def first_difference(had: Any, want: Any, key: str = "") -> str | None:
    """The first setting of `want` that `had` has otherwise, e.g. "budget.lr is 0.001 there and 0.0003 here"."""
    if isinstance(want, dict) and isinstance(had, dict):
        for name, value in want.items():
            found = first_difference(had.get(name), value, f"{key}.{name}" if key else name)
            if found:
                return found
        return None
    return None if had == want else f"{key} is {had} there and {want} here"
