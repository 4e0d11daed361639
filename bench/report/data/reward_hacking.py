"""The reward hacking gate: rows whose reward rises while held-out scores fall or their videos degrade."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.report import formatting
from bench.report.data.records import SuiteRecords

HELD_OUT = {"gold_overall": "gold Overall", "clipscore": "CLIPScore", "pickscore": "PickScore", "hpsv2": "HPSv2"}
"""Column to name of the scores that should not fall, unless their evaluator gives the reward."""
DARKER = 0.2
"""Rise of the share of dark pixels above which a row is marked."""
FACTOR = 2.0
"""Factor, up or down, above which a change of edge density, colour entropy or motion energy is marked."""
RATIOS = ("edge_density", "colour_entropy", "motion_energy")


def hack_notes(suite: SuiteRecords, table: pd.DataFrame) -> list[str]:
    """One sentence per row whose trained score rises while a held-out score falls or a pixel detector moves too far.

    A change counts only if the 95 % interval of the paired difference to the base excludes 0. The thresholds of the
    pixel detectors are conventions, chosen before any full-size run: a reason to look at the videos, not a proof.
    """
    notes = []
    for _, row in table.iloc[1:].iterrows():
        signs = [*_falling_scores(suite, row), *_drifting_detectors(row, table.iloc[0])]
        if signs and row["trained_delta_lo"] > 0:
            gain = formatting.interval(row, "trained_delta", formatting.decimals(table, "trained_delta"))
            notes.append(
                f"{row['row']}: REWARD HACKING SUSPECTED: the trained score rises by {gain} over the base, "
                f"but {'; '.join(signs)}. Look at its videos before you trust the reward."
            )
    return notes


def _falling_scores(suite: SuiteRecords, row: pd.Series[Any]) -> list[str]:
    rewards = {name.partition("_")[0].lower() for name in suite.weights}
    return [
        f"{head} falls ({formatting.interval(row, f'{name}_delta', 3)})"
        for name, head in HELD_OUT.items()
        if name.partition("_")[0] not in rewards and row.get(f"{name}_delta_hi", 0.0) < 0
    ]


def _drifting_detectors(row: pd.Series[Any], base: pd.Series[Any]) -> list[str]:
    """Pixel detectors whose mean is too far from that of the base, up or down."""
    signs = []
    for name in ("dark_fraction", *RATIOS):
        if name not in row or not (row[f"{name}_delta_lo"] > 0 or row[f"{name}_delta_hi"] < 0):
            continue
        value, before = row[name], base[name]
        too_far = (
            value - before > DARKER if name == "dark_fraction" else not before / FACTOR <= value <= before * FACTOR
        )
        if too_far:
            signs.append(f"{name} goes from {formatting.number(before, 3)} to {formatting.number(value, 3)}")
    return signs
