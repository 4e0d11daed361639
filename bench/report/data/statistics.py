"""Intervals and tests over seeds and prompts for the numbers and the differences of a table.

A cell `x[s, p]` is the mean over the videos of prompt p of the model trained with seed s. Seeds and prompts are both
random: another training run and another prompt give another number, and the intervals cover both.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import nctdtrinc, stdtr, stdtrit

from bench.report.data.resampling import (
    BOOTSTRAP_DRAWS,
    Interval,
    bootstrap_improvement,
    bootstrap_iqm,
    improvement,
    interquartile_mean,
)
from bench.report.data.variance import (
    CONFIDENCE,
    LEAST_SEEDS,
    Array,
    generalized_p,
    mean_squares,
    standard_error,
)

__all__ = [
    "BOOTSTRAP_DRAWS",
    "CONFIDENCE",
    "LEAST_SEEDS",
    "LEVEL",
    "POWER",
    "Array",
    "Estimate",
    "Interval",
    "bootstrap_improvement",
    "bootstrap_iqm",
    "detectable_effect",
    "equivalence_margin",
    "grouped",
    "holm",
    "improvement",
    "independent_difference",
    "interquartile_mean",
    "one_way",
    "over_seeds",
    "paired_difference",
    "t_over_seeds",
    "two_way",
    "unpaired_difference",
]

#: Level of one test. A test of a family has it divided by the number of tests (the first step of Holm's method).
LEVEL = 0.05
POWER = 0.8


class Estimate(NamedTuple):
    """A mean with its standard error; NaN where the data do not suffice (fewer than three seeds or two prompts)."""

    mean: float
    se: float
    df: float
    """Satterthwaite degrees of freedom."""
    lo: float
    hi: float
    """Limits of the two-sided 95 % interval, unit of the data."""
    p: float
    """Two-sided p-value of "the mean is 0"; meaningful for differences only."""


def two_way(x: npt.ArrayLike) -> Estimate:
    """Grand mean of x[seed, prompt], its interval and its p-value: two-way random effects without replication.

    Model: `x[s, p] = mu + a[s] + b[p] + e[s, p]`, all three random (Searle, Casella, McCulloch, Variance Components,
    1992, ch. 4). With the mean squares of seeds, prompts and rest, `Var(mean) = (MS_s + MS_p - MS_e) / (S P)`.
    Where the variance of seeds or of prompts is estimated below 0 (MS_s or MS_p below MS_e) it counts as 0, which can
    only widen the interval: the numerator is at least the largest of the three. Degrees of freedom after Satterthwaite
    (1946): the numerator squared over the sum of `MS^2 / df`, at least those of the smaller factor.

    The interval is the mean plus and minus Student's t times the standard error. Its tails are too thin for small
    p-values, since the degrees of freedom are themselves estimated from few seeds; so p is that of the generalized
    test (`generalized_p`), which holds its level. Near 0.05 the two may disagree: the test is the stricter one.

    Fewer than 3 seeds or 2 prompts: no interval and no p (NaN). Normal effects are assumed; for these, and others,
    docs/reference/levels.md has the level of the test and the coverage of the interval as simulated.
    """
    x = _seeds_and_prompts(x, "two_way")
    seeds, prompts = x.shape
    if seeds < LEAST_SEEDS or prompts < 2:
        return _unknown(x)
    mean, squares = float(x.mean()), mean_squares(x)
    se, df = standard_error(squares, seeds, prompts)
    return _estimate(mean, float(se), float(df))._replace(p=float(generalized_p(mean, squares, seeds, prompts)))


def t_over_seeds(x: npt.ArrayLike) -> Estimate:
    """Grand mean of x[seed, prompt], its interval and p-value with the prompts fixed: Student's t over seeds' means.

    It says how the mean over these very prompts varies with the seed, and nothing about other prompts. Fewer than 3
    seeds: no interval and no p (NaN).
    """
    x = _seeds_and_prompts(x, "t_over_seeds")
    return over_seeds(x.mean(1)) if x.size else _unknown(x)


def over_seeds(x: npt.ArrayLike) -> Estimate:
    """Mean of x[seed], one number per run, with Student's t interval; fewer than 3 seeds: no interval, no p (NaN)."""
    x = np.asarray(x, dtype=np.float64)
    return one_way(x) if len(x) >= LEAST_SEEDS else _unknown(x)


def grouped(x: npt.ArrayLike, groups: Sequence[Hashable]) -> Estimate:
    """`two_way` with the group of a prompt, such as its colour, as the random factor in the prompt's place.

    `groups[p]` is the group of prompt p of x[seed, prompt]. The prompts of a group are averaged, and each group counts
    once. It is the interval to read where prompts of a group are alike, so that they are not independent draws.
    """
    x = _seeds_and_prompts(x, "grouped")
    if len(groups) != x.shape[1]:
        raise ValueError(f"grouped needs one group per prompt, got {len(groups)} groups for {x.shape[1]} prompts")
    columns = [[p for p, group in enumerate(groups) if group == one] for one in dict.fromkeys(groups)]
    return two_way(np.stack([x[:, part].mean(1) for part in columns], axis=1) if columns else x)


def _seeds_and_prompts(x: npt.ArrayLike, function: str) -> Array:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"{function} needs x[seed, prompt], got shape {x.shape}")
    return x


def one_way(x: npt.ArrayLike) -> Estimate:
    """Mean of x[prompt] and its interval, prompts random: for the base, which is one model and has no seeds."""
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"one_way needs x[prompt], got shape {x.shape}")
    if len(x) < 2:
        return _unknown(x)
    return _estimate(float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))), len(x) - 1)


def paired_difference(run: npt.ArrayLike, other: npt.ArrayLike) -> Estimate:
    """Mean of run - other with its interval.

    `run` is [seed, prompt]. `other` is [prompt] (the base: subtracted from every seed, so its own noise counts as a
    prompt effect) or [seed, prompt] (another row, the same seeds and prompts in the same order).
    """
    run, other = np.asarray(run, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if run.ndim != 2 or other.shape not in (run.shape, run.shape[1:]):
        raise ValueError(
            f"paired_difference needs the same seeds and prompts, got shapes {run.shape} and {other.shape}"
        )
    return two_way(run - other)


def independent_difference(run: npt.ArrayLike, other: npt.ArrayLike) -> Estimate:
    """Mean of run[seed, prompt] - other[seed, prompt] with its interval: other seeds, the same prompts.

    Model: `x[s, p] = mu + a[s] + b[p] + e[s, p]` and `y[t, p] = nu + c[t] + d[p] + f[t, p]`, with S and T seeds and P
    prompts. Seed effects and rests are independent between the two; `b[p]` and `d[p]` are not, so only the spread of
    `g[p] = b[p] - d[p]` counts. The difference of the grand means has the variance

        var(a) / S + var(c) / T + var(g) / P + var(e) / (S P) + var(f) / (T P)

    The mean squares of seeds have the expectations `P var(a) + var(e)` and `P var(c) + var(f)`, those of the rests
    `var(e)` and `var(f)`, and the variance (ddof 1) over prompts of `mean_s x[s, p] - mean_t y[t, p]`, called MS_g,
    has `var(g) + var(e) / S + var(f) / T`. So the variance is estimated without bias by

        MS_a / (S P) + MS_c / (T P) + MS_g / P - MS_e / (S P) - MS_f / (T P)

    As in `two_way`, a component estimated below 0 counts as 0, which can only widen the interval, and the degrees of
    freedom follow Satterthwaite: the estimate squared over the sum of its squared terms, each over its own degrees of
    freedom, at least those of the smallest factor. For equal seeds use `paired_difference`, whose interval is shorter.

    p is that of the t test. Simulated coverage of the 95 % interval, 16 to 64 prompts, each variance from 0 to
    dominant, the two sides alike or not: .94 to .99 with 3 or 5 seeds on a side; above .97 only where seeds matter
    little. Level, 36 prompts: with equal numbers of seeds a p of .01 comes with a chance of .006 to .019; with 3 seeds
    against 10, where seeds dominate, of .02 to .03, and a p of .001 then up to thirteen times too often. So give both
    sides equally many seeds. Fewer than 3 on a side: no interval and no p (NaN). Normal effects are assumed.
    """
    x, y = np.asarray(run, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"independent_difference needs the same prompts, got shapes {x.shape} and {y.shape}")
    mean = float(x.mean() - y.mean()) if x.size and y.size else float("nan")
    if min(len(x), len(y)) < LEAST_SEEDS or x.shape[1] < 2:
        return Estimate(mean, *(float("nan"),) * 5)
    prompts = x.shape[1]
    (seeds_x, rest_x), (seeds_y, rest_y) = (_seed_squares(side) for side in (x, y))
    apart = float((x.mean(0) - y.mean(0)).var(ddof=1)) / prompts
    variance = max(seeds_x - rest_x, 0.0) + max(seeds_y - rest_y, 0.0) + max(apart, rest_x + rest_y)
    df_x, df_y, df_p = len(x) - 1, len(y) - 1, prompts - 1
    spread = seeds_x**2 / df_x + seeds_y**2 / df_y + apart**2 / df_p
    spread += rest_x**2 / (df_x * df_p) + rest_y**2 / (df_y * df_p)
    least, most = min(df_x, df_y, df_p), (df_x + df_y) * df_p
    df = min(max(variance**2 / spread, least), most) if spread > 0 else least
    return _estimate(mean, float(np.sqrt(variance)), df)


def _seed_squares(x: Array) -> tuple[float, float]:
    """Mean squares of the seeds and of the rest of x[seed, prompt], both over the number of cells."""
    by_seed, _, rest = mean_squares(x)
    return float(by_seed) / x.size, float(rest) / x.size


def unpaired_difference(run: npt.ArrayLike, other: npt.ArrayLike) -> Estimate:
    """Mean of run[seed, prompt] - other[seed, prompt] with its interval: other seeds, other prompts.

    The two grand means are independent, so their variances (`two_way`) add, and so do, after Satterthwaite, the
    variances squared over their degrees of freedom: Welch's t test with two-way variances.
    Its level, simulated, is that of `independent_difference`. Fewer than 3 seeds on a side: no interval and no p
    (NaN).
    """
    one, two = two_way(run), two_way(other)
    variance = one.se**2 + two.se**2
    spread = one.se**4 / one.df + two.se**4 / two.df
    df = variance**2 / spread if spread > 0 else min(one.df, two.df)
    mean = one.mean - two.mean
    return (
        Estimate(mean, *(float("nan"),) * 5) if np.isnan(variance) else _estimate(mean, float(np.sqrt(variance)), df)
    )


def _unknown(x: Array) -> Estimate:
    nan = float("nan")
    return Estimate(float(x.mean()) if x.size else nan, nan, nan, nan, nan, nan)


def _estimate(mean: float, se: float, df: float) -> Estimate:
    half = float(stdtrit(df, (1 + CONFIDENCE) / 2)) * se
    t = abs(mean) / se if se > 0 else (0.0 if mean == 0 else float("inf"))
    return Estimate(mean, se, float(df), mean - half, mean + half, 2 * float(stdtr(df, -t)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the same order; NaN (no test possible) stays NaN and does not count."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * float(p[i])))
        adjusted[i] = largest
    return adjusted.tolist()


def equivalence_margin(estimate: Estimate) -> float:
    """The smallest margin within which a difference is shown to lie, in its unit: |difference| < margin at 5 %.

    Two one-sided t tests, each at 5 % (TOST; Schuirmann 1987), both succeed for every margin above the largest
    absolute limit of the 90 % interval. So two rows may be called alike only together with this margin. NaN if
    unknown.
    """
    half = float(stdtrit(estimate.df, 1 - LEVEL)) * estimate.se
    return abs(estimate.mean) + half


def detectable_effect(se: float, df: float, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest true difference that a two-sided t test finds with this power, for an estimate's se and df.

    `level` is that of the test; with n tests in a family give LEVEL / n, the first step of Holm's method. For paired
    differences the test is another one: use `power.detectable_difference`.

    Solves the non-central t exactly (the chance of the wrong sign, below 1e-4 at a power of 0.8, is left out).
    """
    if not (se >= 0 and df > 0):
        return float("nan")
    return float(nctdtrinc(df, 1 - power, stdtrit(df, 1 - level / 2))) * se
