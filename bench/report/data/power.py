"""What a paired difference can show with so many seeds, by the power of its own test (`generalized_p`).

The power of the t test is no substitute: it promises more than the generalized test keeps at few seeds
(docs/reference/levels.md has both).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import ndtr, stdtrit

from bench.report.data.statistics import LEVEL, POWER
from bench.report.data.variance import LEAST_SEEDS, Array, Squares, chi2_grid, generalized_p, mean_squares

#: Search for the number of seeds ends here.
MOST_SEEDS = 100
#: Grid of the mean squares that may come out, and that of the p-value of each: both smaller than that of a p-value
#: which is printed, since a power needs two digits.
OUTCOMES, COARSE = (12, 4, 2), (20, 12, 4)
#: Steps of the secant method for a critical mean: its p-value is then within a share of 1e-4 of the level.
STEPS = 4


class Spread(NamedTuple):
    """Variances of the effects in x[seed, prompt], unit of the data squared; each at least 0."""

    seeds: float
    prompts: float
    rest: float

    def squares(self, seeds: int, prompts: int) -> Squares:
        """The expected mean squares of that many seeds and prompts."""
        by_seed, by_prompt = self.rest + prompts * self.seeds, self.rest + seeds * self.prompts
        return np.asarray(by_seed), np.asarray(by_prompt), np.asarray(self.rest)


def estimate_spread(x: Array) -> Spread:
    """The variances as `two_way` estimates them from x[seed, prompt]; one that is estimated below 0 is 0."""
    seeds, prompts = x.shape
    by_seed, by_prompt, rest = (float(square) for square in mean_squares(x))
    return Spread(max(by_seed - rest, 0.0) / prompts, max(by_prompt - rest, 0.0) / seeds, rest)


def detectable_difference(difference: npt.ArrayLike, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest true mean of `difference[seed, prompt]` that the generalized test finds with this power.

    With as many seeds and prompts as here, and their spread as estimated here (`estimate_spread`). `level` is that of
    the two-sided test; with n tests in a family give LEVEL / n, the first step of Holm's method. In the unit of the
    data; NaN with fewer than 3 seeds or 2 prompts, where there is no test.
    """
    x = np.asarray(difference, dtype=np.float64)
    if x.ndim != 2 or len(x) < LEAST_SEEDS or x.shape[1] < 2:
        return float("nan")
    return _smallest_effect(estimate_spread(x), len(x), x.shape[1], level, power)


def seeds_needed(difference: npt.ArrayLike, tests: int = 1, most: int = MOST_SEEDS) -> int | None:
    """The smallest number of seeds with which the mean of `difference[seed, prompt]` is detected if it is true.

    Detected: by the generalized test at 5 % over `tests` (the first step of Holm's method), with a power of 80 %, on
    the same number of prompts, if the spread of seeds, prompts and rest is as estimated here (`estimate_spread`). At
    least 3; None if `most` seeds do not suffice, or if there are fewer than 3 seeds or 2 prompts to estimate it from.
    """
    x = np.asarray(difference, dtype=np.float64)
    if x.ndim != 2 or len(x) < LEAST_SEEDS or x.shape[1] < 2:
        return None
    spread, numbers = estimate_spread(x), range(LEAST_SEEDS, most + 1)

    def shown(seeds: int) -> bool:
        return _smallest_effect(spread, seeds, x.shape[1], LEVEL / tests) <= abs(float(x.mean()))

    first = bisect_left(numbers, True, key=shown)
    return numbers[first] if first < len(numbers) else None


def _smallest_effect(spread: Spread, seeds: int, prompts: int, level: float, power: float = POWER) -> float:
    """The true mean at which the generalized test has this power: the chance that either sign is shown."""
    expected = spread.squares(seeds, prompts)
    variance = float(expected[0] + expected[1] - expected[2]) / (seeds * prompts)
    if variance == 0:
        return 0.0
    (by_seed, by_prompt, rest), weights = chi2_grid(seeds, prompts, OUTCOMES)
    outcomes = expected[0] / by_seed, expected[1] / by_prompt, expected[2] / rest
    critical, se = critical_mean(outcomes, seeds, prompts, level), np.sqrt(variance)

    def missing(effect: float) -> float:
        shown = ndtr((effect - critical) / se) + ndtr((-effect - critical) / se)
        return power - float((shown * weights).sum())

    return float(brentq(missing, 0.0, float(critical.max() + 10 * se)))


def critical_mean(squares: Squares, seeds: int, prompts: int, level: float) -> Array:
    """The absolute mean at which `generalized_p` is `level`, for mean squares that broadcast against each other."""
    by_seed, by_prompt, rest = np.broadcast_arrays(*squares)

    def excess(log_mean: Array) -> Array:
        p = generalized_p(np.exp(log_mean), (by_seed, by_prompt, rest), seeds, prompts, COARSE)
        return np.asarray(np.log(np.maximum(p, 1e-300) / level))

    # p is never below that of either t test, so the root is not below either t test's
    t = [stdtrit(df, 1 - level / 2) * np.sqrt(ms) for df, ms in ((seeds - 1, by_seed), (prompts - 1, by_prompt))]
    first = np.log(np.maximum(*t) / np.sqrt(seeds * prompts))
    second = first + 0.1
    below, above = excess(first), excess(second)
    for _ in range(STEPS):
        change = above - below
        step = np.divide(above * (second - first), change, out=np.zeros_like(change), where=change != 0)
        first, below = second, above
        second = second - np.clip(step, -0.5, 0.5)
        above = excess(second)
    return np.asarray(np.exp(second))
