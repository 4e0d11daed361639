"""Mean squares of x[seed, prompt], the standard error of its mean, and the generalized test of "the mean is 0".

All functions take whole stacks of data sets: leading axes are kept, so a simulation runs the very code of the tables.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincinv, ndtr

Array = npt.NDArray[np.float64]
Squares = tuple[Array, Array, Array]

CONFIDENCE = 0.95
#: With fewer seeds there is no interval and no test: two numbers say next to nothing about their spread.
LEAST_SEEDS = 3

#: Points of the grid of chi-squared quantiles for seeds, prompts and rest. With these the p-value is within a share of
#: 0.001 of those of a grid of 300 x 100 x 100 points, for p from 1e-4 to 0.5, 3 to 10 seeds and 4 to 64 prompts.
GRID = (32, 24, 8)


def mean_squares(x: Array) -> Squares:
    """Mean squares of the seeds, the prompts and the rest of x[..., seed, prompt], both at least 2; each [...]."""
    seeds, prompts = x.shape[-2:]
    mean = x.mean((-2, -1), keepdims=True)
    by_seed, by_prompt = x.mean(-1, keepdims=True), x.mean(-2, keepdims=True)
    ms_s = prompts * ((by_seed - mean) ** 2).sum((-2, -1)) / (seeds - 1)
    ms_p = seeds * ((by_prompt - mean) ** 2).sum((-2, -1)) / (prompts - 1)
    ms_e = ((x - by_seed - by_prompt + mean) ** 2).sum((-2, -1)) / ((seeds - 1) * (prompts - 1))
    return ms_s, ms_p, ms_e


def standard_error(squares: Squares, seeds: int, prompts: int) -> tuple[Array, Array]:
    """Standard error of the grand mean, and its degrees of freedom, from the mean squares of `mean_squares`."""
    ms_s, ms_p, ms_e = squares
    df_s, df_p = seeds - 1, prompts - 1
    df_e = df_s * df_p
    total = _total(ms_s, ms_p, ms_e)
    spread = ms_s**2 / df_s + ms_p**2 / df_p + ms_e**2 / df_e
    ratio = np.divide(total**2, spread, out=np.zeros(np.shape(total)), where=spread > 0)
    return np.sqrt(total / (seeds * prompts)), np.clip(ratio, min(df_s, df_p), df_e)


def generalized_p(
    mean: npt.ArrayLike, squares: Squares, seeds: int, prompts: int, grid: tuple[int, int, int] = GRID
) -> Array:
    """Two-sided p-value of "the mean is 0" for grand means [...] with the mean squares [...] of `mean_squares`.

    Weerahandi's generalized test (Exact Statistical Methods for Data Analysis, 1995): p is the mean of
    `2 Phi(-|mean| / sqrt(V))` over the variances V of the mean that the mean squares leave open,

        V = max(A + B - E, A, B, E) / (S P)
        A = (S-1) MS_s / chi2(S-1),  B = (P-1) MS_p / chi2(P-1),  E = (S-1)(P-1) MS_e / chi2((S-1)(P-1))

    with independent chi-squared variables. The mean is taken over a fixed grid of their quantiles, so equal data give
    equal bits. p is never below that of the t test over the seeds' means or over the prompts' means, since V is never
    below A or B. Without any spread p is 1 where the mean is 0, and 0 elsewhere.
    """
    mean = np.asarray(mean, dtype=np.float64)
    factors, weights = chi2_grid(seeds, prompts, grid)
    a, b, e = (np.asarray(ms)[..., None, None, None] * factor for ms, factor in zip(squares, factors, strict=True))
    variance = np.maximum(a, e) + np.maximum(b - e, 0)  # max(a + b - e, a, b, e)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.abs(mean)[..., None, None, None] * np.sqrt(seeds * prompts / variance)
    p = 2 * np.einsum("...abe,abe->...", ndtr(-z), weights)
    return np.where(_total(*squares) > 0, np.minimum(p, 1.0), np.where(mean == 0, 1.0, 0.0))


def _total(ms_s: Array, ms_p: Array, ms_e: Array) -> Array:
    """Variance of the grand mean times S P. A component that is estimated below 0 counts as 0."""
    return np.asarray(np.maximum(ms_s, ms_e) + np.maximum(ms_p - ms_e, 0))  # max(s + p - e, s, p, e)


@lru_cache(maxsize=256)
def chi2_grid(seeds: int, prompts: int, points: tuple[int, int, int]) -> tuple[Squares, Array]:
    """df / chi2(df) of seeds, prompts and rest at fixed quantiles, shaped to broadcast, and their joint weights.

    Gauss-Legendre points w in (0, 1) at the probability w^3 for seeds and prompts, since small quantiles of few
    degrees of freedom decide small p-values; at w^2 (3 - 2 w) for the rest. The weights have the sum 1.
    """
    df_s, df_p = seeds - 1, prompts - 1
    factors, weights = [], []
    for axis, df in enumerate((df_s, df_p, df_s * df_p)):
        w, weight = np.polynomial.legendre.leggauss(points[axis])
        w, weight = (w + 1) / 2, weight / 2
        chance, slope = (w**2 * (3 - 2 * w), 6 * w * (1 - w)) if axis == 2 else (w**3, 3 * w**2)
        shape = [points[axis] if number == axis else 1 for number in range(3)]
        factors.append((df / (2 * gammaincinv(df / 2, chance))).reshape(shape))
        weights.append((weight * slope).reshape(shape))
    return (factors[0], factors[1], factors[2]), weights[0] * weights[1] * weights[2]
