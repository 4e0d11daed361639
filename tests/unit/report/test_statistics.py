"""Intervals: exact on small data, right in coverage by simulation, equal to scipy where scipy has the same."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bench.report.data import statistics


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
    assert two == pytest.approx(one, rel=1e-9)
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


def test_too_little_data_gives_no_interval() -> None:
    for x in (np.ones((1, 8)), np.ones((3, 1))):
        estimate = statistics.two_way(x)
        assert estimate.mean == 1
        assert np.isnan([estimate.lo, estimate.hi, estimate.p]).all()
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


@pytest.mark.parametrize("n", [4, 7, 96])
def test_interquartile_mean_is_scipys_trimmed_mean(n: int) -> None:
    x = np.random.default_rng(n).normal(size=n)
    assert statistics.interquartile_mean(x) == pytest.approx(scipy_stats.trim_mean(x, 0.25))


def test_improvement_counts_pairs_and_half_of_ties() -> None:
    run, other = np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([[2.0, 2.0]])
    # prompt 0: 1 > 2 no, 3 > 2 yes = .5; prompt 1: two ties = .5
    assert statistics.improvement(run, other) == 0.5
    interval = statistics.bootstrap_improvement(run + 10, other, np.random.default_rng(0), draws=50)
    assert interval == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="same prompts"):
        statistics.bootstrap_improvement(run, np.ones((1, 3)), np.random.default_rng(0))


def test_bootstrap_depends_on_its_generator_only() -> None:
    x = np.random.default_rng(1).normal(size=(3, 16))
    first, second = (statistics.bootstrap_iqm(x, np.random.default_rng(4)) for _ in range(2))
    assert first == second
    assert first.lo < first.value < first.hi
    assert statistics.bootstrap_iqm(x, np.random.default_rng(5)) != first


def test_bootstrap_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(12.0).reshape(3, 4)
    monkeypatch.setattr(statistics, "CHUNK", 1)
    interval = statistics.bootstrap_iqm(x, np.random.default_rng(0), draws=200)
    assert interval.value == pytest.approx(5.5)
    assert interval.lo < 5.5 < interval.hi
