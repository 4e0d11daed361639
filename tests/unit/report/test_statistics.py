"""Intervals: exact on small data, right in coverage by simulation, equal to scipy where scipy has the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.special import gammaincinv, ndtr

from bench.report.data import resampling, statistics, variance


def simulated(seeds: int, prompts: int, sd: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    by_seed, by_prompt, rest = sd
    effects = rng.normal(0, by_seed, (seeds, 1)) + rng.normal(0, by_prompt, (1, prompts))
    return effects + rng.normal(0, rest, (seeds, prompts))


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("sd", [(0.1, 1.0, 0.3), (0.2, 0.5, 0.5), (1.0, 0.1, 0.3), (0.5, 1.0, 1.0)])
def test_interval_covers_the_true_mean(seeds: int, sd: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(seeds)
    repeats = 600
    inside = 0
    for _ in range(repeats):
        estimate = statistics.two_way(simulated(seeds, 32, sd, rng))
        inside += estimate.lo <= 0 <= estimate.hi
    # binomial standard error at .95 and 600 repeats: .009
    assert 0.92 <= inside / repeats <= 0.98


def test_interval_of_a_difference_to_the_base_covers_it() -> None:
    rng = np.random.default_rng(7)
    inside = 0
    for _ in range(400):
        base = rng.normal(0, 1, 32) + rng.normal(0, 0.2, 32)
        run = base + 0.3 + simulated(3, 32, (0.1, 0.2, 0.3), rng)
        estimate = statistics.paired_difference(run, base)
        inside += estimate.lo <= 0.3 <= estimate.hi
    assert 0.92 <= inside / 400 <= 0.985


def test_seeds_are_not_treated_as_more_prompts() -> None:
    """A seed effect alone: 3 runs are 3 numbers, however many prompts there are."""
    x = np.array([[0.0], [1.0], [2.0]]) + np.zeros((1, 50))
    estimate = statistics.two_way(x)
    alone = scipy_stats.t.interval(0.95, 2, loc=1.0, scale=1.0 / np.sqrt(3))
    assert (estimate.lo, estimate.hi) == pytest.approx(alone, rel=1e-9)
    assert estimate.df == pytest.approx(2)


def test_a_prompt_effect_alone_is_a_one_way_interval() -> None:
    prompts = np.random.default_rng(0).normal(size=20)
    two, one = statistics.two_way(np.tile(prompts, (4, 1))), statistics.one_way(prompts)
    assert two[:5] == pytest.approx(one[:5], rel=1e-9)
    assert two.p == pytest.approx(one.p, rel=1e-3)
    assert one.p == pytest.approx(scipy_stats.ttest_1samp(prompts, 0).pvalue, rel=1e-9)


def test_variance_is_the_anova_combination() -> None:
    x = simulated(4, 10, (1.0, 1.0, 0.5), np.random.default_rng(3))
    mean = x.mean()
    rest = x - x.mean(1, keepdims=True) - x.mean(0, keepdims=True) + mean
    ms_s = 10 * ((x.mean(1) - mean) ** 2).sum() / 3
    ms_p = 4 * ((x.mean(0) - mean) ** 2).sum() / 9
    ms_e = (rest**2).sum() / 27
    assert min(ms_s, ms_p) > ms_e
    assert statistics.two_way(x).se == pytest.approx(np.sqrt((ms_s + ms_p - ms_e) / 40))


def test_a_negative_component_never_narrows_the_interval() -> None:
    """Rows with equal means: the seeds' estimate is negative and must not be subtracted from the prompts' share."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(3, 16))
    x -= x.mean(1, keepdims=True)
    ms_p = 3 * (x.mean(0) ** 2).sum() / 15
    assert statistics.two_way(x).se >= np.sqrt(ms_p / 48)


@pytest.mark.parametrize("shape", [(1, 8), (2, 8), (3, 1)])
def test_too_little_data_gives_no_interval_and_no_test(shape: tuple[int, int]) -> None:
    """Two seeds are two numbers: nothing is known about their spread."""
    x = np.random.default_rng(0).normal(size=shape)
    kinds = [statistics.two_way(x), statistics.paired_difference(x, np.zeros(shape[1]))]
    for other in (np.zeros((4, shape[1])), np.zeros((4, 9))):
        difference = (
            statistics.independent_difference if other.shape[1] == shape[1] else statistics.unpaired_difference
        )
        kinds += [difference(x, other)]
    if shape[0] < 3:
        kinds += [statistics.t_over_seeds(x), statistics.grouped(x, [p % 2 for p in range(shape[1])])]
    for estimate in kinds:
        assert estimate.mean == pytest.approx(x.mean())
        assert np.isnan([estimate.se, estimate.lo, estimate.hi, estimate.p]).all()
        assert np.isnan(statistics.equivalence_margin(estimate))
    assert np.isnan(statistics.two_way(np.empty((0, 8))).mean)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="same seeds and prompts"):
        statistics.paired_difference(np.ones((3, 4)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="seed, prompt"):
        statistics.two_way(np.ones(3))
    with pytest.raises(ValueError, match="one_way"):
        statistics.one_way(np.ones((3, 4)))


def test_rows_pair_by_seed_and_prompt() -> None:
    rng = np.random.default_rng(2)
    shared = simulated(3, 16, (2.0, 2.0, 2.0), rng)
    estimate = statistics.paired_difference(shared + 0.1, shared)
    assert (estimate.lo, estimate.hi) == pytest.approx((0.1, 0.1))


# the generalized test ---------------------------------------------------------------------------------------------
def fine_p(mean: float, squares: tuple[float, float, float], seeds: int, prompts: int, n: int = 100) -> float:
    """The definition, on a grid of its own: midpoints of n probabilities, those of small quantiles closer together."""
    w = (np.arange(n) + 0.5) / n
    chance, weight = w**4, 4 * w**3 / n
    by_df = [df / (2 * gammaincinv(df / 2, chance)) for df in (seeds - 1, prompts - 1, (seeds - 1) * (prompts - 1))]
    a, b, e = (square * factor for square, factor in zip(squares, by_df, strict=True))
    total = 0.0
    for value, share in zip(e, weight, strict=True):
        rows, columns = a[:, None], b[None, :]
        v = np.maximum.reduce(np.broadcast_arrays(rows + columns - value, rows, columns, np.asarray(value)))
        p = 2 * ndtr(-abs(mean) / np.sqrt(v / (seeds * prompts)))
        total += share * float(weight @ p @ weight)
    return total / weight.sum() ** 3


@pytest.mark.parametrize(("seeds", "prompts"), [(3, 36), (5, 36), (10, 12), (3, 4)])
@pytest.mark.parametrize("sd", [(1.0, 0.1, 0.3), (0.2, 1.0, 0.5), (0.3, 0.3, 1.0)])
def test_the_generalized_p_is_its_definition(seeds: int, prompts: int, sd: tuple[float, float, float]) -> None:
    squares = variance.mean_squares(simulated(seeds, prompts, sd, np.random.default_rng(1)))
    values = tuple(map(float, squares))
    se = float(variance.standard_error(squares, seeds, prompts)[0])
    for mean in (0.5 * se, 2 * se, 6 * se, 15 * se):
        expected = fine_p(mean, (values[0], values[1], values[2]), seeds, prompts)
        if expected > 5e-5:
            found = variance.generalized_p(np.array([mean, -mean]), squares, seeds, prompts)
            assert found.tolist() == pytest.approx([expected] * 2, rel=2e-3)


def test_the_p_of_one_source_of_spread_is_that_of_its_t_test() -> None:
    by_seed = np.array([[0.4], [0.9], [1.3], [0.2]]) + np.zeros((1, 6))
    expected = scipy_stats.ttest_1samp(by_seed[:, 0], 0).pvalue
    assert statistics.two_way(by_seed).p == pytest.approx(expected, rel=1e-3)
    assert statistics.two_way(by_seed[:, :1].T + np.zeros((5, 1))).p == pytest.approx(expected, rel=1e-3)


def test_the_p_is_never_below_those_of_the_t_tests_over_seeds_and_over_prompts() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        x = (
            rng.normal(0, 1, (3, 1)) * rng.random()
            + rng.normal(0, 1, (1, 8)) * rng.random()
            + rng.normal(0, 1, (3, 8))
        )
        x = x + rng.normal()
        floor = max(scipy_stats.ttest_1samp(x.mean(axis), 0).pvalue for axis in (0, 1))
        assert floor * (1 - 1e-3) <= statistics.two_way(x).p <= 1


def test_seeds_that_agree_by_luck_do_not_make_a_small_p() -> None:
    """Three seeds that vary less than the prompts: Satterthwaite's degrees of freedom jump from 2 to more than 10."""
    squares = (np.array(0.4), np.array(1.0), np.array(0.05))
    se, df = variance.standard_error(squares, 3, 36)
    assert df > 10
    t_test = 2 * scipy_stats.t.sf(5.0, float(df))
    assert variance.generalized_p(5 * se, squares, 3, 36) > 20 * t_test


def test_data_without_any_spread_are_certain() -> None:
    assert statistics.two_way(np.zeros((3, 4))).p == 1
    assert statistics.two_way(np.ones((3, 4))).p == 0


def test_a_stack_of_data_sets_is_computed_as_each_of_them() -> None:
    x = np.random.default_rng(3).normal(0.2, 1, (7, 4, 9))
    squares = variance.mean_squares(x)
    se, df = variance.standard_error(squares, 4, 9)
    p = variance.generalized_p(x.mean((1, 2)), squares, 4, 9)
    for i, one in enumerate(map(statistics.two_way, x)):
        assert (se[i], df[i], p[i]) == pytest.approx((one.se, one.df, one.p), rel=1e-12)


# fixed prompts, groups of prompts, equivalence --------------------------------------------------------------------
def test_with_fixed_prompts_only_the_seeds_vary() -> None:
    x = simulated(4, 10, (0.3, 5.0, 0.5), np.random.default_rng(8)) + 0.2
    estimate, expected = statistics.t_over_seeds(x), scipy_stats.ttest_1samp(x.mean(1), 0)
    assert estimate.p == pytest.approx(expected.pvalue)
    assert (estimate.lo, estimate.hi) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert estimate == pytest.approx(statistics.t_over_seeds(x[:, ::-1]))


def test_a_group_counts_once_whatever_the_number_of_its_prompts() -> None:
    rng = np.random.default_rng(9)
    by_group = rng.normal(size=(3, 4))
    groups = ["red", "green", "red", "blue", "red", "grey"]
    x = by_group[:, [("red", "green", "blue", "grey").index(group) for group in groups]]
    assert statistics.grouped(x, groups) == statistics.two_way(by_group)
    assert statistics.grouped(x, range(6)) == statistics.two_way(x)
    with pytest.raises(ValueError, match="one group per prompt, got 5 groups for 6 prompts"):
        statistics.grouped(x, groups[:5])


def test_prompts_that_are_alike_within_their_group_are_fewer_than_they_seem() -> None:
    rng = np.random.default_rng(10)
    groups = np.repeat(np.arange(6), 6)
    x = rng.normal(0, 1, 6)[groups] + rng.normal(0, 0.1, (5, 36))
    one, other = statistics.two_way(x), statistics.grouped(x, groups.tolist())
    assert other.mean == pytest.approx(one.mean)
    assert other.se > 2 * one.se


def test_the_margin_of_equivalence_is_the_far_limit_of_the_90_percent_interval() -> None:
    x = np.array([[0.4], [0.1], [0.3]]) + np.zeros((1, 5))
    limits = scipy_stats.t.interval(0.9, 2, loc=0.8 / 3, scale=x[:, 0].std(ddof=1) / np.sqrt(3))
    assert statistics.equivalence_margin(statistics.two_way(x)) == pytest.approx(limits[1], rel=1e-9)
    assert statistics.equivalence_margin(statistics.two_way(-x)) == pytest.approx(limits[1], rel=1e-9)
    assert statistics.equivalence_margin(statistics.two_way(np.zeros((3, 5)))) == 0


def test_holm_is_stepwise_and_keeps_order() -> None:
    # by hand: .01 * 3, then max(.03, .03 * 2), then max(.06, .04)
    assert statistics.holm([0.04, 0.01, float("nan"), 0.03]) == pytest.approx(
        [0.06, 0.03, float("nan"), 0.06], nan_ok=True
    )
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


@pytest.mark.parametrize("df", [2.0, 7.5, 60.0])
def test_detectable_effect_has_the_power_it_promises(df: float) -> None:
    effect = statistics.detectable_effect(0.5, df)
    power = 1 - scipy_stats.nct.cdf(scipy_stats.t.ppf(0.975, df), df, effect / 0.5)
    assert power == pytest.approx(0.8, abs=1e-6)
    assert np.isnan(statistics.detectable_effect(float("nan"), df))
    strict = statistics.detectable_effect(0.5, df, level=0.05 / 6)
    power = 1 - scipy_stats.nct.cdf(scipy_stats.t.ppf(1 - 0.05 / 12, df), df, strict / 0.5)
    assert power == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("n", [4, 7, 96])
def test_interquartile_mean_is_scipys_trimmed_mean(n: int) -> None:
    x = np.random.default_rng(n).normal(size=n)
    assert statistics.interquartile_mean(x) == pytest.approx(scipy_stats.trim_mean(x, 0.25))


def test_improvement_counts_pairs_and_half_of_ties() -> None:
    run, other = np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([[2.0, 2.0]])
    # prompt 0: 1 > 2 no, 3 > 2 yes = .5; prompt 1: two ties = .5
    assert statistics.improvement(run, other) == 0.5
    with pytest.raises(ValueError, match="same prompts"):
        statistics.bootstrap_improvement(run, np.ones((1, 3)), np.random.default_rng(0))


def test_a_bootstrap_at_its_boundary_gives_way_to_wilsons_interval() -> None:
    """36 of 36 prompts are no certainty: all draws would give 1."""
    better, base = np.ones((3, 36)), np.zeros(36)
    expected = scipy_stats.binomtest(36, 36).proportion_ci(method="wilson")
    rng = np.random.default_rng(0)
    interval = statistics.bootstrap_improvement(better, base, rng, draws=50)
    assert interval == pytest.approx((1.0, expected.low, 1.0))
    assert statistics.bootstrap_improvement(-better, base, rng, draws=50) == pytest.approx(
        (0.0, 0.0, 1 - expected.low)
    )
    ties = statistics.bootstrap_improvement(0 * better, base, rng, draws=50)
    half = scipy_stats.binomtest(18, 36).proportion_ci(method="wilson")
    assert ties == pytest.approx((0.5, half.low, half.high))
    better[:, 0] = -1
    almost = statistics.bootstrap_improvement(better, base, rng, draws=200)
    expected = scipy_stats.binomtest(35, 36).proportion_ci(method="wilson")
    assert almost == pytest.approx((35 / 36, expected.low, expected.high))


def test_a_bootstrap_inside_its_range_keeps_its_percentiles() -> None:
    rng = np.random.default_rng(2)
    interval = statistics.bootstrap_improvement(rng.normal(0.3, 1, (4, 30)), rng.normal(0, 1, 30), rng, draws=200)
    assert 0 < interval.lo < interval.value < interval.hi < 1
    assert (interval.lo, interval.hi) != pytest.approx(resampling.wilson(interval.value, 30))


def test_a_bootstrap_of_few_seeds_or_of_equal_cells_has_no_limits() -> None:
    x, rng = np.random.default_rng(1).normal(size=(2, 16)), np.random.default_rng(0)
    few: list[Any] = [statistics.bootstrap_iqm(x, rng, 50), statistics.bootstrap_improvement(x, x[0], rng, 50)]
    for interval in [*few, statistics.bootstrap_iqm(np.ones((3, 16)), rng, 50)]:
        assert np.isfinite(interval.value)
        assert np.isnan([interval.lo, interval.hi]).all()
    assert np.isfinite(statistics.bootstrap_iqm(x[0], rng, 50)).all(), "a model without seeds has its prompts"


def test_bootstrap_depends_on_its_generator_only() -> None:
    x = np.random.default_rng(1).normal(size=(3, 16))
    first, second = (statistics.bootstrap_iqm(x, np.random.default_rng(4)) for _ in range(2))
    assert first == second
    assert first.lo < first.value < first.hi
    assert statistics.bootstrap_iqm(x, np.random.default_rng(5)) != first


def test_bootstrap_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(12.0).reshape(3, 4)
    monkeypatch.setattr(resampling, "CHUNK", 1)
    interval = statistics.bootstrap_iqm(x, np.random.default_rng(0), draws=200)
    assert interval.value == pytest.approx(5.5)
    assert interval.lo < 5.5 < interval.hi
