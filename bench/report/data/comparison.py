"""The numbers of `bench compare A B`: matched rows of two folders of records, and the differences of their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.core.errors import BenchError
from bench.core.hashing import canonical_json
from bench.report.data.comparable import EQUAL_SPENDING, differing_settings
from bench.report.data.differences import interval_columns, same_runs, tested_scores
from bench.report.data.loading import load_records
from bench.report.data.metrics import FURTHER, REWARD, MetricColumn
from bench.report.data.power import detectable_difference
from bench.report.data.records import RowRuns, SuiteRecords
from bench.report.data.reference import inside_band, prediction_band
from bench.report.data.selection import BASE, row_settings, settings_key
from bench.report.data.statistics import (
    LEAST_SEEDS,
    LEVEL,
    Array,
    Estimate,
    detectable_effect,
    holm,
    independent_difference,
    paired_difference,
    two_way,
    unpaired_difference,
)
from bench.suite.difference import differences, differing_parts

#: How the two sides of a difference are paired: values of the column `paired`.
BOTH, PROMPTS, NOTHING = "seed, prompt", "prompt", "nothing"


class RowPair(NamedTuple):
    """One row in both folders."""

    a: RowRuns
    b: RowRuns

    @property
    def name(self) -> str:
        """Label of the row in A, and its label in B if that differs."""
        a, b = self.a.row.name, self.b.row.name
        return a if a == b else f"{a} (B: {b})"


class Comparison(NamedTuple):
    """Two folders of records, their matched rows and the differences of their scores."""

    a: SuiteRecords
    b: SuiteRecords
    pairs: list[RowPair]
    unmatched: list[str]
    """One sentence for each row that has no counterpart."""
    by_settings: bool
    """Whether rows are matched by their settings, and not named."""
    unequal: dict[str, tuple[Any, Any]]
    """Settings that must be equal in the closed division and differ here: name to the values in A and in B."""
    table: pd.DataFrame
    """See `score_differences`."""


class Sides(NamedTuple):
    """The seeds of both sides that one difference uses."""

    a: list[int]
    b: list[int]
    paired: bool


def compare(
    a: Path, b: Path, open_division: bool = False, rows: Sequence[tuple[str, str]] | None = None
) -> Comparison:
    """Load both folders, match their rows and compute the differences of their scores.

    `rows` names the pairs instead, label in A and label in B, whatever their settings are. Folders or named rows with
    other settings are a `BenchError`; in the open division only a suite of the miniature model and one of the
    full-size model are.
    """
    if a.resolve() == b.resolve():
        raise BenchError(f"{a} is given twice: name two folders of records, such as results/nano and a stored copy.")
    suite_a, suite_b = load_records(a), load_records(b)
    for folder, suite in ((a, suite_a), (b, suite_b)):
        if not any(runs.finished for runs in suite.rows):
            raise BenchError(f"{folder} holds no finished run of a row: run `bench run` on its suite first.")
    if suite_a.nano != suite_b.nano:
        raise BenchError(
            f"{a} and {b} do not compare: one is of the miniature model and the other is not; compare nano with nano."
        )
    pairs, unmatched = match_rows(suite_a, suite_b) if rows is None else (named_pairs(suite_a, suite_b, rows), [])
    unequal = _unequal(suite_a, suite_b) | _unequal_rows(pairs)
    if unequal and not open_division:
        raise BenchError(
            f"{a} and {b} do not compare: {unequal_texts(unequal)[0]}; run one of them again with the settings of the "
            "other, or compare them as they are, with both ledgers, by --open."
        )
    if not pairs:
        raise BenchError(f"{a} and {b} have no row in common that has finished: {' '.join(unmatched)}")
    if not compared_metrics(suite_a, suite_b, unequal):
        raise BenchError(f"{a} and {b} have no score in common: score both with one evaluator, and run them again.")
    table = score_differences(suite_a, suite_b, pairs, unequal)
    return Comparison(suite_a, suite_b, pairs, unmatched, rows is None, unequal, table)


def _unequal(a: SuiteRecords, b: SuiteRecords) -> dict[str, tuple[Any, Any]]:
    """Settings, fingerprints and ledger totals in which two suites differ: name to the values in A and in B."""
    ledger_a, ledger_b = (
        {f"ledger {name}": ledger.get(name) for name in EQUAL_SPENDING}
        for ledger in (next(runs.finished[0].record.ledger for runs in s.rows if runs.finished) for s in (a, b))
    )
    return differing_settings(a, b) | differences(ledger_a, ledger_b)


def _unequal_rows(pairs: Sequence[RowPair]) -> dict[str, tuple[Any, Any]]:
    """Pairs whose rows have other settings: name to the settings in A and in B."""
    settings = {f"row {pair.name}": [row_settings(runs.finished[0].record) for runs in pair] for pair in pairs}
    return {name: (one, other) for name, (one, other) in settings.items() if differences(one, other)}


def unequal_texts(unequal: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """One text per single setting that differs, such as "budget.updates is 60 in A and 40 in B"."""
    a, b = ({name: pair[side] for name, pair in unequal.items()} for side in (0, 1))
    settings = differences(a, b, nested=True)
    return [f"{name} is {_short(left)} in A and {_short(right)} in B" for name, (left, right) in settings.items()]


def _short(value: Any) -> str:
    """A value as text; of a long one, such as a list of metrics, its start."""
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def match_rows(a: SuiteRecords, b: SuiteRecords) -> tuple[list[RowPair], list[str]]:
    """Pairs of rows with the same method, KL policy and parameters, in A's order; a sentence on each unmatched row.

    If several rows have the same settings, rows of the same label are matched first.
    """
    rows_a, rows_b = ([runs for runs in suite.rows if runs.finished] for suite in (a, b))
    counterparts: dict[str, RowRuns] = {}
    for by_label in (True, False):
        for runs in rows_a:
            used = {other.row.label for other in counterparts.values()}
            candidates = [
                other
                for other in rows_b
                if other.row.label not in used
                and settings_key(other.finished[0].record) == settings_key(runs.finished[0].record)
                and (not by_label or other.row.label == runs.row.label)
            ]
            if runs.row.label not in counterparts and candidates:
                counterparts[runs.row.label] = candidates[0]
    pairs = [RowPair(runs, counterparts[runs.row.label]) for runs in rows_a if runs.row.label in counterparts]
    unmatched = [_why_unmatched(runs, b) for runs in a.rows if runs.row.label not in counterparts]
    known = {other.row.label for other in counterparts.values()} | {runs.row.label for runs in a.rows}
    only_b = [runs.row.label for runs in rows_b if runs.row.label not in known]
    return pairs, unmatched + [f"{label} has no counterpart in A." for label in only_b]


def named_pairs(a: SuiteRecords, b: SuiteRecords, rows: Sequence[tuple[str, str]]) -> list[RowPair]:
    """The pairs of these labels in A and in B; a label without a finished run is a `BenchError`."""
    return [RowPair(_named(a, one), _named(b, other)) for one, other in dict.fromkeys(rows)]


def _named(suite: SuiteRecords, label: str) -> RowRuns:
    finished = {runs.row.label: runs for runs in suite.rows if runs.finished}
    if label not in finished:
        raise BenchError(f"{suite.folder} has no finished run of a row {label!r}: name one of {', '.join(finished)}.")
    return finished[label]


def _why_unmatched(runs: RowRuns, b: SuiteRecords) -> str:
    """Why a row of A has no counterpart in B; for a row of the same label in B, the settings that differ."""
    label = runs.row.label
    if not runs.finished:
        return f"{label} has no finished run in A."
    same = next((other for other in b.rows if other.row.label == label), None)
    if same is None:
        return f"{label} has no counterpart in B."
    if not same.finished:
        return f"{label} has no finished run in B."
    left, right = differing_parts(*(row_settings(one.finished[0].record) for one in (runs, same)))
    return f"{label} has other settings in B: {left} against {right}."


def select_seeds(a: Sequence[int], b: Sequence[int]) -> Sides:
    """The seeds of each side that a difference uses, and whether it is paired by seed.

    Common seeds are paired if there are at least `LEAST_SEEDS`, or if one side has no other seed. Otherwise the seeds
    count as independent; the common ones then count only on the side that has fewer seeds, since a run is not an
    independent repetition of itself.
    """
    common = sorted(set(a) & set(b))
    if len(common) >= min(LEAST_SEEDS, len(a), len(b)):
        return Sides(common, common, True)
    rest_a, rest_b = ([seed for seed in one if seed not in common] for one in (a, b))
    return Sides(rest_a, list(b), False) if len(a) > len(b) else Sides(list(a), rest_b, False)


def score_differences(
    a: SuiteRecords, b: SuiteRecords, pairs: Sequence[RowPair], unequal: Mapping[str, Any]
) -> pd.DataFrame:
    """One line per score of the base and of each pair, in score units.

    Columns: row, score, seeds_a, seeds_b (those used), paired (how); a and b (means over the seeds used) with `_lo`,
    `_hi`; diff = a - b with `_lo`, `_hi`; for the primary score and gold Overall also diff_p, diff_p_holm (over all
    tests of the table) and diff_mde (at Holm's first step); band_lo, band_hi and inside (`prediction_band` of b's
    seeds, only in the closed division and if a and b have no common seed). The base has no seeds, so its line has
    means only. Rows that are equal bit for bit are no test.
    """
    same_prompts, scores = "scored videos" not in unequal, compared_metrics(a, b, unequal)
    sides = [(pair, score) for score in scores for pair in pairs]
    estimates = [_estimate(pair, score, same_prompts) for pair, score in sides]
    tested = [score in tested_scores(a) and not equal_pair(pair) for pair, score in sides]
    p = [one.p if one and test else np.nan for one, test in zip(estimates, tested, strict=True)]
    level = LEVEL / max(1, int(np.isfinite(p).sum()))
    lines = [
        _base_line(score, *(one.base.cells[score].to_numpy() for one in (a, b) if one.base))
        for score in scores
        if a.base and b.base
    ]
    for (pair, score), estimate, p_value, p_holm in zip(sides, estimates, p, holm(p), strict=True):
        line = _line(pair, score, same_prompts, not unequal) | interval_columns("diff", estimate)
        known = None if np.isnan(p_value) else estimate
        effect = np.nan if known is None else _detectable(pair, score, known, same_prompts, level)
        lines.append(line | {"diff_p": p_value, "diff_p_holm": p_holm, "diff_mde": effect})
    table = pd.DataFrame(lines)
    table["inside"] = table["inside"].astype("boolean")
    order = {BASE: -1, **{pair.name: index for index, pair in enumerate(pairs)}}
    return table.sort_values("row", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def equal_pair(pair: RowPair) -> bool:
    """Whether a row is compared over common seeds, whose scores are all equal bit for bit."""
    return select_seeds(pair.a.seeds, pair.b.seeds).paired and same_runs(pair.a, pair.b)


def compared_metrics(a: SuiteRecords, b: SuiteRecords, unequal: Mapping[str, Any]) -> dict[str, MetricColumn]:
    """The scores that both sides have, the most important ones first; without a reward that differs."""
    common = {
        name: metric
        for name, metric in a.metrics.items()
        if name in b.metrics and name not in FURTHER and not (name == REWARD and "reward" in unequal)
    }
    first = [name for name in ("overall", REWARD, "gold_overall") if name in common]
    return {name: common[name] for name in dict.fromkeys([*first, *common])}


def _base_line(score: str, a: Array, b: Array) -> dict[str, Any]:
    means = {"a": a.mean(), "b": b.mean(), "diff": a.mean() - b.mean()}
    equal = bool(len(a) == len(b) and np.array_equal(a, b))
    unknown = {f"{name}{end}": np.nan for name in means for end in ("_lo", "_hi")}
    tested = dict.fromkeys(("diff_p", "diff_p_holm", "diff_mde", "band_lo", "band_hi"), np.nan)
    return {
        **{"row": BASE, "score": score, "seeds_a": "", "seeds_b": "", "paired": "equal" if equal else "differs"},
        **{**means, **unknown, **tested, "inside": None},
    }


def _matrices(pair: RowPair, score: str) -> tuple[Sides, Array | None, Array | None]:
    """The seeds that a difference uses, and the scores of both sides for them, [seed, prompt]."""
    used = select_seeds(pair.a.seeds, pair.b.seeds)
    return used, pair.a.matrix(score, used.a), pair.b.matrix(score, used.b)


def _line(pair: RowPair, score: str, same_prompts: bool, closed: bool) -> dict[str, Any]:
    used, x, y = _matrices(pair, score)
    band = (np.nan, np.nan)
    if x is not None and y is not None and closed and not set(pair.a.seeds) & set(pair.b.seeds):
        band = prediction_band(y.mean(1), len(x))
    value = np.nan if x is None else float(x.mean())
    return {
        **{"row": pair.name, "score": score},
        **{"seeds_a": " ".join(map(str, used.a)), "seeds_b": " ".join(map(str, used.b))},
        "paired": (BOTH if used.paired else PROMPTS) if same_prompts else NOTHING,
        **interval_columns("a", None if x is None else two_way(x)),
        **interval_columns("b", None if y is None else two_way(y)),
        **{"band_lo": band[0], "band_hi": band[1], "inside": inside_band(value, *band)},
    }


def _estimate(pair: RowPair, score: str, same_prompts: bool) -> Estimate | None:
    used, x, y = _matrices(pair, score)
    return None if x is None or y is None else _difference(x, y, used.paired, same_prompts)


def _detectable(pair: RowPair, score: str, estimate: Estimate, same_prompts: bool, level: float) -> float:
    """The smallest true difference that the test of `estimate` finds at this level with a power of 80 %."""
    used, x, y = _matrices(pair, score)
    if x is not None and y is not None and used.paired and same_prompts:
        return detectable_difference(x - y, level)
    return detectable_effect(estimate.se, estimate.df, level)


def _difference(x: Array, y: Array, by_seed: bool, by_prompt: bool) -> Estimate:
    if not by_prompt:
        return unpaired_difference(x, y)
    return paired_difference(x, y) if by_seed else independent_difference(x, y)


def equal_runs(pairs: Sequence[RowPair], score: str) -> tuple[int, int, float]:
    """Runs whose row and seed both sides have: their number, how many have bitwise equal scores, and the largest gap.

    The gap is the absolute difference of the means of one score of two runs, score units; NaN if no run differs.
    """
    same_seed = [
        (run, other)
        for pair in pairs
        for run in pair.a.finished
        for other in pair.b.finished
        if run.record.seed == other.record.seed
    ]
    differ = [(run, other) for run, other in same_seed if run.record.scores_digest != other.record.scores_digest]
    gaps = [
        abs(float(run.cells[score].mean() - other.cells[score].mean()))
        for run, other in differ
        if score in run.cells and score in other.cells
    ]
    return len(same_seed), len(same_seed) - len(differ), max(gaps, default=float("nan"))
