"""What votes on pairs say: shares won and strengths with intervals over raters and prompts, and checks of the raters.

Raters and prompts are both random: another rater and another prompt give another answer, and the intervals cover both.
Training seeds are taken as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import choix
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, logit, stdtrit
from scipy.stats import binomtest

from bench.report.data.resampling import Interval, wilson
from bench.report.data.variance import CONFIDENCE, Array
from bench.report.data.vote_files import IDENTICAL, LEFT, PAIR, QUESTIONS, REPEAT, RIGHT, TIE

LEAST = 3
"""Raters, and prompts, below which a number has no interval: two say next to nothing about their spread."""
VIRTUAL_TIES = 1.0
"""Ties that are added between each two rows before strengths are fitted, so that a row that won or lost every pair has
a finite strength."""
FAST_SECONDS = 1.0
"""An answer that comes sooner after its pair was shown is called fast."""
PASSED_TIES = 0.5
"""A rater passes who calls more than this share of the answers on identical pairs a tie."""
ALL = "all others"
"""In the column `against`: all other rows together. No label has a space."""
SCORES = {LEFT: 1.0, TIE: 0.5, RIGHT: 0.0}
"""What the left row wins by an answer."""


def preferences(answers: pd.DataFrame, rows: Sequence[str]) -> pd.DataFrame:
    """Shares won and strengths of `rows` (labels) from answers on pairs of kind pair; repeats do not count.

    One line per question, row and opponent (a label, or `ALL`): `share`, the mean over answers of 1 for a won pair,
    0.5 for a tie and 0 for a lost one, and its limits `share_lo` and `share_hi`; for `ALL` also `strength`,
    `strength_lo` and `strength_hi`; `raters`, `prompts`, `pairs` (shown ones) and `ties`. Rows, and pairs of
    rows, without an answer have no line.

    Intervals (95 %): the variance is robust to clusters in two ways (Cameron, Gelbach and Miller 2011): that over
    raters plus that over prompts minus that over pairs of rater and prompt, and at least the larger of the first two.
    Student's t has one degree of freedom less than there are raters or prompts, whichever is less. Shares get their
    limits on the scale of log odds. Where a share is 0 or 1, or all answers are alike, the interval is Wilson's with
    the smaller number of raters and prompts as trials. Fewer than 3 raters or prompts: no interval (NaN).

    Strengths are those of Bradley and Terry (1952), in log odds with mean 0: row A wins against B with the probability
    1 / (1 + exp(B - A)). A tie is half a win for each. `VIRTUAL_TIES` is added between each two rows. NaN where the
    pairs leave the rows in groups that never met.
    """
    parts = [
        _question(group, question, rows)
        for question in QUESTIONS
        if len(group := answers[(answers["kind"] == PAIR) & (answers["question"] == question)])
    ]
    return pd.concat(parts, ignore_index=True)


class _Answers(NamedTuple):
    """Answers about one question, as arrays over answers."""

    raters: npt.NDArray[np.int64]
    prompts: npt.NDArray[np.int64]
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    """Numbers of the rater, the prompt and both rows."""
    won: Array
    """What the left row won."""

    def of(self, row: int, against: int | None) -> tuple[_Answers, Array]:
        """The answers on pairs of a row with another one, or with any, and what the row won."""
        with_row = (self.left == row) | (self.right == row)
        shown = with_row if against is None else with_row & ((self.left == against) | (self.right == against))
        part = _Answers(*(each[shown] for each in self))
        return part, np.where(part.left == row, part.won, 1 - part.won)

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of raters and of prompts."""
        return len(np.unique(self.raters)), len(np.unique(self.prompts))

    def standard_error(self, influence: Array) -> Array:
        """Of sums over answers, from influence[answer, number], what each answer adds to each sum."""
        views = self.raters * (self.prompts.max() + 1) + self.prompts
        by_rater, by_prompt, both = (_variance(influence, codes) for codes in (self.raters, self.prompts, views))
        return np.asarray(np.sqrt(np.maximum(by_rater + by_prompt - both, np.maximum(by_rater, by_prompt))))

    def width(self) -> float:
        """The interval's half width in standard errors."""
        return float(stdtrit(min(self.counts) - 1, (1 + CONFIDENCE) / 2))


def _variance(influence: Array, codes: npt.NDArray[np.int64]) -> Array:
    """Variance of sums over answers, [number], where answers of equal code depend on each other."""
    groups, index = np.unique(codes, return_inverse=True)
    sums = np.zeros((len(groups), influence.shape[1]))
    np.add.at(sums, index, influence)
    return np.asarray((sums**2).sum(0) * len(groups) / (len(groups) - 1))


def _question(lines: pd.DataFrame, question: str, rows: Sequence[str]) -> pd.DataFrame:
    """The lines of one question; rows without an answer have none."""
    rows = [row for row in rows if bool((lines[[LEFT, RIGHT]] == row).to_numpy().any())]
    place = {row: index for index, row in enumerate(rows)}
    answers = _Answers(
        raters=pd.factorize(lines["alias"])[0],
        prompts=pd.factorize(lines["prompt_index"])[0],
        left=np.asarray(lines[LEFT].map(place), np.int64),
        right=np.asarray(lines[RIGHT].map(place), np.int64),
        won=np.asarray(lines["answer"].map(SCORES), np.float64),
    )
    strength = _strengths(answers, len(rows))
    table = []
    for row, against in itertools.product(rows, (ALL, *rows)):
        part, score = answers.of(place[row], place.get(against))
        if row == against or not len(score):
            continue
        table.append(
            {
                **{"question": question, "row": row, "against": against},
                **_limits("share", _share(part, score)),
                **_limits("strength", strength[place[row]] if against == ALL else UNKNOWN),
                **dict(zip(("raters", "prompts"), part.counts, strict=True)),
                **{"pairs": len(score), "ties": int((score == SCORES[TIE]).sum())},
            }
        )
    return pd.DataFrame(table)


UNKNOWN = Interval(float("nan"), float("nan"), float("nan"))


def _limits(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_lo": interval.lo, f"{name}_hi": interval.hi}


def _share(answers: _Answers, score: Array) -> Interval:
    """Mean of the scores (0, 0.5 or 1) of the answers, with its interval."""
    mean, least = float(score.mean()), min(answers.counts)
    if least < LEAST:
        return UNKNOWN._replace(value=mean)
    error = float(answers.standard_error((score - mean)[:, None] / len(score))[0])
    if mean in (0, 1) or error == 0:
        return Interval(mean, *wilson(mean, least))
    half = answers.width() * error / (mean * (1 - mean))  # of the log odds, by the delta method
    return Interval(mean, float(expit(logit(mean) - half)), float(expit(logit(mean) + half)))


def _strengths(answers: _Answers, rows: int) -> list[Interval]:
    """Strength of each row with its interval.

    The influence of an answer on the strengths is the derivative of its log-likelihood, times the inverse of the
    information (Huber's sandwich).
    """
    sides = np.eye(rows)[answers.left], np.eye(rows)[answers.right]
    wins = sides[0].T @ (answers.won[:, None] * sides[1]) + sides[1].T @ ((1 - answers.won)[:, None] * sides[0])
    if connected_components(wins + wins.T, directed=False)[0] > 1:
        return [UNKNOWN] * rows
    values = strengths(wins)
    if min(answers.counts) < LEAST:
        return [UNKNOWN._replace(value=float(value)) for value in values]
    chance = expit(values[:, None] - values)
    weight = (wins + wins.T + VIRTUAL_TIES * (1 - np.eye(rows))) * chance * (1 - chance)
    information = np.diag(weight.sum(1)) - weight
    score = (answers.won - chance[answers.left, answers.right])[:, None] * (sides[0] - sides[1])
    half = answers.width() * answers.standard_error(score @ np.linalg.pinv(information))
    return [Interval(float(value), float(value - h), float(value + h)) for value, h in zip(values, half, strict=True)]


def strengths(wins: Array) -> Array:
    """Bradley-Terry strengths, log odds with mean 0, from wins[row, row] and `VIRTUAL_TIES` between each two rows."""
    return np.asarray(choix.ilsr_pairwise_dense(wins + VIRTUAL_TIES / 2 * (1 - np.eye(len(wins)))))


def raters(answers: pd.DataFrame) -> pd.DataFrame:
    """One line per rater, by alias: what the checks of each one need.

    `pairs`: shown ones of all kinds; `fast`: answers before `FAST_SECONDS`; `identical`: answers on identical pairs
    and `ties`, those that say so; `passed`: whether more than `PASSED_TIES` of them do (missing without such
    answers); `colour_blind`: yes, no or unsaid.
    """
    groups = answers.groupby("alias")
    table = pd.DataFrame({"pairs": groups.size() // len(QUESTIONS), "colour_blind": groups["colour_blind"].first()})
    table["fast"] = groups["seconds"].agg(lambda seconds: int((seconds < FAST_SECONDS).sum()))
    identical = answers[answers["kind"] == IDENTICAL]
    table["identical"] = identical.groupby("alias").size().reindex(table.index, fill_value=0)
    ties = identical[identical["answer"] == TIE].groupby("alias").size().reindex(table.index, fill_value=0)
    table["ties"] = ties
    passed = (ties > PASSED_TIES * table["identical"]).astype("boolean")
    return table.assign(passed=passed.mask(table["identical"] == 0)).reset_index()


def checks(answers: pd.DataFrame) -> pd.DataFrame:
    """Checks of the answers, one line per check and question: `check`, `question`, `value` (a share), `lo`, `hi`, `n`.

    - `side`: share of left among the decided answers on pairs, with the exact binomial interval (Clopper and Pearson,
      1934), which takes answers as independent.
    - `repeat`: share of the repeats that have the answer of the first time, sides swapped.
    - `identical`: share of ties among the answers on identical pairs.
    - `agreement`: share of equal answers over all pairs of raters who saw the same two clips.
    - `chance`: the same for raters who draw a side at random, with the study's share of ties.

    NaN where there is no such answer; only `side` has limits.
    """
    lines = []
    for question in QUESTIONS:
        group = answers[answers["question"] == question]
        pairs = group[group["kind"] == PAIR]
        decided, left = int((pairs["answer"] != TIE).sum()), int((pairs["answer"] == LEFT).sum())
        side = binomtest(left, decided).proportion_ci(CONFIDENCE, "exact") if decided else UNKNOWN[1:]
        agree, of = _agreement(pairs)
        tied = float((pairs["answer"] == TIE).mean())
        found: dict[str, tuple[float, int]] = {
            "side": (left / decided if decided else np.nan, decided),
            "repeat": _mean(_repeated(group)),
            "identical": _mean(group.loc[group["kind"] == IDENTICAL, "answer"] == TIE),
            "agreement": (agree / of if of else np.nan, of),
            "chance": (tied**2 + (1 - tied) ** 2 / 2 if of else np.nan, of),
        }
        for check, (value, n) in found.items():
            lo, hi = side if check == "side" else UNKNOWN[1:]
            lines.append({"check": check, "question": question, "value": value, "lo": lo, "hi": hi, "n": n})
    return pd.DataFrame(lines)


def _mean(values: pd.Series[Any]) -> tuple[float, int]:
    return (float(values.mean()) if len(values) else float("nan")), len(values)


def _repeated(answers: pd.DataFrame) -> pd.Series[Any]:
    """Whether the answer on each repeat is that of the first time, with sides swapped."""
    repeats = answers[answers["kind"] == REPEAT]
    firsts = answers.set_index(["alias", "vote", "order"])["answer"]
    first = firsts.reindex(pd.MultiIndex.from_frame(repeats[["alias", "vote", "first"]])).to_numpy()
    return repeats["answer"].map({LEFT: RIGHT, RIGHT: LEFT, TIE: TIE}) == first


def _agreement(pairs: pd.DataFrame) -> tuple[int, int]:
    """Number of pairs of raters with equal answers about the same two clips, and of all such pairs of raters."""
    winner = pairs[LEFT].where(pairs["answer"] == LEFT, pairs[RIGHT]).where(pairs["answer"] != TIE, "")
    items = pairs.assign(
        winner=winner, first=pairs[[LEFT, RIGHT]].min(axis=1), second=pairs[[LEFT, RIGHT]].max(axis=1)
    )
    item = ["prompt_index", "video", "seed", "first", "second"]
    items = items.drop_duplicates([*item, "alias"])

    def rater_pairs(key: list[str]) -> int:
        size = items.groupby(key).size()
        return int((size * (size - 1)).sum() // 2)

    return rater_pairs([*item, "winner"]), rater_pairs(item)
