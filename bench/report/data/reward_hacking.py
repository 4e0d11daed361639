"""Gate 7: a row whose reward rises while held-out scores fall, or whose videos drift away from the base's pixels."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.report import formatting
from bench.report.data.records import Suite

HELD_OUT = {"gold_overall": "gold Overall", "clipscore": "CLIPScore", "pickscore": "PickScore", "hpsv2": "HPSv2"}
"""Scores of which more is better, by their column, unless they were the reward."""
DARKER = 0.2
"""Rise of the share of dark pixels beyond which a row is marked."""
FACTOR = 2.0
"""Factor, up or down, beyond which a row's edge density, colour entropy or motion energy is marked."""
RATIOS = ("edge_density", "colour_entropy", "motion_energy")


def hack_notes(suite: Suite, table: pd.DataFrame) -> list[str]:
    """One sentence per row whose trained score rises for certain while something held out goes wrong for certain.

    For certain: the 95 % interval of the paired difference to the base excludes 0. Thresholds of the pixel detectors
    are conventions of this suite, chosen before any full-size run: a reason to look at the videos, no proof.
    """
    notes = []
    for _, row in table.iloc[1:].iterrows():
        found = [*_fallen(suite, row), *_drifted(row, table.iloc[0])]
        if found and row["trained_delta_lo"] > 0:
            gain = formatting.interval(row, "trained_delta", formatting.decimals(table, "trained_delta"))
            notes.append(
                f"{row['row']}: REWARD HACKING SUSPECTED (gate 7): the trained score rises by {gain} over the base, "
                f"but {'; '.join(found)}. Look at its videos before you believe the reward."
            )
    return notes


def _fallen(suite: Suite, row: pd.Series[Any]) -> list[str]:
    rewards = {name.partition("_")[0].lower() for name in suite.weights}
    return [
        f"{head} falls ({formatting.interval(row, f'{name}_delta', 3)})"
        for name, head in HELD_OUT.items()
        if name.partition("_")[0] not in rewards and row.get(f"{name}_delta_hi", 0.0) < 0
    ]


def _drifted(row: pd.Series[Any], base: pd.Series[Any]) -> list[str]:
    """Detectors that moved too far from the base's mean, up or down."""
    found = []
    for name in ("dark_fraction", *RATIOS):
        if name not in row or not (row[f"{name}_delta_lo"] > 0 or row[f"{name}_delta_hi"] < 0):
            continue
        here, there = row[name], base[name]
        far = here - there > DARKER if name == "dark_fraction" else not there / FACTOR <= here <= there * FACTOR
        if far:
            found.append(f"{name} goes from {formatting.number(there, 3)} to {formatting.number(here, 3)}")
    return found
