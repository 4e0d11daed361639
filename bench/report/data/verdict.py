"""What the runs of a suite show, in sentences that follow from the tested numbers of its table only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.report import formatting
from bench.report.data.attempts import named_seeds
from bench.report.data.differences import (
    between_rows,
    common_seeds,
    comparator_of,
    number_of_tests,
    pair_matrix,
    tested_differences,
    tested_scores,
)
from bench.report.data.metrics import MetricColumn
from bench.report.data.power import MOST_SEEDS, seeds_needed
from bench.report.data.records import RowRuns, SuiteRecords
from bench.report.data.selection import BASE
from bench.report.data.statistics import LEAST_SEEDS
from bench.report.data.wording import (
    counted,
    difference_text,
    exploratory_sentence,
    first_items,
    interval_text,
    is_exploratory,
    listed,
    sign_of,
    span,
    undecided_text,
)
from bench.suite.schema import PILOT_SEED

#: Seeds that a suite with fewer is advised to run.
ADVISED_SEEDS = 5
#: Largest number of seeds that is advised.
MOST_ADVISED = 20
#: Title of the section on pairs.
PAIRS = "Pairs of rows"
#: Share of collapsing runs in the sentence on what few seeds cannot show.
COLLAPSE = 0.1


class Verdict(NamedTuple):
    """The sentences, and the seeds that would decide more."""

    sentences: list[str]
    seeds: list[int]
    """Seeds of a run that would decide more, those of the suite included; [] if more seeds are not advised."""


def verdict(suite: SuiteRecords, tests: pd.DataFrame) -> Verdict:
    """What the tests of a suite show, what they do not show, and the seeds that would show more.

    A row is better or worse only where the 95 % interval of the paired difference excludes 0 and p after Holm is
    below 0.05. `tests` is that of `tested_differences`, with the column of `with_effects`.
    """
    trained = [runs for runs in suite.rows if runs.finished]
    if not trained:
        return Verdict(["No run has finished, so there is nothing to compare."], [])
    sentences, number = [f"{named_seeds(suite.seeds).capitalize()}."], number_of_tests(tests)
    if number:
        sentences[0] += (
            " Better and worse: the 95 % interval of the paired difference excludes 0, and p after Holm over the "
            f"{counted(number)} of this table is below 0.05."
        )
    if number and (one := comparator_of(suite)):
        sentences.append(f"Each row is compared with the base and with {one.row.name}, and no other pair is tested.")
    for score in tested_scores(suite):
        sentences += _against_base(suite.metrics[score], tests[(tests["score"] == score) & (tests["other"] == BASE)])
    for score in tested_scores(suite):
        sentences += _between(suite.metrics[score], between_rows(tests, score))
    if between_rows(tests, suite.primary).empty and len(trained) > 1:
        sentences += _best_mean(suite)
    needed, settling = _settling(suite, tests)
    sentences += settling
    sentences += _limits(suite, trained, tests)
    return Verdict(sentences, _advised(suite, trained, needed))


def _against_base(metric: MetricColumn, tests: pd.DataFrame) -> list[str]:
    tested = tests[tests["diff_lo"].notna()]
    if tested.empty:
        return []
    digits = formatting.decimals(tested, "diff")
    signs = {str(row["row"]): sign_of(row, "diff") * metric.sign for _, row in tested.iterrows()}
    better, worse = ([label for label, found in signs.items() if found == sign] for sign in (1, -1))
    unsure = [row for _, row in tested.iterrows() if is_exploratory(row, "diff")]
    rest = [
        f"{row['row']} ({undecided_text(row, 'diff', digits)})"
        for _, row in tested.iterrows()
        if signs[str(row["row"])] == 0 and not is_exploratory(row, "diff")
    ]
    parts = [
        f"{listed(labels)} {one if len(labels) == 1 else several} the base"
        for labels, one, several in (
            (better, "is better than", "are better than"),
            (worse, "is worse than", "are worse than"),
            (first_items(rest, "rows", "Differences"), "cannot be told apart from", "cannot be told apart from"),
        )
        if labels
    ]
    exploratory = [f"{row['row']} - base ({difference_text(row, 'diff', 1, digits)})" for row in unsure]
    return [
        *([f"{metric.title}: {'; '.join(parts)}."] if parts else []),
        *exploratory_sentence(metric.title, first_items(exploratory, "rows", "Differences")),
    ]


class _Outcome(NamedTuple):
    """A significant difference of two rows."""

    better: str
    worse: str
    sign: int
    """1 if the difference is better - worse, -1 if it is worse - better."""


def _outcome(row: pd.Series[Any], direction: int) -> _Outcome | None:
    """Which row of a pair is better, `direction` 1 if more is; None if they are not told apart."""
    sign = sign_of(row, "diff") * direction
    if sign == 0:
        return None
    better, worse = (row["row"], row["other"]) if sign > 0 else (row["other"], row["row"])
    return _Outcome(str(better), str(worse), sign)


def _between(metric: MetricColumn, pairs: pd.DataFrame) -> list[str]:
    """Which rows are better than which by one score, which cannot be told apart, and which are the same runs."""
    if pairs.empty:
        return []
    same = [f"{row['row']} and {row['other']}" for _, row in pairs[pairs["same_runs"].astype(bool)].iterrows()]
    tested = pairs[pairs["diff_lo"].notna()]
    wins: dict[str, list[str]] = {}
    undecided, exploratory, digits = [], [], formatting.decimals(pairs, "diff")
    for _, row in tested.iterrows():
        outcome = _outcome(row, metric.sign)
        if is_exploratory(row, "diff"):
            exploratory.append(f"{row['row']} - {row['other']} ({difference_text(row, 'diff', 1, digits)})")
        elif outcome is None:
            undecided.append(f"{row['row']} and {row['other']} ({undecided_text(row, 'diff', digits)})")
        else:
            text = f"{outcome.worse} ({difference_text(row, 'diff', outcome.sign, digits)})"
            wins.setdefault(outcome.better, []).append(text)
    sentences = [
        f"{metric.title}: {winner} is better than {listed(first_items(losers, 'rows', PAIRS))}."
        for winner, losers in sorted(wins.items(), key=lambda item: -len(item[1]))
    ]
    if not wins and not tested.empty:
        sentences.append(f"{metric.title}: no row is shown to be better than another one.")
    exploratory, undecided, same = (first_items(one, "pairs", PAIRS) for one in (exploratory, undecided, same))
    sentences += exploratory_sentence(metric.title, exploratory)
    if undecided:
        sentences.append(f"{metric.title}: cannot be told apart: {'; '.join(undecided)}.")
    if same:
        sentences.append(f"{metric.title}: the same runs, so no test: {'; '.join(same)}.")
    return sentences


def _best_mean(suite: SuiteRecords) -> list[str]:
    """For more rows than are compared in pairs: the one with the best mean, a closed one if there are any."""
    metric = suite.metrics[suite.primary]
    means = {runs.row: metric.sign * x.mean() for runs in suite.rows if (x := runs.matrix(metric.name)) is not None}
    best = min(means, key=lambda row: (row.open, -means[row]))
    return [f"{metric.title}: {best.name} has the best mean. Pairs are not tested, there are too many."]


def _settling(suite: SuiteRecords, tests: pd.DataFrame) -> tuple[int | None, list[str]]:
    """Seeds that the largest undecided difference of the primary score needs, and the sentence on it."""
    pairs = between_rows(tests, suite.primary)
    undecided = [
        row
        for _, row in pairs.iterrows()
        if not pd.isna(row["diff_lo"]) and not formatting.is_significant(row, "diff") and row["diff"] != 0
    ]
    if not undecided:
        return None, []
    row = max(undecided, key=lambda one: abs(one["diff"]))
    rows = {runs.row.name: runs for runs in suite.rows}
    one, other = rows[row["row"]], rows[row["other"]]
    seeds = common_seeds(one, other)
    x, number = pair_matrix(one, other, suite.primary, seeds), number_of_tests(tests)
    needed = None if x is None else seeds_needed(x, number)
    seeds_text = f"about {needed}" if needed else f"more than {MOST_SEEDS}"
    return needed, [
        f"Largest undecided pair: {row['row']} and {row['other']}: if the measured difference is the true one and the "
        f"spread of seeds and prompts stays as it is, {seeds_text} seeds show it with a power of 80 % (two-sided "
        f"test at 5 % over {counted(number)})."
    ]


def _limits(suite: SuiteRecords, trained: Sequence[RowRuns], tests: pd.DataFrame) -> list[str]:
    """What so few seeds cannot show."""
    fewest = min(len(runs.seeds) for runs in trained)
    seeds = f"{fewest} seed{'s' if fewest > 1 else ''}"
    if fewest < LEAST_SEEDS:
        return [
            f"{seeds} per row cannot show any difference: another seed of the same row gives another number, and an "
            f"interval needs {LEAST_SEEDS}."
        ]
    sentences = []
    pairs = between_rows(tests, suite.primary)
    sizes = pairs["diff_mde"][pairs["diff_mde"] > 0] if len(pairs) else pd.Series(dtype=float)
    if not sizes.empty:
        sentences.append(
            f"{seeds} can show a true difference of two rows in {suite.metrics[suite.primary].title} with a power of "
            f"80 % if it is at least {span(sizes, 'pair')} (at Holm's first step). Smaller ones are not ruled out."
        )
    if fewest < ADVISED_SEEDS:
        unseen = (1 - COLLAPSE) ** fewest
        sentences.append(
            f"A method of which one run in {1 / COLLAPSE:.0f} collapses shows no collapse in {seeds} with a "
            f"probability of {100 * unseen:.0f} %."
        )
    return sentences


def _advised(suite: SuiteRecords, trained: Sequence[RowRuns], needed: int | None) -> list[int]:
    fewest = min(len(runs.seeds) for runs in trained)
    wanted = max(ADVISED_SEEDS, needed if needed is not None and needed <= MOST_ADVISED else 0)
    if wanted <= fewest:
        return []
    start = PILOT_SEED if min(suite.seeds) >= PILOT_SEED else 0
    fresh = (seed for seed in itertools.count(start) if seed not in suite.seeds)
    more = max(0, wanted - len(suite.seeds))
    return sorted([*suite.seeds, *itertools.islice(fresh, more)])


def reference_verdict(
    suite: SuiteRecords, stored: SuiteRecords, tests: pd.DataFrame, same_seed: int, equal: int
) -> list[str]:
    """How many runs equal the stored ones bit for bit, and what more seeds of the stored reference show."""
    sentences = []
    if same_seed:
        done = "these runs are reproduced" if equal == same_seed else "the others differ"
        sentences.append(f"{equal} of {same_seed} runs have equal bits with the stored reference: {done}.")
    if len(stored.seeds) <= len(suite.seeds):
        return sentences
    rows = {runs.row.name for runs in suite.rows}
    here, beside = (_wins(suite, found) for found in (tests, tested_differences(stored)))
    extra = [text for key, text in beside.items() if key not in here and set(key) <= rows]
    if extra:
        title = suite.metrics[suite.primary].title
        sentences.append(
            f"With its {len(stored.seeds)} seeds the stored reference shows more in {title}: {'; '.join(extra)}."
        )
    return sentences


def _wins(suite: SuiteRecords, tests: pd.DataFrame) -> dict[tuple[str, str], str]:
    """(better, worse) to a text, for each significant pair by the primary score; p is left to the table it is of."""
    pairs, wins = between_rows(tests, suite.primary), {}
    digits = formatting.decimals(pairs, "diff") if len(pairs) else 2
    for _, row in pairs.iterrows():
        outcome = _outcome(row, suite.metrics[suite.primary].sign)
        if outcome:
            better, worse, sign = outcome
            wins[better, worse] = f"{better} is better than {worse} ({interval_text(row, 'diff', sign, digits)})"
    return wins
