"""Captions of a suite's figures: what to see first, then what is drawn; docs/reference/figures.md has the rest."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.report.data.held_out import videos_of_curve
from bench.report.data.records import SuiteRecords
from bench.report.data.selection import row_title
from bench.report.data.statistics import LEAST_SEEDS
from bench.report.data.training import Training
from bench.report.figures import mechanism
from bench.report.figures.facets import Line, merged_sentence
from bench.report.formatting import ALPHA

BAND = f"Bands: 95 % intervals over seeds, from {LEAST_SEEDS} seeds on; thin: single seeds."
NO_CURVES = "No held-out curves were recorded (`evaluation.every`)."


def forest_caption(suite: SuiteRecords, frame: pd.DataFrame) -> str:
    """Which row gains most and whether all gains are significant."""
    primary = frame[frame["score"] == suite.primary]
    label = suite.metrics[suite.primary].title
    rows = {runs.row.label: runs.row for runs in suite.rows}
    first = primary.iloc[0]
    rule = " Rows below the rule are in the open division." if frame["open"].any() else ""
    return (
        f"{row_title(rows[first['row']])} has the largest gain in {label}, {first['gain']:+.2f} over the base. Gains "
        f"of trained rows on held-out videos, 95 % intervals; solid: p < {ALPHA:g} after Holm's "
        f"correction.{rule}"
    )


def curves_caption(suite: SuiteRecords, frame: pd.DataFrame, lines: Sequence[Line]) -> str:
    """Which row is highest at the last update."""
    rows = {runs.row.label: runs.row for runs in suite.rows}
    own = frame[(frame["panel"] == suite.primary) & (frame["source"] == "here")]
    last = own[own["update"] == own["update"].max()]
    best = last.loc[(last["mean"] * suite.metrics[suite.primary].sign).idxmax(), "row"]
    videos = videos_of_curve(suite.config)
    return (
        f"At the last update {row_title(rows[best])} has the largest gain. Gain over the base on held-out prompts, "
        f"scored by the same sampler and noise for all rows.{videos} {BAND}{merged_sentence(lines)}"
    )


def rollouts_caption(window: int, adjusted: bool, lines: Sequence[Line], curves: bool) -> str:
    """That levels do not compare, and how the gain is made."""
    prompts = f"{'' if adjusted else 'not '}adjusted for prompts"
    missing = "" if curves else f" {NO_CURVES}"
    return (
        "Whether a row still learns, not which row is better: each method's rollouts carry its own noise, so levels "
        f"do not compare between methods. Gain since update 0, {prompts}, moving mean over {window} updates. "
        f"{BAND}{missing}{merged_sentence(lines)}"
    )


def dynamics_caption(window: int, zero: Sequence[str], lines: Sequence[Line]) -> str:
    """What falls and rises while the rows learn, and which quantities are 0 in every update."""
    left_out = f" 0 in every update and not drawn: {', '.join(zero)}." if zero else ""
    return (
        "A falling reward spread within groups means that a policy explores less. Moving means over "
        f"{window} updates, but the KL and the ratio error are raw; the KL's gaps are refreshes of its anchor. "
        f"{BAND}{left_out}{merged_sentence(lines)}"
    )


def noise_caption(suite: SuiteRecords, lines: Sequence[Line]) -> str:
    """Where in the rollout a method explores."""
    policy = suite.config.get("noise_policy") or {"kind": "not recorded"}
    values = ", ".join(f"{key} {value}" for key, value in policy.items())
    return (
        "Where in the rollout each method explores: noise that a step injects, over its noise level. The number "
        "behind a name is the root of the summed squares; an open mark at 0 is a step without noise. Noise policy: "
        f"{values}.{merged_sentence(lines)}"
    )


def gradients_caption(frame: pd.DataFrame, lines: Sequence[Line]) -> str:
    """How uneven the steps train, and whether the equalizer evens them."""
    own = {str(row): part for row, part in frame.groupby("row", sort=False)}
    evened = [line for line in lines if mechanism.has_equalizer(own[line.row.label])]
    first = "The steps of one rollout train unequally"
    if evened:
        spread = own[evened[0].row.label].iloc[0]
        first += (
            f": with the equalizer of {evened[0].name} the largest norm is {spread['measured_after_spread']:.3g} "
            f"times the smallest, without it {spread['measured_before_spread']:.3g} times"
        )
    zeros = frame["n_zero"].sum()
    left_out = f" Left out, because they have no logarithm: {zeros} norms." if zeros else ""
    return (
        f"{first}. Geometric means over updates and seeds, each row in its own unit, so compare shapes. Bars: 95 % "
        f"intervals over seeds.{left_out}{merged_sentence(lines)}"
    )


def stored_sentence(stored: Sequence[Training]) -> str:
    """Which stored runs are drawn thin beside the suite's own, with a blank before it."""
    counts = ", ".join(f"{each.row.label} {len(each.lines)} seeds" for each in stored)
    return f" Thin without a name: our stored reference runs ({counts})." if stored else ""


def seed_counts(suite: SuiteRecords) -> str:
    """Finished and planned seeds of each row; failed runs are counted but not drawn."""
    notes = []
    for runs in suite.rows:
        done = len(runs.finished)
        marks = [f"{len(runs.failed)} failed"] if runs.failed else []
        marks += ["not drawn"] if done == 0 else ["no band"] if done < LEAST_SEEDS else []
        suffix = f" ({', '.join(marks)})" if marks else ""
        notes.append(f"{runs.row.name} {done}/{len(suite.seeds)} seeds{suffix}")
    return f"Finished runs only: {'; '.join(notes)}."
