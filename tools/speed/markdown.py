"""Paragraphs, tables and verdicts of the page of speed."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any


def prose(text: str, **values: Any) -> str:
    """One paragraph with its figures, in lines of at most 118 characters."""
    words = " ".join(text.format(**values).split())
    return textwrap.fill(words, 118, break_long_words=False, break_on_hyphens=False) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def verdict(passed: bool, goal: str) -> str:
    return f"Goal: {goal}. **{'Reached' if passed else 'Not reached'}.**\n"
