"""What the runs of a suite show, in sentences that follow from the tested numbers of its table only."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.report import formatting
from bench.report.data.ablation import tested_scores, to_first_columns
from bench.report.data.attempts import named_seeds
from bench.report.data.division import OPEN
from bench.report.data.metrics import MetricColumn
from bench.report.data.power import MOST_SEEDS, seeds_needed
from bench.report.data.records import RowRuns, SuiteRecords
from bench.report.data.summary import common_seeds, pair_scores, pairs_of_rows
from bench.suite.schema import PILOT_SEED

#: Seeds that a suite with fewer is advised to run.
ADVISED_SEEDS = 5
#: Largest number of seeds that is advised.
MOST_ADVISED = 20
#: Share of collapsing runs in the sentence on what few seeds cannot show.
COLLAPSE = 0.1


class Verdict(NamedTuple):
    """The sentences, and the seeds that would decide more."""

    sentences: list[str]
    seeds: list[int]
    """Seeds of a run that would decide more, those of the suite included; [] if more seeds are not advised."""


def verdict(suite: SuiteRecords, table: pd.DataFrame, pairs: pd.DataFrame) -> Verdict:
    """What the table of a suite shows, what it does not show, and the seeds that would show more.

    A row is better or worse only where the 95 % interval of the paired difference excludes 0 and p after Holm is
    below 0.05. `table` is that of `summarise`, `pairs` that of `pairs_of_rows`.
    """
    trained = [runs for runs in suite.rows if runs.finished]
    if not trained:
        return Verdict(["No run has finished, so there is nothing to compare."], [])
    sentences = [
        f"{named_seeds(suite.seeds).capitalize()}. Better and worse: "
        "the 95 % interval of the paired difference "
        "excludes 0, and p after Holm is below 0.05.",
        *_against_base(suite, table),
    ]
    for score in pair_scores(suite):
        sentences += _between(suite.metrics[score], score, pairs)
    if pairs.empty and len(trained) > 1:
        sentences += _against_best(suite, table)
    needed, settling = _settling(suite, pairs)
    sentences += settling
    sentences += _limits(suite, trained, pairs)
    return Verdict(sentences, _advised(suite, trained, needed))


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _difference(row: pd.Series[Any], name: str, sign: int, digits: int) -> str:
    """`0.34 [0.16, 0.53], p 0.008`: a difference or, for the sign -1, its negative; interval; p-value after Holm."""
    lo, hi = sorted(sign * row[f"{name}{end}"] for end in ("_lo", "_hi"))
    text = formatting.interval(pd.Series({"x": sign * row[name], "x_lo": lo, "x_hi": hi}), "x", digits)
    return f"{text}, p {formatting.p_value(row[f'{name}_p_holm'])}"


def _against_base(suite: SuiteRecords, table: pd.DataFrame) -> list[str]:
    metric, name = suite.metrics[suite.primary], f"{suite.primary}_delta"
    tested = table[table[f"{name}_lo"].notna()]
    if tested.empty:
        return []
    signs = {formatting.row_name(row): _sign(row, name) for _, row in tested.iterrows()}
    better, worse, rest = (
        [label for label, sign in signs.items() if sign == wanted] for wanted in (metric.sign, -metric.sign, 0)
    )
    parts = [
        f"{listed(labels)} {one if len(labels) == 1 else several} the base"
        for labels, one, several in (
            (better, "is better than", "are better than"),
            (worse, "is worse than", "are worse than"),
            (rest, "cannot be told apart from", "cannot be told apart from"),
        )
        if labels
    ]
    return [f"{metric.title}: {'; '.join(parts)}."]


def _sign(row: pd.Series[Any], name: str) -> int:
    """1 for a difference that is significantly above 0, -1 for one below 0, else 0."""
    return (1 if row[f"{name}_lo"] > 0 else -1) if formatting.is_bold(row, name) else 0


class _Outcome(NamedTuple):
    """A significant difference of two rows."""

    better: str
    worse: str
    sign: int
    """1 if the difference is better - worse, -1 if it is worse - better."""


def _outcome(row: pd.Series[Any], name: str, direction: int) -> _Outcome | None:
    """Which row of a pair is better, `direction` 1 if more is; None if they are not told apart."""
    sign = _sign(row, name) * direction
    if sign == 0:
        return None
    better, worse = (row["row"], row["other"]) if sign > 0 else (row["other"], row["row"])
    return _Outcome(str(better), str(worse), sign)


def _between(metric: MetricColumn, score: str, pairs: pd.DataFrame) -> list[str]:
    """Which rows are better than which by one score, and which cannot be told apart."""
    name = f"{score}_diff"
    if pairs.empty or pairs[f"{name}_lo"].isna().all():
        return []
    wins: dict[str, list[str]] = {}
    undecided, equal, digits = [], [], formatting.decimals(pairs, name)
    for _, row in pairs[pairs[f"{name}_lo"].notna()].iterrows():
        outcome = _outcome(row, name, metric.sign)
        if row[name] == row[f"{name}_lo"] == row[f"{name}_hi"] == 0:
            equal.append(f"{row['row']} and {row['other']}")
        elif outcome is None:
            undecided.append(f"{row['row']} and {row['other']} ({_difference(row, name, 1, digits)})")
        else:
            wins.setdefault(outcome.better, []).append(
                f"{outcome.worse} ({_difference(row, name, outcome.sign, digits)})"
            )
    sentences = [
        f"{metric.title}: {winner} is better than {listed(losers)}."
        for winner, losers in sorted(wins.items(), key=lambda item: -len(item[1]))
    ]
    if not wins:
        sentences.append(f"{metric.title}: no row is shown to be better than another one.")
    if undecided:
        sentences.append(f"{metric.title}: cannot be told apart: {'; '.join(undecided)}.")
    if equal:
        sentences.append(f"{metric.title}: equal for every seed and prompt: {'; '.join(equal)}.")
    return sentences


def _against_best(suite: SuiteRecords, table: pd.DataFrame) -> list[str]:
    """For more rows than are compared in pairs: which closed rows are worse than the one with the best mean."""
    metric, rows = suite.metrics[suite.primary], table.iloc[1:]
    known = rows[rows[suite.primary].notna()]
    closed = known[known["division"] != OPEN]
    known = known if closed.empty else closed
    best = str(known["row"].iloc[int((metric.sign * known[suite.primary]).to_numpy().argmax())])
    others = known[(known["vs_best_row"] == best) & known["vs_best_delta_lo"].notna()]
    worse = [formatting.row_name(row) for _, row in others.iterrows() if _sign(row, "vs_best_delta") == -metric.sign]
    shown = f"of the other rows {listed(worse)} {'is' if len(worse) == 1 else 'are'} worse" if worse else ""
    none = "no other row is shown to be worse"
    return [f"{metric.title}: {best} has the best mean; {shown or none}. Pairs are not tested, there are too many."]


def _settling(suite: SuiteRecords, pairs: pd.DataFrame) -> tuple[int | None, list[str]]:
    """Seeds that the largest undecided difference of the primary score needs, and the sentence on it."""
    name = f"{suite.primary}_diff"
    if pairs.empty:
        return None, []
    undecided = [
        row
        for _, row in pairs[pairs[f"{name}_lo"].notna()].iterrows()
        if not formatting.is_bold(row, name) and row[name] != 0
    ]
    if not undecided:
        return None, []
    row = max(undecided, key=lambda one: abs(one[name]))
    rows = {runs.row.name: runs for runs in suite.rows}
    one, other = rows[row["row"]], rows[row["other"]]
    seeds = common_seeds(one, other)
    x, y = one.matrix(suite.primary, seeds), other.matrix(suite.primary, seeds)
    tests = int(pairs[f"{name}_p"].notna().sum())
    needed = seeds_needed(x - y, tests) if x is not None and y is not None else None
    seeds_text = f"about {needed}" if needed else f"more than {MOST_SEEDS}"
    return needed, [
        f"Largest undecided pair: {row['row']} and {row['other']}: if the measured difference is the true one and the "
        f"spread of seeds and prompts stays as it is, {seeds_text} seeds show it with a power of 80 % (two-sided t "
        f"test at 5 % over {tests} pair{'s' if tests > 1 else ''})."
    ]


def _limits(suite: SuiteRecords, trained: Sequence[RowRuns], pairs: pd.DataFrame) -> list[str]:
    """What so few seeds cannot show."""
    fewest = min(len(runs.seeds) for runs in trained)
    seeds = f"{fewest} seed{'s' if fewest > 1 else ''}"
    if fewest < 2:
        return [f"{seeds} per row cannot show any difference: another seed of the same row gives another number."]
    sentences = []
    known = pairs[pairs[f"{suite.primary}_diff_mde"] > 0] if not pairs.empty else pairs
    if not known.empty:
        sizes = known[f"{suite.primary}_diff_mde"]
        least, most = _size(sizes.min()), _size(sizes.max())
        span = least if least == most else f"{least} to {most}, depending on the pair"
        sentences.append(
            f"{seeds} can show a true difference of two rows in {suite.metrics[suite.primary].title} with a power of "
            f"80 % if it is at least {span}. Smaller ones are not ruled out."
        )
    if fewest < ADVISED_SEEDS:
        unseen = (1 - COLLAPSE) ** fewest
        sentences.append(
            f"A method of which one run in {1 / COLLAPSE:.0f} collapses shows no collapse in {seeds} with a "
            f"probability of {100 * unseen:.0f} %."
        )
    return sentences


def _size(value: float) -> str:
    """A detectable effect with two decimals, or with two digits if it is smaller than 0.1."""
    return formatting.number(value) if value >= 0.1 else f"{value:.2g}"


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
    suite: SuiteRecords, stored: SuiteRecords, pairs: pd.DataFrame, same_seed: int, equal: int
) -> list[str]:
    """How many runs equal the stored ones bit for bit, and what more seeds of the stored reference show."""
    sentences = []
    if same_seed:
        done = "these runs are reproduced" if equal == same_seed else "the others differ"
        sentences.append(f"{equal} of {same_seed} runs have equal bits with the stored reference: {done}.")
    longer = len(stored.seeds) > len(suite.seeds)
    if not longer or pairs.empty:
        return sentences
    rows = {runs.row.name for runs in suite.rows}
    shown = {name: _wins(suite, frame) for name, frame in (("here", pairs), ("stored", pairs_of_rows(stored)))}
    extra = [text for key, text in shown["stored"].items() if key not in shown["here"] and set(key) <= rows]
    if extra:
        title = suite.metrics[suite.primary].title
        sentences.append(
            f"With its {len(stored.seeds)} seeds the stored reference shows more in {title}: {'; '.join(extra)}."
        )
    return sentences


def _wins(suite: SuiteRecords, pairs: pd.DataFrame) -> dict[tuple[str, str], str]:
    """(better, worse) to a text, for each significant pair."""
    name = f"{suite.primary}_diff"
    digits, wins = formatting.decimals(pairs, name), {}
    for _, row in pairs.iterrows():
        outcome = _outcome(row, name, suite.metrics[suite.primary].sign)
        if outcome:
            better, worse, sign = outcome
            wins[better, worse] = f"{better} is better than {worse} ({_difference(row, name, sign, digits)})"
    return wins


def ablation_verdict(table: pd.DataFrame, metrics: Mapping[str, MetricColumn]) -> list[str]:
    """Which levels of an ablation are better or worse than their baseline; `table` is that of `compare_levels`."""
    sentences = []
    for score in tested_scores(metrics):
        metric, name = metrics[score], to_first_columns(metrics)[score]
        tested = table[table[f"{name}_lo"].notna()]
        if tested.empty:
            continue
        outcomes: dict[int, list[str]] = {1: [], -1: [], 0: []}
        digits = formatting.decimals(table, name)
        for _, row in tested.iterrows():
            text = f"{row['group']}, {row['level']} ({_difference(row, name, 1, digits)})"
            outcomes[_sign(row, name) * metric.sign].append(text)
        sentences += [
            f"{metric.title}: {what} than the baseline of its group: {'; '.join(outcomes[sign])}."
            for sign, what in ((1, "better"), (-1, "worse"))
            if outcomes[sign]
        ]
        rest = len(outcomes[0])
        if rest:
            sentences.append(
                f"{metric.title}: {rest} of {len(tested)} levels cannot be told apart from their baseline."
            )
    sizes = table["to_first_mde"].dropna()
    sizes = sizes[sizes > 0]
    if not sentences:
        return ["No level has runs of two seeds to compare with its baseline, so nothing is shown."]
    if not sizes.empty:
        metric, fewest = next(iter(metrics.values())), int(table["to_first_seeds"][table["to_first_mde"] > 0].min())
        sentences.append(
            f"{fewest} seeds can show a true difference to the baseline in {metric.title} with a power of 80 % "
            f"if it is at least {_size(sizes.min())} to {_size(sizes.max())}, depending on "
            "the level. Smaller ones are not ruled out."
        )
    return sentences
