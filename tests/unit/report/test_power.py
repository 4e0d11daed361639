"""Power: that of the test which is made, for differences that can be found and for seeds that find them."""

from __future__ import annotations

import numpy as np
import pytest

from bench.report.data.power import COARSE, Spread, critical_mean, detectable_difference, estimate_spread, seeds_needed
from bench.report.data.statistics import detectable_effect, two_way
from bench.report.data.variance import generalized_p, mean_squares

OF_SEEDS = np.repeat(np.array([-1.0, 0.0, 1.0])[:, None], 16, axis=1)


def spread_data(seeds: int = 5, prompts: int = 12) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(0, 1, (seeds, prompts)) + rng.normal(0, 1, (seeds, 1)) + rng.normal(0, 1, (1, prompts))


def with_mean(x: np.ndarray, mean: float) -> np.ndarray:
    return x - x.mean() + mean


@pytest.mark.parametrize("level", [0.05, 0.05 / 6])
@pytest.mark.parametrize("seeds", [3, 5])
def test_a_detectable_difference_is_detected_with_the_power_it_promises(seeds: int, level: float) -> None:
    """Simulated from the mean squares' own distributions; the t test's effect has less power than it promises."""
    x, n = spread_data(seeds), 4000
    spread, prompts, rng = estimate_spread(x), x.shape[1], np.random.default_rng(1)
    expected, df = spread.squares(seeds, prompts), (seeds - 1, prompts - 1, (seeds - 1) * (prompts - 1))
    by_seed, by_prompt, rest = (square * rng.chisquare(k, n) / k for square, k in zip(expected, df, strict=True))
    noise = rng.normal(size=n) * np.sqrt((expected[0] + expected[1] - expected[2]) / x.size)
    estimate = two_way(x)
    powers = []
    for effect in (detectable_difference(x, level), detectable_effect(estimate.se, estimate.df, level)):
        p = [
            generalized_p(effect + noise[i], (by_seed[i], by_prompt[i], rest[i]), seeds, prompts, COARSE)
            for i in np.split(np.arange(n), 20)
        ]
        powers.append(float((np.concatenate(p) <= level).mean()))
    assert powers[0] == pytest.approx(0.8, abs=0.025)  # standard error .006
    assert powers[1] < 0.775


def test_at_the_critical_mean_p_is_the_level() -> None:
    squares = mean_squares(np.random.default_rng(2).normal(size=(20, 4, 12)))
    mean = critical_mean(squares, 4, 12, 0.01)
    assert generalized_p(mean, squares, 4, 12) == pytest.approx(np.full(20, 0.01), rel=0.015)  # a coarser grid


def test_the_seeds_that_settle_a_difference_are_those_of_its_test() -> None:
    """With as many seeds as measured the limit is the detectable difference; below it more seeds are needed."""
    x = spread_data()
    limit = detectable_difference(x)
    assert seeds_needed(with_mean(x, limit * 1.0001)) == 5
    assert seeds_needed(with_mean(x, -limit * 1.0001)) == 5
    more = seeds_needed(with_mean(x, limit * 0.9))
    assert more is not None
    assert more > 5


def test_where_only_seeds_vary_it_is_the_t_test() -> None:
    """Three seeds of standard deviation 1: Student's t with 2 degrees of freedom."""
    assert detectable_difference(OF_SEEDS) == pytest.approx(detectable_effect(1 / np.sqrt(3), 2), rel=1e-2)


def test_more_tests_need_more_seeds_and_larger_differences() -> None:
    alone, of_six = seeds_needed(0.9 + OF_SEEDS), seeds_needed(0.9 + OF_SEEDS, tests=6)
    assert alone is not None
    assert of_six is not None
    assert of_six > alone >= 3
    assert detectable_difference(OF_SEEDS, 0.05 / 6) > detectable_difference(OF_SEEDS)


def test_no_number_of_seeds_settles_what_the_prompts_hide() -> None:
    x = np.tile(np.array([-1.0, 1.0, -1.0, 1.0]), (3, 1)) + 0.01
    assert seeds_needed(x) is None


def test_too_few_seeds_say_nothing_about_more() -> None:
    for x in (OF_SEEDS[:2], OF_SEEDS[:, :1], OF_SEEDS[0]):
        assert seeds_needed(x) is None
        assert np.isnan(detectable_difference(x))


def test_data_without_spread_show_every_difference() -> None:
    assert detectable_difference(np.ones((3, 4))) == 0
    assert seeds_needed(np.ones((3, 4))) == 3


def test_a_spread_below_zero_counts_as_none() -> None:
    x = np.random.default_rng(5).normal(size=(3, 16))
    assert estimate_spread(x - x.mean(1, keepdims=True)).seeds == 0
    assert Spread(1.0, 0.5, 0.25).squares(4, 10) == (10.25, 2.25, 0.25)
