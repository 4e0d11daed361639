"""Simulated data without a true difference: level of the tests, coverage of the interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

from bench.report.data.power import Spread
from bench.report.data.statistics import CONFIDENCE, LEVEL, Array
from bench.report.data.variance import Squares, generalized_p, mean_squares, standard_error
from bench.report.data.verdict import COLLAPSE

PROMPTS, ROWS = 36, 4
LEVELS = (0.05, 0.01, 0.001)
#: Standard deviation of "the run collapses", which is 1 or 0.
COLLAPSE_SD = float(np.sqrt(COLLAPSE * (1 - COLLAPSE)))
#: Data sets that are computed at once, to bound the memory.
CHUNK = 500

Rng = np.random.Generator

#: Variances of the seed, prompt and rest effects for S seeds and P prompts.
MIXES: dict[str, Callable[[int, int], Spread]] = {
    "seeds dominate": lambda seeds, prompts: Spread(1, 0.09, 0.09),
    "equal shares": lambda seeds, prompts: Spread(seeds / prompts, 1, 1),
    "no prompt effect": lambda seeds, prompts: Spread(0.25, 0, 1),
    "prompts dominate": lambda seeds, prompts: Spread(0.0025, 1, 0.09),
    "no seed effect": lambda seeds, prompts: Spread(0, 1, 1),
    "rest only": lambda seeds, prompts: Spread(0, 0, 1),
}
#: Seed effects of mean 0 and variance 1. Skewed: exponential. Rare collapse: one run in ten far below the others.
SHAPES: dict[str, Callable[[Rng, tuple[int, ...]], Array]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "skewed": lambda rng, shape: rng.standard_exponential(shape) - 1,
    "bimodal": lambda rng, shape: np.asarray(2 * rng.integers(2, size=shape) - 1, dtype=np.float64),
    "rare collapse": lambda rng, shape: np.asarray((COLLAPSE - (rng.random(shape) < COLLAPSE)) / COLLAPSE_SD),
}


class Figures(NamedTuple):
    """Shares of simulated data sets without a true difference."""

    older: list[float]
    """In which the t test's p is at most each of `LEVELS`."""
    generalized: list[float]
    """In which the generalized test's is."""
    coverage: float
    """Whose 95 % interval covers 0."""
    outside_margin: float
    """In which a true difference is larger than its margin of equivalence (`equivalence_margin`)."""


def simulate(rng: Rng, sets: int, seeds: int, prompts: int, spread: Spread, shape: str = "normal") -> Array:
    """Data x[set, seed, prompt] of mean 0; prompt effects and rests are normal."""
    by_seed = np.sqrt(spread.seeds) * SHAPES[shape](rng, (sets, seeds, 1))
    by_prompt = np.sqrt(spread.prompts) * rng.standard_normal((sets, 1, prompts))
    return np.asarray(by_seed + by_prompt + np.sqrt(spread.rest) * rng.standard_normal((sets, seeds, prompts)))


def t_p(mean: Array, squares: Squares, seeds: int, prompts: int) -> Array:
    """The p-value of the t test with Satterthwaite's degrees of freedom, as it was printed before."""
    se, df = standard_error(squares, seeds, prompts)
    return np.asarray(2 * stdtr(df, -np.abs(mean) / se))


def bounded_p(mean: Array, squares: Squares, seeds: int, prompts: int, above: float) -> Array:
    """`generalized_p`, but for the many above `above` a number between `above` and it, which costs less.

    The p of the t test over seeds or prompts is never above the generalized one, so where it is large it will do.
    """
    parts = ((squares[0], seeds - 1), (squares[1], prompts - 1))
    p = np.max([2 * stdtr(df, -np.abs(mean) / np.sqrt(square / (seeds * prompts))) for square, df in parts], axis=0)
    open_ones = p <= above
    p[open_ones] = generalized_p(mean[open_ones], _at(squares, open_ones), seeds, prompts)
    return np.asarray(p)


def _at(squares: Squares, where: npt.NDArray[np.bool_]) -> Squares:
    return squares[0][where], squares[1][where], squares[2][where]


def single(rng: Rng, sets: int, seeds: int, spread: Spread, shape: str = "normal") -> Figures:
    """The test and the interval of one difference, such as that of a row to the base."""
    older, newer, outside, wide = [], [], 0, 0
    for x in _chunks(rng, sets, 1, seeds, spread, shape):
        mean, squares = x[:, 0].mean((-2, -1)), mean_squares(x[:, 0])
        older.append(t_p(mean, squares, seeds, PROMPTS))
        newer.append(bounded_p(mean, squares, seeds, PROMPTS, LEVEL))
        se, df = standard_error(squares, seeds, PROMPTS)
        outside += int((np.abs(mean) > stdtrit(df, (1 + CONFIDENCE) / 2) * se).sum())
        wide += int((np.abs(mean) > stdtrit(df, 1 - LEVEL) * se).sum())
    shares = [[float((np.concatenate(p) <= level).mean()) for level in LEVELS] for p in (older, newer)]
    return Figures(shares[0], shares[1], 1 - outside / sets, wide / sets / 2)


def family_wise(rng: Rng, families: int, seeds: int, spread: Spread, shape: str = "normal") -> tuple[float, float]:
    """Share of families of four equal rows in which Holm calls any of the 6 pairs significant: t test, generalized.

    `spread` is that of a difference of two rows, of which each has half.
    """
    half = Spread(*(variance / 2 for variance in spread))
    pairs = list(combinations(range(ROWS), 2))
    least: list[list[Array]] = [[], []]
    for x in _chunks(rng, families, ROWS, seeds, half, shape):
        differences = np.stack([x[:, one] - x[:, other] for one, other in pairs], axis=1)
        mean, squares = differences.mean((-2, -1)), mean_squares(differences)
        least[0].append(t_p(mean, squares, seeds, PROMPTS).min(1))
        least[1].append(bounded_p(mean, squares, seeds, PROMPTS, LEVEL / len(pairs)).min(1))
    # Holm calls any of them significant where the smallest p, times their number, is at most 5 %
    older, newer = (float((len(pairs) * np.concatenate(p) <= LEVEL).mean()) for p in least)
    return older, newer


def _chunks(rng: Rng, sets: int, rows: int, seeds: int, spread: Spread, shape: str) -> Iterator[Array]:
    """Data x[set, row, seed, prompt] of `sets` sets, some at a time."""
    for start in range(0, sets, CHUNK):
        n = min(CHUNK, sets - start)
        yield simulate(rng, n * rows, seeds, PROMPTS, spread, shape).reshape(n, rows, seeds, PROMPTS)
