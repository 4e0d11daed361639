"""Interquartile mean and probability of improvement with bootstrap intervals; no claim rests on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from bench.report.data.variance import CONFIDENCE, LEAST_SEEDS, Array

Indices = npt.NDArray[np.int64]

BOOTSTRAP_DRAWS = 10_000
#: Draws of one bootstrap chunk are limited to about this many numbers (64 MB of float64).
CHUNK = 8_000_000


class Interval(NamedTuple):
    """A number with its two-sided 95 % interval; limits are NaN where the data do not suffice."""

    value: float
    lo: float
    hi: float


def interquartile_mean(x: npt.ArrayLike, axis: int | None = None) -> Array:
    """Mean of the values without the lowest and the highest quarter (Agarwal et al. 2021, arXiv 2108.13264)."""
    x = np.asarray(x, dtype=np.float64)
    if axis is None:
        x, axis = x.reshape(-1), 0
    x = np.sort(np.moveaxis(x, axis, -1), axis=-1)
    cut = int(0.25 * x.shape[-1])
    return np.asarray(x[..., cut : x.shape[-1] - cut].mean(-1))


def improvement(run: npt.ArrayLike, other: npt.ArrayLike) -> Array:
    """P(run > other) per prompt over all pairs of seeds, ties one half, averaged over prompts; [..., seed, prompt]."""
    run, other = np.asarray(run, dtype=np.float64), np.asarray(other, dtype=np.float64)
    a, b = run[..., :, None, :], other[..., None, :, :]
    return np.asarray(((a > b) + 0.5 * (a == b)).mean((-3, -2, -1)))


def bootstrap_iqm(x: npt.ArrayLike, rng: np.random.Generator, draws: int = BOOTSTRAP_DRAWS) -> Interval:
    """Interquartile mean over the cells x[seed, prompt]; seeds and prompts are both drawn again with replacement.

    With three seeds a bootstrap interval is too narrow (simulated coverage .74 to .96), so no claim is based on it.
    Of x[prompt], a model without seeds, the prompts are drawn. No limits (NaN) below 3 seeds, and where all draws are
    equal: a bootstrap cannot show how far such a number may be off.
    """
    x, few = np.atleast_2d(np.asarray(x, dtype=np.float64)), _few_seeds(x)

    def statistic(n: int) -> Array:
        return interquartile_mean(_draw(x, *_indices(x.shape, n, rng)).reshape(n, -1), axis=1)

    value = float(interquartile_mean(x))
    lo, hi = _percentiles(statistic, x.size, draws)
    return _unlimited(value) if few or lo == hi else Interval(value, lo, hi)


def bootstrap_improvement(
    run: npt.ArrayLike, other: npt.ArrayLike, rng: np.random.Generator, draws: int = BOOTSTRAP_DRAWS
) -> Interval:
    """Probability of improvement of run[seed, prompt] over other ([seed, prompt], or [prompt] for the base).

    The seeds of both are drawn independently, the prompts together (both rows have the same prompts). Where a limit
    reaches 0 or 1, or all draws are equal, draws cannot show what other prompts would: the interval is then Wilson's
    (1927) with the prompts as trials, which takes the trained runs as they are. No limits (NaN) below 3 seeds of
    `run`, or of `other` if it has seeds.
    """
    few = _few_seeds(run) or _few_seeds(other)
    run, other = np.atleast_2d(np.asarray(run, dtype=np.float64)), np.atleast_2d(np.asarray(other, dtype=np.float64))
    if run.shape[1] != other.shape[1]:
        raise ValueError(f"bootstrap_improvement needs the same prompts, got shapes {run.shape} and {other.shape}")

    def statistic(n: int) -> Array:
        rows, columns = _indices(run.shape, n, rng)
        others = rng.integers(other.shape[0], size=(n, other.shape[0]))
        return improvement(_draw(run, rows, columns), _draw(other, others, columns))

    value = float(improvement(run, other))
    if few:
        return _unlimited(value)
    lo, hi = _percentiles(statistic, run.size * other.shape[0], draws)
    return Interval(value, *(wilson(value, run.shape[1]) if lo == hi or lo == 0 or hi == 1 else (lo, hi)))


def wilson(share: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of a share in [0, 1] of `trials` independent trials."""
    z = float(ndtri((1 + CONFIDENCE) / 2))
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def _few_seeds(x: npt.ArrayLike) -> bool:
    """Whether x[seed, prompt] has too few seeds for an interval; x[prompt] is one model and has none."""
    return np.ndim(x) == 2 and len(np.asarray(x)) < LEAST_SEEDS


def _unlimited(value: float) -> Interval:
    return Interval(value, float("nan"), float("nan"))


def _indices(shape: tuple[int, ...], n: int, rng: np.random.Generator) -> tuple[Indices, Indices]:
    return rng.integers(shape[0], size=(n, shape[0])), rng.integers(shape[1], size=(n, shape[1]))


def _draw(x: Array, rows: Indices, columns: Indices) -> Array:
    """Cells of each bootstrap draw, [draw, seed, prompt]."""
    return x[rows[:, :, None], columns[:, None, :]]


def _percentiles(statistic: Callable[[int], Array], size: int, draws: int) -> tuple[float, float]:
    """Limits of the percentile interval of `statistic(n)`, which returns n draws; in chunks, to bound the memory."""
    chunk = max(1, min(draws, CHUNK // max(1, size)))
    parts = [statistic(min(chunk, draws - start)) for start in range(0, draws, chunk)]
    lo, hi = np.quantile(np.concatenate(parts), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(lo), float(hi)
