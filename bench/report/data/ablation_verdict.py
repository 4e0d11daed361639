"""What the levels of an ablation show, in sentences that follow from the tested numbers of its table only."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from bench.report import formatting
from bench.report.data.ablation import level_scores, to_first_columns
from bench.report.data.metrics import MetricColumn
from bench.report.data.statistics import LEAST_SEEDS
from bench.report.data.wording import difference_text, exploratory_sentence, first_items, is_exploratory, sign_of, span


def ablation_verdict(table: pd.DataFrame, metrics: Mapping[str, MetricColumn]) -> list[str]:
    """Which levels of an ablation are better or worse than their baseline; `table` is that of `compare_levels`.

    A result whose p is below 0.05 as it is, but not after Holm over the whole table, is called exploratory.
    """
    sentences = []
    for score in level_scores(metrics):
        sentences += _of_score(table, metrics[score], to_first_columns(metrics)[score])
    if not sentences:
        return [f"No level has {LEAST_SEEDS} seeds to compare with its baseline, so nothing is shown."]
    known = table[table["to_first_mde"] > 0]
    if not known.empty:
        metric, sizes = next(iter(metrics.values())), known["to_first_mde"]
        sentences.append(
            f"{int(known['to_first_seeds'].min())} seeds can show a true difference to the baseline in "
            f"{metric.title} with a power of 80 % if it is at least {span(sizes, 'level')} (at Holm's first step). "
            "Smaller ones are not ruled out."
        )
    return sentences


def _of_score(table: pd.DataFrame, metric: MetricColumn, name: str) -> list[str]:
    tested = table[table[f"{name}_lo"].notna()]
    if tested.empty:
        return []
    outcomes: dict[int, list[str]] = {1: [], -1: []}
    exploratory, undecided, digits = [], [], formatting.decimals(table, name)
    for _, row in tested.iterrows():
        text = f"{row['group']}, {row['level']} ({difference_text(row, name, 1, digits)})"
        if sign := sign_of(row, name):
            outcomes[sign * metric.sign].append(text)
        elif is_exploratory(row, name):
            exploratory.append(text)
        else:
            undecided.append(row[f"{name}_margin"])
    sentences = [
        f"{metric.title}: {what} than the baseline of its group: {'; '.join(shown)}."
        for sign, what in ((1, "better"), (-1, "worse"))
        if (shown := first_items(outcomes[sign], "levels", "Differences"))
    ]
    sentences += exploratory_sentence(metric.title, first_items(exploratory, "levels", "Differences"))
    if undecided:
        sentences.append(
            f"{metric.title}: {len(undecided)} of {len(tested)} levels cannot be told apart from their baseline; "
            f"at most {span(undecided, 'level', '±', ' apart')}."
        )
    return sentences
