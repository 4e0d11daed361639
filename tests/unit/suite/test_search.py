"""A search over settings: the same draws for every row, stored suites that read back equal, refused shortcuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import qmc

from bench.core.errors import BenchError
from bench.suite.load import load_suite, load_variants
from bench.suite.methods import make_method
from bench.suite.schema import RowSpec, Suite
from bench.suite.search import BASES, SearchSpec, Trial, radical_inverse, trial_of
from bench.suite.stored import write_suite

SPACE: dict[str, Any] = {"lr": [1e-4, 1e-3], "eta": [0.5, 2.0], "equalizer": ["off", "released"]}
VALIDATION = "evaluation={evaluators: [videoalign], steps: 20, videos_per_prompt: 4, prompts: validation, seed: 1000}"
SEARCH = [
    "search={trials: 3, lr: [1e-4, 1e-3], eta: [0.5, 2], equalizer: ['off', released]}",
    "seeds=[100]",
    VALIDATION,
]


def search_suite(*overrides: str) -> Suite:
    """Nano's suite with a search of three trials."""
    return load_suite("nano", [*SEARCH, *overrides])


def changed(row: RowSpec) -> tuple[Any, ...]:
    return row.lr, row.eta_factor, row.params.get("equalizer")


def test_every_row_becomes_the_default_and_the_same_draws() -> None:
    plain, suite = load_suite("nano"), search_suite()
    names = [row.name for row in plain.rows]
    assert [row.name for row in suite.rows] == [f"{name}.t{k}" for name in names for k in range(3)]
    for start, row in zip(range(0, len(suite.rows), 3), plain.rows, strict=True):
        default, *drawn = suite.rows[start : start + 3]
        assert default.model_copy(update={"label": row.label}) == row
        assert [changed(each) for each in drawn] == [changed(each) for each in suite.rows[1:3]]
        assert [(each.method, each.kl) for each in drawn] == [(row.method, row.kl)] * 2


def test_draws_lie_in_their_ranges_and_are_short_numbers() -> None:
    search = SearchSpec(trials=200, **SPACE)
    assert search.trial(0) == Trial(None, None, None)
    drawn = [search.trial(k) for k in range(1, 200)]
    lr, factor = (np.array([getattr(trial, name) for trial in drawn]) for name in ("lr", "eta_factor"))
    assert 1e-4 <= lr.min() <= 1.1e-4
    assert 9e-4 <= lr.max() <= 1e-3
    assert 0.5 <= factor.min() <= 0.52
    assert 1.92 <= factor.max() <= 2
    assert all(value == float(f"{value:.3g}") for value in [*lr, *factor])
    assert np.mean(lr < 10**-3.5) == pytest.approx(0.5, abs=0.02), "log-uniform"
    assert np.mean([trial.equalizer == "off" for trial in drawn]) == pytest.approx(0.5, abs=0.02)


def test_the_sequence_is_haltons() -> None:
    ours = [[radical_inverse(k, base) for base in sorted(BASES.values())] for k in range(20)]
    np.testing.assert_allclose(ours, qmc.Halton(3, scramble=False).random(20), atol=1e-15)


def test_eight_draws_of_the_learning_rate_are_spread_evenly() -> None:
    """One in each eighth of the range, whatever the shift, since base 2 is even over 8 numbers that follow."""
    search = SearchSpec(trials=9, seed=3, **SPACE)
    places = sorted(np.log10([search.trial(k).lr or 0 for k in range(1, 9)]) + 4)
    gaps = np.diff([*places, places[0] + 1])
    assert gaps.min() > 0.05
    assert gaps.max() < 0.26


def test_more_trials_keep_the_earlier_ones_and_a_seed_draws_others() -> None:
    few, many = (SearchSpec(trials=trials, **SPACE) for trials in (4, 40))
    assert [few.trial(k) for k in range(4)] == [many.trial(k) for k in range(4)]
    assert SearchSpec(trials=4, seed=1, **SPACE).trial(1) != few.trial(1)


def test_draws_do_not_change() -> None:
    assert SearchSpec(trials=4, **SPACE).trial(1) == Trial(0.000115, 1.01, "released")


def test_a_stored_search_reads_back_equal(tmp_path: Path) -> None:
    suite = search_suite("suite=mine")
    write_suite(tmp_path / "mine", [suite])
    assert load_suite(tmp_path / "mine").rows == suite.rows
    assert load_suite(tmp_path / "mine").search == suite.search
    assert Suite.model_validate(suite.model_dump(mode="json")) == suite, "the configuration of a record"


def test_the_rows_own_params_stay_beside_the_drawn_ones() -> None:
    rows = "rows=[{method: cps, params: {eta: 0.5, equalizer: derived}, label: mine}]"
    default, drawn, _ = search_suite(rows).rows
    assert default.params == {"eta": 0.5, "equalizer": "derived"}
    assert drawn.params["eta"] == 0.5
    assert drawn.params["equalizer"] != "derived"
    assert [default.name, drawn.name] == ["mine.t0", "mine.t1"]


def test_a_trial_leaves_out_what_the_method_lacks() -> None:
    forward, plain = "{method: awm, lacks: [eta, equalizer]}", "{method: cps}"
    suite = search_suite(f"rows=[{forward}, {plain}]", "search.trials=4")
    own, other = suite.rows[:4], suite.rows[4:]
    assert [row.lr for row in own] == [row.lr for row in other], "as many trials, at the same learning rates"
    assert {(row.eta_factor, *row.params) for row in own} == {(None,)}
    assert len({row.eta_factor for row in other}) == 4
    for row in suite.rows:
        make_method(suite, row)
    assert Suite.model_validate(suite.model_dump(mode="json")) == suite


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{method: awm}", r"its method awm lacks eta and equalizer: write lacks: \[eta, equalizer\]\."),
        ("{method: awm, lacks: [eta]}", r"has lacks: \[eta\], but .* write lacks: \[eta, equalizer\]\."),
        ("{method: cps, lacks: [eta]}", r"its method cps lacks none: write lacks: \[\]\."),
    ],
)
def test_a_row_searches_all_that_its_method_has(row: str, message: str) -> None:
    suite = search_suite(f"rows=[{row}]")
    with pytest.raises(BenchError, match=message):
        make_method(suite, suite.rows[0])


def test_names_of_trials() -> None:
    assert trial_of("cps-fixed.t12") == ("cps-fixed", 12)
    assert trial_of("a.t1.t0") == ("a.t1", 0)
    assert [trial_of(name) for name in ("cps-fixed", ".t1", "a.t", "a.t01", "a.t1b")] == [None] * 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.lr=[1e-3, 1e-4]", r"search\.lr is \[0\.001, 0\.0001\]: write the smaller value first\."),
        ("search.eta=[2, 1]", r"search\.eta is \[2, 1\]: write the smaller value first\."),
        ("search.lr=[0, 1e-4]", r"key 'search\.lr\.0': Input should be greater than 0"),
        ("search.lr=[1e-4]", r"key 'search\.lr': List should have at least 2 items"),
        ("search.trials=1", r"key 'search\.trials': Input should be greater than or equal to 2"),
        ("search.trials=1001", r"key 'search\.trials': Input should be less than or equal to 1000"),
        ("search.equalizer=[released, released]", r"search\.equalizer is .*: name each equalizer once\."),
        ("search.trails=3", r"unknown key 'search\.trails'; did you mean 'trials'\?"),
        ("seeds=[0]", r"a search chooses settings, so it needs .* pilot seeds, those from 100 on\."),
        ("evaluation={evaluators: [videoalign], steps: 2, videos_per_prompt: 1}", r"evaluation\.prompts: validation"),
        ("suite=a/b", r"a study has no search"),
        ("rows=[{method: cps, label: cps.t9}]", r"row 'cps\.t9' is none of the search's 3 trials"),
        ("rows=[{method: cps, label: cps.t0, lr: 1e-3}]", r"row 'cps\.t0' has other settings than the search draws"),
        ("rows=[{method: cps, label: cps.t1, lr: 1e-3}]", r"row 'cps\.t1' has other settings than the search draws"),
        ("rows=[{method: cps, label: mine, lr: 1e-3}]", r"row 'mine\.t0' has other settings than the search draws"),
        ("rows=[{method: cps, lacks: [lr]}]", r"key 'rows\.0\.lacks\.0': Input should be 'eta' or 'equalizer'"),
        ("rows=[{method: cps, params: {eta: 0.5}}]", r"row 'cps-none' sets params, so give it a 'label:'"),
    ],
)
def test_a_wrong_search_is_refused_in_one_sentence(override: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        search_suite(override)


def test_lacks_is_for_a_search() -> None:
    with pytest.raises(BenchError, match=r"row 'awm-none' has lacks, which is for a search: leave it out"):
        load_suite("nano", ["rows=[{method: awm, lacks: [eta]}]"])


def test_a_search_is_not_a_setting_of_a_variant() -> None:
    with pytest.raises(BenchError, match=r"variant 'a' sets 'search', which all variants share"):
        load_variants("nano", ["variants={a: {search: {trials: 2}}}"])


def test_the_searched_suite_and_the_tuned_one() -> None:
    search, tuned = load_suite("nano_search"), load_suite("nano_tuned")
    assert search.search is not None
    assert search.search.trials == 8
    assert not set(search.seeds) & set(tuned.seeds)
    assert (search.evaluation.prompts, tuned.evaluation.prompts) == ("validation", "heldout")
    assert tuned.seeds == list(range(10))
    assert search.budget == tuned.budget
    assert [row.method for row in search.rows[::8]] == [row.method for row in tuned.rows]


# the factor on eta ------------------------------------------------------------------------------------------------
def with_factor(factor: float, *overrides: str) -> Any:
    suite = load_suite("nano", [f"rows=[{{method: cps, label: mine, eta_factor: {factor}}}]", *overrides])
    return make_method(suite, suite.rows[0])


def test_the_factor_multiplies_the_methods_own_eta_up_to_one() -> None:
    assert with_factor(0.5).eta == pytest.approx(0.35)
    assert with_factor(2.0).eta == 1.0


@pytest.mark.parametrize("policy", ["{kind: common_eta, eta: 0.5}", "{kind: matched_rss, rss: 0.5}"])
def test_a_factor_without_effect_is_refused(policy: str) -> None:
    with pytest.raises(
        BenchError, match=r"row 'mine' sets eta_factor, but noise_policy (common_eta|matched_rss) sets"
    ):
        with_factor(0.5, f"noise_policy={policy}")
