"""The notes on families of tests and on detectable effects say what there is, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bench.report.tables.notes import effect_note, family_note


@pytest.mark.parametrize(
    ("primary", "checks", "tests", "start"),
    [
        (
            "A",
            ["B"],
            6,
            "A is the primary score and B its check. Differences of x in A and B are one family of 6 tests:",
        ),
        ("A", [], 1, "A is the primary score. Differences of x in A are one family of 1 test:"),
        (None, ["B"], 2, "Differences of x in B are one family of 2 tests:"),
    ],
)
def test_the_family_is_that_of_the_scores_at_hand(
    primary: str | None, checks: list[str], tests: int, start: str
) -> None:
    (note,) = family_note(primary, checks, tests, "of x")
    assert note.startswith(start)
    assert "Near 0.05 the test is stricter than the interval." in note


def test_without_a_test_there_is_no_family() -> None:
    assert family_note("A", ["B"], 0, "of x") == family_note(None, [], 0, "of x") == []


def test_one_detectable_effect_is_named_once() -> None:
    (one,), (two,) = (effect_note(pd.Series(sizes), "difference", 6) for sizes in ([0.98, np.nan], [0.5, 1.0]))
    assert "here 0.98. Smaller ones" in one
    assert "here 0.50 to 1.00, depending on the difference. Smaller ones" in two
    assert effect_note(pd.Series([np.nan]), "difference", 6) == []
