"""Shares, strengths and checks of votes: by hand on small cases, and by simulation with known strengths."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import binomtest

from bench.report.data.preferences import ALL, checks, preferences, raters, strengths
from bench.report.data.resampling import wilson
from bench.report.data.votes import read_votes
from tests.helpers.raters import ROWS, SWAPPED, Raters, by_order, vote_list, votes, write_votes


def answers(*lines: tuple[str, int, str, str, str]) -> pd.DataFrame:
    """Answers about one question: rater, prompt, left, right, answer."""
    frame = pd.DataFrame(lines, columns=["alias", "prompt_index", "left", "right", "answer"])
    return frame.assign(kind="pair", question="visual", video=0, seed="0")


def line(table: pd.DataFrame, row: str, against: str = ALL) -> pd.Series:
    return table[(table["row"] == row) & (table["against"] == against)].iloc[0]


def test_shares_count_ties_half_and_either_side() -> None:
    table = preferences(
        answers(
            ("r", 0, "a", "b", "left"),
            ("r", 1, "b", "a", "tie"),
            ("s", 0, "b", "a", "right"),
            ("s", 1, "a", "c", "right"),
        ),
        ["a", "b", "c"],
    )
    assert line(table, "a", "b")["share"] == pytest.approx(2.5 / 3)
    assert line(table, "b", "a")["share"] == pytest.approx(0.5 / 3)
    assert line(table, "a")["share"] == pytest.approx(2.5 / 4)
    assert line(table, "a")[["raters", "prompts", "pairs", "ties"]].tolist() == [2, 2, 4, 1]
    assert set(table["against"]) == {ALL, "a", "b", "c"}
    assert ((table["row"] == "b") & (table["against"] == "c")).sum() == 0, "they never met"


@pytest.mark.parametrize("dimension", ["alias", "prompt_index"])
def test_no_interval_below_three_raters_or_prompts(dimension: str) -> None:
    frame = Raters((0.0, 1.0), raters=6, prompts=6).answers(np.random.default_rng(0))
    few = frame[frame[dimension].isin(sorted(set(frame[dimension]))[:2])]
    table = preferences(few, ["row0", "row1"])
    assert table["share"].notna().all()
    assert table[["share_lo", "share_hi", "strength_lo", "strength_hi"]].isna().all(axis=None)
    assert preferences(frame, ["row0", "row1"])[["share_lo", "share_hi"]].notna().all(axis=None)


def test_a_row_that_wins_all_has_wilsons_interval_and_a_finite_strength() -> None:
    lines = [(f"r{r}", p, "a", "b", "left") for r, p in itertools.product(range(4), range(5))]
    a = line(preferences(answers(*lines), ["a", "b"]), "a")
    assert (a["share"], a["share_lo"], a["share_hi"]) == (1.0, *wilson(1.0, 4))
    assert a["strength"] == pytest.approx(np.log(20.5 / 0.5) / 2), "20 wins and one virtual tie"


def test_rows_without_votes_have_no_line_and_groups_that_never_met_no_strength() -> None:
    lines = [(f"r{r}", p, *pair, "left") for r in range(3) for p in range(3) for pair in (("a", "b"), ("c", "d"))]
    table = preferences(answers(*lines), ["a", "b", "c", "d", "e"])
    assert set(table["row"]) == {"a", "b", "c", "d"}
    assert table["strength"].isna().all()
    assert table["share"].notna().all()


def test_the_same_votes_give_the_same_numbers_in_any_order() -> None:
    study = Raters((0.0, 0.5, 1.0), raters=5, prompts=5)
    frame = study.answers(np.random.default_rng(3))
    mixed = frame.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(preferences(frame, study.rows), preferences(mixed, study.rows))


def expected_wins(study: Raters) -> npt.NDArray[np.float64]:
    """wins[row, row]: the chance that the first is preferred, ties half, over random raters and prompts."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    spread = np.sqrt(2 * (study.rater_effect**2 + study.prompt_effect**2))
    difference = np.subtract.outer(study.strengths, study.strengths)
    chance = (expit(difference[..., None] + spread * nodes) * weights / weights.sum()).sum(-1)
    return study.ties / 2 + (1 - study.ties) * chance


@pytest.mark.parametrize("effects", [(0.0, 0.0), (0.6, 0.3), (0.3, 0.6)])
def test_intervals_cover_95_percent_and_strengths_are_recovered(effects: tuple[float, float]) -> None:
    """120 studies of 3 rows: the standard error of a coverage of .95 is .02 for independent intervals."""
    study = Raters((0.0, 0.4, 1.2), 12, 14, 36, *effects, ties=0.2, questions=("visual",))
    rng, wins = np.random.default_rng(7), expected_wins(study)
    shares = {ALL: (wins.sum(1) - 0.5) / 2, **{row: wins[:, index] for index, row in enumerate(study.rows)}}
    truth = strengths(1e6 * wins * (1 - np.eye(3)))
    inside: list[tuple[bool, bool]] = []
    means = []
    for _ in range(120):
        table = preferences(study.answers(rng), study.rows)
        place = table["row"].map(study.rows.index)
        true = np.array([shares[against][index] for against, index in zip(table["against"], place, strict=True)])
        share = table["share_lo"].le(true) & table["share_hi"].ge(true)
        strength = table["strength_lo"].le(truth[place]) & table["strength_hi"].ge(truth[place])
        inside += zip(share[table["against"] == ALL], strength[table["against"] == ALL], strict=True)
        means.append(table.loc[table["against"] == ALL, "strength"].to_numpy())
    coverage = np.mean(inside, axis=0)
    assert (coverage > 0.91).all(), coverage
    assert (coverage < 0.99).all(), coverage
    assert np.mean(means, axis=0) == pytest.approx(truth, abs=0.03)


def test_a_bias_to_a_side_is_found_and_does_not_move_shares() -> None:
    plain, biased = (
        Raters((0.0, 0.8), 20, 20, 40, side=side).answers(np.random.default_rng(5)) for side in (0.0, 0.7)
    )
    found = [checks(frame.assign(kind="pair")).query("check == 'side'") for frame in (plain, biased)]
    assert (found[0]["lo"] < 0.5).all()
    assert (found[0]["hi"] > 0.5).all()
    assert (found[1]["lo"] > 0.55).all()
    left = int((biased.query("question == 'visual'")["answer"] == "left").sum())
    assert tuple(found[1].iloc[0][["lo", "hi"]]) == pytest.approx(tuple(binomtest(left, 800).proportion_ci()))
    for frame in (plain, biased):
        assert line(preferences(frame, ["row0", "row1"]), "row1")["share"] == pytest.approx(0.68, abs=0.05)


def read(tmp_path: Path, *frames: pd.DataFrame) -> pd.DataFrame:
    return read_votes([write_votes(tmp_path, frame) for frame in frames]).answers


def test_repeats_identical_pairs_and_agreement(tmp_path: Path) -> None:
    steady, other = by_order(), by_order(ROWS[::-1])
    frame = read(tmp_path, votes("anna", steady), votes("ben", steady), votes("left", lambda *_: "left"))
    values = checks(frame).query("question == 'motion'").set_index("check")
    assert values.loc["repeat", ["value", "n"]].tolist() == [pytest.approx(2 / 3), 3]
    assert values.loc["identical", ["value", "n"]].tolist() == [pytest.approx(2 / 3), 6]
    assert values.loc["chance", "value"] == 0.5, "nobody called a pair a tie"
    alike = checks(read(tmp_path, votes("anna", steady), votes("ben", steady))).set_index("check")["value"]
    assert (alike["agreement"] == 1).all()
    apart = checks(read(tmp_path, votes("anna", steady), votes("ben", other))).set_index("check")["value"]
    assert (apart["agreement"] == 0).all()
    alone = checks(read(tmp_path, votes("anna", steady))).set_index("check")
    assert alone.loc["agreement", "value"].isna().all()
    assert (alone.loc["agreement", "n"] == 0).all()


def test_repeats_and_identical_pairs_do_not_count(tmp_path: Path) -> None:
    def turns(pair: dict[str, object], question: str) -> str:
        answer = by_order()(pair, question)
        return SWAPPED[answer] if pair["kind"] == "repeat" else answer

    one, other = (preferences(read(tmp_path, votes("anna", rater)), ROWS) for rater in (by_order(), turns))
    pd.testing.assert_frame_equal(one, other)
    assert one.loc[one["against"] == ALL, "pairs"].sum() // 3 == 2 * 9, (
        "12 pairs without a repeat and two identical ones"
    )


def test_raters_who_fail_hurry_or_are_colour_blind_are_told(tmp_path: Path) -> None:
    frames = [
        votes("anna", by_order(), colour_blind="yes"),
        votes("ben", lambda *_: "left", seconds=0.9),
        votes("cem", by_order(), shown=vote_list(1, length=3), colour_blind="unsaid"),
    ]
    table = raters(read(tmp_path, *frames)).set_index("alias")
    assert table["pairs"].to_dict() == {"anna": 12, "ben": 12, "cem": 3}
    assert table["fast"].to_dict() == {"anna": 0, "ben": 36, "cem": 0}
    assert table["identical"].to_dict() == {"anna": 6, "ben": 6, "cem": 0}
    assert table["passed"].isna().to_dict() == {"anna": False, "ben": False, "cem": True}, "cem saw no identical pair"
    assert (table.loc["anna", "passed"], table.loc["ben", "passed"]) == (True, False)
    assert table["colour_blind"].to_dict() == {"anna": "yes", "ben": "no", "cem": "unsaid"}
