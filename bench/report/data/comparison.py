"""Two folders of one suite's records side by side: are A's numbers B's? (`bench compare A B`)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.core.errors import BenchError
from bench.core.hashing import canonical_json
from bench.report.data.records import (
    BASE,
    EQUAL_SPENDING,
    RowRuns,
    Suite,
    comparable_rows,
    differing_rows,
    load_suite,
    row_settings,
)
from bench.report.data.reference import inside_band, prediction_band
from bench.report.data.statistics import (
    Array,
    Estimate,
    detectable_effect,
    holm,
    independent_difference,
    paired_difference,
    two_way,
    unpaired_difference,
)
from bench.report.data.summary import triple

#: Scores that are compared, those that decide first: columns of the table of a suite.
SCORES = ("overall", "trained", "gold_overall", "vq", "mq", "ta", "clipscore", "pickscore")
#: How the two sides of a difference are paired.
BOTH, PROMPTS, NOTHING = "seed, prompt", "prompt", "nothing"


class RowPair(NamedTuple):
    """One row in both folders."""

    a: RowRuns
    b: RowRuns

    @property
    def name(self) -> str:
        """Label of the row in A, and that in B where it is another one."""
        one, other = self.a.row.label, self.b.row.label
        return one if one == other else f"{one} (B: {other})"


class Comparison(NamedTuple):
    """Everything that the text says."""

    a: Suite
    b: Suite
    pairs: list[RowPair]
    alone: list[str]
    """One sentence for each row that has no counterpart."""
    unequal: dict[str, tuple[Any, Any]]
    """What the closed division holds equal and these two do not: setting to its values in A and in B."""
    table: pd.DataFrame
    """See `differences`."""


class Sides(NamedTuple):
    """The seeds of both sides that one difference uses."""

    a: list[int]
    b: list[int]
    paired: bool


def compare(a: Path, b: Path, open_division: bool = False) -> Comparison:
    """Load both folders, refuse what does not compare, match the rows and compute the differences.

    In the open division only suites of the miniature and of the full-size model refuse each other.
    """
    if a.resolve() == b.resolve():
        raise BenchError(f"{a} is given twice: name two folders of records, such as results/nano and another one's.")
    one, other = load_suite(a), load_suite(b)
    for folder, suite in ((a, one), (b, other)):
        if not any(runs.finished for runs in suite.rows):
            raise BenchError(f"{folder} holds no finished run of a row: run `bench run` on its suite first.")
    if one.nano != other.nano:
        raise BenchError(
            f"{a} and {b} do not compare: one is of the miniature model and the other is not; compare nano with nano."
        )
    unequal = differing_settings(one, other)
    if unequal and not open_division:
        raise BenchError(
            f"{a} and {b} do not compare: {leaves(unequal)[0]}; run one of them again with the other's settings, or "
            "compare them as they are, with both ledgers, by --open."
        )
    pairs, alone = matched(one, other)
    if not pairs:
        raise BenchError(f"{a} and {b} have no row in common that has finished: {' '.join(alone)}")
    return Comparison(one, other, pairs, alone, unequal, differences(one, other, pairs, unequal))


# what must be equal -------------------------------------------------------------------------------------------
def differing_settings(a: Suite, b: Suite) -> dict[str, tuple[Any, Any]]:
    """Settings, fingerprints and spending in which two suites differ; their names and where scorers run do not count.

    Runs of one suite are equal in all of these (`load_suite`), so the first one speaks for all.
    """
    mine, theirs = comparable_rows(a.runs[0]), comparable_rows(b.runs[0])
    values = {key: (mine[key], theirs[key]) for key in mine if key not in ("suite", "evaluator_params")}
    one, other = (next(runs.finished[0].record.ledger for runs in s.rows if runs.finished) for s in (a, b))
    values |= {f"ledger {name}": (one.get(name), other.get(name)) for name in EQUAL_SPENDING}
    return {key: pair for key, pair in values.items() if canonical_json(pair[0]) != canonical_json(pair[1])}


def leaves(unequal: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """One text per single setting that differs, such as "budget.updates is 60 in A and 40 in B"."""
    told = []
    for name, (left, right) in unequal.items():
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            keys = [key for key in dict.fromkeys([*left, *right]) if left.get(key) != right.get(key)]
            told += leaves({f"{name}.{key}": (left.get(key), right.get(key)) for key in keys})
        else:
            told.append(f"{name} is {_short(left)} in A and {_short(right)} in B")
    return told


def _short(value: Any) -> str:
    """A value as text; of a long one, such as a list of metrics, its start."""
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def matched(a: Suite, b: Suite) -> tuple[list[RowPair], list[str]]:
    """Rows of the same method, KL policy and parameters, in A's order, and a sentence on each row left alone.

    Of several rows with the same settings those of the same label belong together.
    """
    mine, theirs = ([runs for runs in suite.rows if runs.finished] for suite in (a, b))
    found: dict[str, RowRuns] = {}
    for by_label in (True, False):
        for runs in mine:
            taken = {other.row.label for other in found.values()}
            alike = [
                other
                for other in theirs
                if other.row.label not in taken
                and _settings(other) == _settings(runs)
                and (not by_label or other.row.label == runs.row.label)
            ]
            if runs.row.label not in found and alike:
                found[runs.row.label] = alike[0]
    pairs = [RowPair(runs, found[runs.row.label]) for runs in mine if runs.row.label in found]
    alone = [_why_alone(runs, b) for runs in a.rows if runs.row.label not in found]
    used, named = {other.row.label for other in found.values()}, {runs.row.label for runs in a.rows}
    lone = [runs.row.label for runs in theirs if runs.row.label not in used | named]
    return pairs, alone + [f"{label} has no counterpart in A." for label in lone]


def _settings(runs: RowRuns) -> str:
    return canonical_json(row_settings(runs.finished[0].record))


def _why_alone(runs: RowRuns, b: Suite) -> str:
    """A row of the same label with other settings is told by what differs."""
    label = runs.row.label
    if not runs.finished:
        return f"{label} has no finished run in A."
    same = next((other for other in b.rows if other.row.label == label), None)
    if same is None:
        return f"{label} has no counterpart in B."
    if not same.finished:
        return f"{label} has no finished run in B."
    left, right = differing_rows(*(row_settings(one.finished[0].record) for one in (runs, same)))
    return f"{label} has other settings in B: {left} against {right}."


# numbers ------------------------------------------------------------------------------------------------------
def load_sides(a: Sequence[int], b: Sequence[int]) -> Sides:
    """Which seeds of each side a difference uses, and whether it is paired by them.

    Two or more common seeds: these, paired. Else the seeds count as independent; a single common seed then stays on
    the side that has fewer, since one run cannot be its own independent repetition.
    """
    common = sorted(set(a) & set(b))
    if len(common) > 1 or list(a) == list(b):
        return Sides(common, common, True)
    rest_a, rest_b = ([seed for seed in one if seed not in common] for one in (a, b))
    return Sides(rest_a, list(b), False) if len(a) > len(b) else Sides(list(a), rest_b, False)


def differences(a: Suite, b: Suite, pairs: Sequence[RowPair], unequal: Mapping[str, Any]) -> pd.DataFrame:
    """One line per score of the base and of each pair, in score units.

    Columns: row, score, seeds_a, seeds_b (used), paired (by what); a and b (means over the seeds used) with `_lo`,
    `_hi`; diff = a - b with `_lo`, `_hi`, `_p`, `_p_holm` (over the rows of one score), `_mde`; band_lo, band_hi and
    inside (`prediction_band` of b's seeds, only in the closed division and where no seed of a is in b). The base has
    no seeds: its means only.
    """
    same_prompts = "scored videos" not in unequal
    lines = []
    for score in SCORES:
        if (score == "trained" and "reward" in unequal) or not ({score} <= set(a.columns) & set(b.columns)):
            continue
        if a.base and b.base:
            lines.append(_base_line(score, *(one.base.cells[score].to_numpy() for one in (a, b) if one.base)))
        lines += [_line(pair, score, same_prompts, not unequal) for pair in pairs]
    table = pd.DataFrame(lines)
    table["diff_p_holm"] = np.nan
    for _, group in table.groupby("score", sort=False):
        table.loc[group.index, "diff_p_holm"] = holm(group["diff_p"].tolist())
    table["inside"] = table["inside"].astype("boolean")
    order = {BASE: -1, **{pair.name: place for place, pair in enumerate(pairs)}}
    return table.sort_values("row", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def _base_line(score: str, a: Array, b: Array) -> dict[str, Any]:
    means = {"a": a.mean(), "b": b.mean(), "diff": a.mean() - b.mean()}
    equal = bool(len(a) == len(b) and np.array_equal(a, b))
    unknown = {f"{name}{end}": np.nan for name in means for end in ("_lo", "_hi")}
    tested = {"diff_p": np.nan, "diff_mde": np.nan, "band_lo": np.nan, "band_hi": np.nan}
    return {
        **{"row": BASE, "score": score, "seeds_a": "", "seeds_b": "", "paired": "equal" if equal else "differs"},
        **{**means, **unknown, **tested, "inside": None},
    }


def _line(pair: RowPair, score: str, same_prompts: bool, closed: bool) -> dict[str, Any]:
    used = load_sides(pair.a.seeds, pair.b.seeds)
    x, y = pair.a.matrix(score, used.a), pair.b.matrix(score, used.b)
    found = None if x is None or y is None else _difference(x, y, used.paired, same_prompts)
    band = (np.nan, np.nan)
    if x is not None and y is not None and closed and not set(pair.a.seeds) & set(pair.b.seeds):
        band = prediction_band(y.mean(1), len(x))
    value = np.nan if x is None else float(x.mean())
    return {
        **{"row": pair.name, "score": score},
        **{"seeds_a": " ".join(map(str, used.a)), "seeds_b": " ".join(map(str, used.b))},
        "paired": (BOTH if used.paired else PROMPTS) if same_prompts else NOTHING,
        **triple("a", None if x is None else two_way(x)),
        **triple("b", None if y is None else two_way(y)),
        **triple("diff", found),
        "diff_p": found.p if found else np.nan,
        "diff_mde": detectable_effect(found.se, found.df) if found else np.nan,
        **{"band_lo": band[0], "band_hi": band[1], "inside": inside_band(value, *band)},
    }


def _difference(x: Array, y: Array, by_seed: bool, by_prompt: bool) -> Estimate:
    if not by_prompt:
        return unpaired_difference(x, y)
    return paired_difference(x, y) if by_seed else independent_difference(x, y)


def equal_runs(pairs: Sequence[RowPair]) -> tuple[int, int, float]:
    """Of the runs whose row and seed both sides have: how many, how many with equal scores bit for bit, largest gap.

    The gap is that between the means of Overall of two runs that differ; nan where none does.
    """
    twins = [
        (run, other)
        for pair in pairs
        for run in pair.a.finished
        for other in pair.b.finished
        if run.record.seed == other.record.seed
    ]
    differ = [(run, other) for run, other in twins if run.record.scores_digest != other.record.scores_digest]
    gaps = [
        abs(float(run.cells["overall"].mean() - other.cells["overall"].mean()))
        for run, other in differ
        if "overall" in run.cells and "overall" in other.cells
    ]
    return len(twins), len(twins) - len(differ), max(gaps, default=float("nan"))
