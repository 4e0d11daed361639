"""The tests hold their level in simulated data, and the simulation computes what the tables compute."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bench.report.data.power import Spread
from bench.report.data.statistics import two_way
from bench.report.data.variance import mean_squares
from tools.levels.page import COMMAND, PAGE
from tools.levels.simulation import LEVELS, PROMPTS, SHAPES, Figures, bounded_p, family_wise, simulate, single, t_p

SETS, FAMILIES = 10_000, 5_000
#: Standard errors that a simulated share may exceed its level by.
MARGIN = 3.0


def spread(seeds: int) -> Spread:
    """Seeds have 65 % of the variance of the mean, prompts 30 %, the rest 5 %, as in the stored differences."""
    return Spread(0.65 * seeds, 0.30 * PROMPTS, 0.05 * seeds * PROMPTS)


def bound(level: float, sets: int) -> float:
    return level + MARGIN * float(np.sqrt(level * (1 - level) / sets))


@pytest.fixture(scope="module", params=[3, 5, 8])
def figures(request: pytest.FixtureRequest) -> tuple[int, Figures]:
    return request.param, single(np.random.default_rng(request.param), SETS, request.param, spread(request.param))


def test_a_difference_that_is_not_there_is_found_as_rarely_as_its_level_says(figures: tuple[int, Figures]) -> None:
    seeds, found = figures
    for level, share in zip(LEVELS, found.generalized, strict=True):
        assert share <= bound(level, SETS), f"{seeds} seeds at {level}"
    assert found.generalized[0] > 0.02, "the test is not empty"


def test_the_interval_covers_and_the_margin_of_equivalence_holds(figures: tuple[int, Figures]) -> None:
    found = figures[1]
    assert found.coverage == pytest.approx(0.95, abs=0.03)
    assert found.outside_margin <= bound(0.065, SETS)


def test_the_older_test_does_not_hold_its_level() -> None:
    """What the bounds above can find: the t test with estimated degrees of freedom fails them at few seeds."""
    for seeds in (3, 5):
        found = single(np.random.default_rng(seeds), SETS, seeds, spread(seeds))
        assert found.older[2] > bound(LEVELS[2], SETS)


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_four_equal_rows_are_called_different_as_rarely_as_holm_promises(seeds: int) -> None:
    older, newer = family_wise(np.random.default_rng(seeds), FAMILIES, seeds, spread(seeds))
    assert newer <= bound(0.05, FAMILIES)
    if seeds == 3:
        assert older > bound(0.05, FAMILIES), "the t test fails this bound"


@pytest.mark.parametrize("shape", list(SHAPES))
def test_seed_effects_have_the_mean_and_the_variance_that_they_are_given(shape: str) -> None:
    effects = simulate(np.random.default_rng(0), 20_000, 3, 2, Spread(4.0, 0.0, 0.0), shape)[..., 0]
    assert float(effects.mean()) == pytest.approx(0, abs=0.04)
    assert float(effects.var()) == pytest.approx(4, rel=0.06)


def test_the_simulation_has_the_numbers_of_the_tables() -> None:
    x = simulate(np.random.default_rng(2), 60, 4, 9, Spread(0.2, 0.3, 1.0), "skewed") + 0.6
    mean, squares = x.mean((-2, -1)), mean_squares(x)
    p, older = bounded_p(mean, squares, 4, 9, above=1.0), t_p(mean, squares, 4, 9)
    small = bounded_p(mean, squares, 4, 9, above=0.05)
    for i, estimate in enumerate(map(two_way, x)):
        assert p[i] == pytest.approx(estimate.p, rel=1e-12)
        assert small[i] == pytest.approx(estimate.p, rel=1e-12) or 0.05 < small[i] <= estimate.p
        assert older[i] == pytest.approx(
            2 * float(stats.t.sf(abs(estimate.mean) / estimate.se, estimate.df)), rel=1e-9
        )


def test_the_page_names_its_command() -> None:
    assert f"`{COMMAND}`" in PAGE.read_text(encoding="utf-8").split("## ")[0]
