"""The section on the trained score beyond the held-out judges, from the frame of `data.judge.beyond_judges`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.report import formatting
from bench.report.data.calibration import LEAST_VIDEOS
from bench.report.data.judge import LEAST_EXPLAINED, LESS, MOST_OUTSIDE, held_out_judges
from bench.report.data.metrics import LABELS, REWARD
from bench.report.data.records import SuiteRecords
from bench.report.tables.sections import Table

TITLE = "Beyond the held-out judges"
UNCALIBRATED, NO_CONTROL = "not calibrated", "-"


def beyond_section(beyond: pd.DataFrame) -> Table:
    """Excess of the Reward and of Overall with intervals, its share of the gain, and the share of videos outside.

    Where a control has a row of the suite, also the excess less that of the control's row. Open rows stand last, below
    those of the controls.
    """
    scores = {"beyond": LABELS[REWARD], "overall": LABELS["overall"]}
    names = [name for name in scores if name in beyond]
    less = [f"{name}{LESS}" for name in names if beyond[f"{name}{LESS}"].notna().any()]
    digits = {name: formatting.decimals(beyond, name) for name in [*names, *less]}
    lines = []
    for _, row in beyond.iterrows():
        label = f"{row['name']} ({row['control']}, left out)" if row["control"] else str(row["name"])
        cells = [_cell(row, name, digits[name]) for name in names]
        apart = [formatting.interval(row, name, digits[name]) if pd.notna(row[name]) else NO_CONTROL for name in less]
        lines.append([label, *cells, *apart, _percent(row["share"]), _percent(row["outside"], 1)])
    lines.sort(key=lambda line: formatting.OPEN_MARK in line[0])
    heads = [f"{scores[name]} beyond the judges" for name in names]
    heads += [f"{scores[name.removesuffix(LESS)]}, less the control" for name in less]
    return ["Row", *heads, "share of the gain", "videos outside"], lines


def _cell(row: pd.Series[Any], name: str, digits: int) -> str:
    return UNCALIBRATED if pd.isna(row["beyond"]) else formatting.interval(row, name, digits)


def _percent(share: float, digits: int = 0) -> str:
    return formatting.MISSING if pd.isna(share) else f"{100 * share:.{digits}f} %"


def beyond_definitions(suite: SuiteRecords, beyond: pd.DataFrame) -> list[str]:
    """The notes that say what the section shows; none without a section."""
    if beyond.empty:
        return []
    judges = ", ".join(suite.metrics[name].title for name in held_out_judges(suite))
    controls = list(dict.fromkeys(name for name in beyond["control"] if name))
    notes = [
        f"{TITLE}: score - its prediction from {judges} of the same video, less the same of the base; paired "
        "differences with 95 % intervals, no p-values. The prediction is calibrated on videos that nobody optimised "
        f"for the score, those of {', '.join(['the base', *controls])}, always of other prompts. Not calibrated: more "
        f"than {_percent(MOST_OUTSIDE)} of the videos lie outside of them, or there are fewer than {LEAST_VIDEOS} "
        "videos per coefficient. Share of the gain, n/a: the gain is not shown to be above 0.",
        "Rows of a control are left out of their own calibration. Nobody optimised them for the score, so their "
        "excess is no exploitation: it shows how far the prediction is off."
        if controls
        else "No run of a control is at hand: the calibration is on the base's videos alone, and nothing shows how "
        "far the prediction is off.",
    ]
    if beyond[f"beyond{LESS}"].notna().any():
        notes.append(
            "Less the control: the excess of the row less that of the same row trained on the held-out judges, paired "
            "over their common seeds and prompts. What the trained score likes in the row's videos without having "
            "asked for it drops out, so an interval above 0 says more than the excess itself."
        )
    explained = beyond["explained"].iloc[0]
    if pd.notna(explained):
        weak = f": too little to mark a row (below {_percent(LEAST_EXPLAINED)})" if explained < LEAST_EXPLAINED else ""
        notes.append(
            f"The held-out judges explain {_percent(explained)} of the variance of the trained score over the "
            f"calibration videos{weak}. What they do not see of an honest gain counts as excess."
        )
    return notes
