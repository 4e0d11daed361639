"""The tested differences of a main table: each row to the base and each pair of rows, one family of p-values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from bench import store
from bench.report import formatting
from bench.report.data.division import OPEN
from bench.report.data.power import detectable_difference
from bench.report.data.records import RowRuns, SuiteRecords
from bench.report.data.selection import BASE
from bench.report.data.statistics import (
    LEVEL,
    Array,
    Estimate,
    Interval,
    equivalence_margin,
    grouped,
    holm,
    paired_difference,
    t_over_seeds,
    two_way,
)

#: With more closed rows than this the pairs are left out: after the correction for so many tests none would be
#: significant.
MOST_ROWS_FOR_PAIRS = 6
#: A caption of the nano world; its first word after the article is the colour.
NANO_CAPTION = re.compile(r"a (\w+) \w+ moving \w+ \w+")


def interval_columns(name: str, value: Estimate | Interval | None) -> dict[str, float]:
    """The columns `name`, `name_lo`, `name_hi` of a number and its 95 % interval; NaN if there is none."""
    values = (np.nan,) * 3 if value is None else (value[0], value.lo, value.hi)
    return dict(zip((name, f"{name}_lo", f"{name}_hi"), values, strict=True))


def tested_columns(name: str, estimate: Estimate | None, adjusted: float) -> dict[str, float]:
    """The columns of `interval_columns`, then `_p`, `_p_holm` (`adjusted`) and `_margin`; NaN if there is no test.

    `_margin` is the smallest margin within which the two sides are shown to be alike (two one-sided tests).
    """
    p, margin = (estimate.p, equivalence_margin(estimate)) if estimate else (np.nan, np.nan)
    return interval_columns(name, estimate) | {f"{name}_p": p, f"{name}_p_holm": adjusted, f"{name}_margin": margin}


def common_seeds(runs: RowRuns, other: RowRuns) -> list[int]:
    """The seeds that both rows have finished, ascending."""
    return sorted(set(runs.seeds) & set(other.seeds))


def same_runs(runs: RowRuns, other: RowRuns) -> bool:
    """Whether the runs of the seeds that both rows have finished have equal scores: one result, not two."""
    seeds = common_seeds(runs, other)
    digests, others = (
        [run.record.scores_digest for run in one.finished if run.record.seed in seeds] for one in (runs, other)
    )
    return bool(seeds) and digests == others


def pair_matrix(runs: RowRuns, other: RowRuns, score: str, seeds: Sequence[int]) -> Array | None:
    """Differences of one score between two rows, [seed, prompt]; None without these seeds or this score."""
    x, y = runs.matrix(score, seeds), other.matrix(score, seeds)
    return None if x is None or y is None else x - y


def pair_difference(runs: RowRuns, other: RowRuns, score: str, seeds: Sequence[int]) -> Estimate | None:
    """Mean of `pair_matrix` with its interval."""
    x = pair_matrix(runs, other, score, seeds)
    return None if x is None else two_way(x)


def tested_scores(suite: SuiteRecords) -> list[str]:
    """The scores whose differences have a p-value: the primary one, and gold Overall, its check, if it was scored."""
    return list(dict.fromkeys([suite.primary, *(name for name in ("gold_overall",) if name in suite.columns)]))


def comparator_of(suite: SuiteRecords) -> RowRuns | None:
    """The row that the suite compares each other one with; None if it compares every pair."""
    return next((runs for runs in suite.rows if runs.row.comparator), None)


def compares_pairs(suite: SuiteRecords) -> bool:
    """Whether pairs of rows are tested: with a comparator, or with at most `MOST_ROWS_FOR_PAIRS` closed rows."""
    return comparator_of(suite) is not None or sum(not runs.row.open for runs in suite.rows) <= MOST_ROWS_FOR_PAIRS


def pairs_of_rows(suite: SuiteRecords) -> Iterator[tuple[RowRuns, RowRuns]]:
    """The pairs that are tested, those with an open row last; none unless `compares_pairs`.

    Each other row and the comparator of the suite, if it has one; else every pair.
    """
    one = comparator_of(suite)
    every = combinations(suite.rows if compares_pairs(suite) else [], 2)
    pairs = every if one is None else ((runs, one) for runs in suite.rows if runs is not one)
    return iter(sorted(pairs, key=lambda pair: pair[0].row.open or pair[1].row.open))


def tested_differences(suite: SuiteRecords) -> pd.DataFrame:
    """One line per score, row and other: each row less the base, then each pair of rows, for each of `tested_scores`.

    Columns: score, row, other ("base" or a row), same_runs, and `diff` with those of `tested_columns`, in score units.
    Pairs are compared over the seeds that both finished. All lines together are one family of tests. A pair of the
    same runs is no test: its numbers are NaN. The names of open rows are marked. See also `with_effects`.
    """
    sides: list[tuple[str, RowRuns, RowRuns | None]] = []
    for score in tested_scores(suite):
        sides += [(score, runs, None) for runs in suite.rows]
        sides += [(score, one, other) for one, other in pairs_of_rows(suite)]
    same = [other is not None and same_runs(one, other) for _, one, other in sides]
    estimates = [None if equal else _difference(suite, *side) for side, equal in zip(sides, same, strict=True)]
    p = [estimate.p if estimate else np.nan for estimate in estimates]
    lines: list[dict[str, Any]] = [
        {
            **{"score": score, "row": one.row.name, "other": other.row.name if other else BASE, "same_runs": equal},
            **tested_columns("diff", estimate, p_holm),
        }
        for (score, one, other), equal, estimate, p_holm in zip(sides, same, estimates, holm(p), strict=True)
    ]
    return pd.DataFrame(lines)


def _difference(suite: SuiteRecords, score: str, runs: RowRuns, other: RowRuns | None) -> Estimate | None:
    if other is not None:
        return pair_difference(runs, other, score, common_seeds(runs, other))
    x = runs.matrix(score)
    return None if x is None or suite.base is None else paired_difference(x, suite.base.cells[score].to_numpy())


def with_effects(suite: SuiteRecords, tests: pd.DataFrame) -> pd.DataFrame:
    """`tests`, the table of `tested_differences`, with the column diff_mde: the smallest detectable difference.

    Of pairs, at the level of Holm's first step; NaN for differences to the base. Slower than all other columns.
    """
    rows = {runs.row.name: runs for runs in suite.rows}
    level = LEVEL / max(1, number_of_tests(tests))
    sizes = []
    for _, line in tests.iterrows():
        one, other = rows[line["row"]], rows.get(line["other"])
        known = other is not None and not pd.isna(line["diff_p"])
        x = pair_matrix(one, other, line["score"], common_seeds(one, other)) if known and other else None
        sizes.append(np.nan if x is None else detectable_difference(x, level))
    return tests.assign(diff_mde=sizes)


def between_rows(tests: pd.DataFrame, score: str) -> pd.DataFrame:
    """The lines of `tested_differences` on the pairs of rows by one score; empty without pairs."""
    return tests[(tests["score"] == score) & (tests["other"] != BASE)] if len(tests) else tests


def best_rows(suite: SuiteRecords, table: pd.DataFrame, tests: pd.DataFrame, score: str) -> set[str]:
    """Labels of the rows to set in bold in a column: the best mean, and trained rows that are not shown to be worse.

    The best mean may be that of the base, but not of a row of the open division unless all are open. Rows that the
    tests compare with it, and whose difference to it is not significant, are not shown to be worse; in a column
    without tests there are none.
    `table` is that of `summarise`, `tests` that of `tested_differences`.
    """
    left_out = (table["division"] == OPEN) & (not all_open(suite))
    ranked = table[~left_out & table[score].notna()].set_index("row")[score]
    if ranked.empty:
        return set()
    sign = suite.metrics[score].sign
    best = str((sign * ranked).idxmax())
    pairs = tests[(tests["score"] == score) & tests["diff_lo"].notna()]
    pairs = pairs[(pairs["row"] == best) | (pairs["other"] == best)]
    alike = {
        str(row["other"] if row["row"] == best else row["row"])
        for _, row in pairs.iterrows()
        if not formatting.is_significant(row, "diff")
    }
    return {*ranked.index[ranked == ranked[best]], *(alike & {*ranked.index} - {BASE})}


def all_open(suite: SuiteRecords) -> bool:
    """Whether every finished row is of the open division."""
    finished = [runs.row.open for runs in suite.rows if runs.finished]
    return bool(finished) and all(finished)


def number_of_tests(tests: pd.DataFrame) -> int:
    """Size of the family of `tested_differences`."""
    return int(tests["diff_p"].notna().sum()) if len(tests) else 0


def sensitivity(suite: SuiteRecords) -> pd.DataFrame:
    """The difference of each pair of rows by the primary score, with one interval per view of the prompts.

    Columns: row, other; `random` (prompts a sample, as in every table), `fixed` (these very prompts: Student's t over
    seeds) and, where all prompts are captions of the nano world, `colour` (colours a sample, each with its captions as
    they are), each with `_lo`, `_hi`, score units. Pairs of the same runs are left out.
    """
    pairs = [
        (one, other, seeds)
        for one, other in pairs_of_rows(suite)
        if (seeds := common_seeds(one, other)) and not same_runs(one, other)
    ]
    colours = colours_of(prompt_texts(suite)) if pairs else None
    lines = []
    for one, other, seeds in pairs:
        x = pair_matrix(one, other, suite.primary, seeds)
        if x is None:
            continue
        line: dict[str, Any] = {"row": one.row.name, "other": other.row.name}
        line |= interval_columns("random", two_way(x)) | interval_columns("fixed", t_over_seeds(x))
        lines.append(line | (interval_columns("colour", grouped(x, colours)) if colours else {}))
    return pd.DataFrame(lines)


def prompt_texts(suite: SuiteRecords) -> list[str]:
    """The held-out prompts, in order; [] without runs."""
    if not suite.runs:
        return []
    scores = store.read_run(suite.runs[0].folder)[1]
    return [str(text) for text in scores.drop_duplicates("prompt_index").sort_values("prompt_index")["prompt"]]


def colours_of(prompts: Sequence[str]) -> list[str] | None:
    """The colour of each caption of the nano world; None if a prompt is none, or if there is one colour only."""
    matches = [NANO_CAPTION.fullmatch(prompt) for prompt in prompts]
    colours = [match[1] for match in matches if match]
    return colours if len(colours) == len(prompts) and len(set(colours)) > 1 else None
