"""The verdict: sentences that follow from the tested numbers, the seeds that would decide more, and nothing else."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bench.report.data.ablation import levels_of
from bench.report.data.differences import compares_pairs
from bench.report.data.wording import span
from bench.report.tables.main import load_main_table
from bench.report.tables.screen import main_screen, narrow
from tests.helpers.mean_records import CLEAR, CONFIG, load, write
from tests.helpers.records import make_record, make_scores, write_run


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def test_rows_are_ordered_only_where_the_test_says_so(tmp_path: Path) -> None:
    sentences = load(write(tmp_path / "toy", CLEAR)).verdict.sentences
    assert sentences[1] == "Overall: cps-fixed, sage_grpo-dual and flow_grpo-none are better than the base."
    assert sentences[2].startswith("Overall: sage_grpo-dual is better than cps-fixed (0.500 [")
    assert " and flow_grpo-none (0.490 [" in sentences[2]
    assert sentences[3].startswith("Overall: cannot be told apart: cps-fixed and flow_grpo-none (-0.010 [")
    assert sentences[3].endswith("; at most ±0.11 apart).")
    assert "Largest undecided pair: cps-fixed and flow_grpo-none" in sentences[4]
    assert "HunyuanVideo" not in " ".join(sentences)


def test_three_seeds_name_their_limit_and_the_command_for_more(tmp_path: Path) -> None:
    main = load(write(tmp_path / "toy", CLEAR))
    text = " ".join(main.verdict.sentences)
    assert "3 seeds can show a true difference of two rows in Overall with a power of 80 % if it is at least" in text
    assert "shows no collapse in 3 seeds with a probability of 73 %" in text
    assert main.verdict.seeds == [0, 1, 2, 3, 4]
    text = main_screen(main, lambda seeds: f"bench run toy.yaml seeds={seeds}", "main.md")
    assert "Sensitivity of the pairs: one" not in text
    assert "IQM and probability" not in text
    assert "IQM and probability" in "\n".join(main.notes())
    assert text.endswith("For more seeds:\n\n    bench run toy.yaml seeds=[0, 1, 2, 3, 4]\n")


def test_one_seed_shows_nothing(tmp_path: Path) -> None:
    verdict = load(write(tmp_path / "toy", {"cps-fixed": [0.5], "sage_grpo-dual": [1.0]})).verdict
    assert verdict.sentences[0] == "Seed 0.", "without a test there is no family"
    assert any(sentence.startswith("1 seed per row cannot show any difference") for sentence in verdict.sentences)
    assert "better than the base" not in " ".join(verdict.sentences)
    assert verdict.seeds == [0, 1, 2, 3, 4]


def test_rows_with_equal_scores_are_the_same_runs_and_no_test(tmp_path: Path) -> None:
    same = [0.5, 0.6, 0.4]
    folder = write(tmp_path / "toy", {"cps-fixed": same, "cps-none": same}, spread=0.0)
    main = load(folder)
    assert "Overall: the same runs, so no test: cps-fixed and cps-none." in main.verdict.sentences
    assert main.sections["Pairs of rows"][1] == [["cps-fixed - cps-none", "the same runs", "-", "-"]]
    assert main.tests["diff_p"].notna().tolist() == [True, True, False], "both rows less the base, and no pair"


def test_a_suite_without_finished_runs_has_a_verdict(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    settings = {**CONFIG, "seeds": [0], "rows": [{"method": "cps", "kl": "fixed"}]}
    write_run(
        folder, make_record(settings, "cps-fixed", 0, status="failed", error="it broke"), make_scores([], 1, max)
    )
    assert load(folder).verdict.sentences == ["No run has finished, so there is nothing to compare."]


def test_nano_is_named_first(tmp_path: Path) -> None:
    main = load(write(tmp_path / "toy", CLEAR, backbone={"name": "hunyuanvideo15", "checkpoint": "nano"}))
    assert "nothing here is a result about HunyuanVideo-1.5" in main.verdict.sentences[0]


def test_what_does_not_survive_the_correction_is_exploratory_and_not_alike(tmp_path: Path) -> None:
    rows = {
        "cps-fixed": [0.50, 0.52, 0.48],
        "sage_grpo-dual": [0.74, 0.78, 0.61],
        "flow_grpo-none": [0.53, 0.46, 0.54],
    }
    main = load(write(tmp_path / "toy", rows, spread=0.01))
    tests = main.tests.set_index(["row", "other"])
    unsure = tests.loc[("cps-fixed", "sage_grpo-dual")]
    assert unsure["diff_p"] < 0.05 < unsure["diff_p_holm"]
    sentences = [one for one in main.verdict.sentences if "cps-fixed - sage_grpo-dual" in one]
    assert len(sentences) == 1
    reason = "exploratory (p below 0.05 as it is, not after Holm over the whole table)"
    assert sentences[0].startswith(f"Overall: {reason}: cps-fixed - sage_grpo-dual (-0.")
    assert not any("apart" in one and "cps-fixed and sage_grpo-dual" in one for one in main.verdict.sentences)


def test_many_rows_are_not_compared_with_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.data.differences.MOST_ROWS_FOR_PAIRS", 1)
    main = load(write(tmp_path / "toy", CLEAR))
    assert "Overall: sage_grpo-dual has the best mean. Pairs are not tested, there are too many." in (
        main.verdict.sentences
    )
    assert "Pairs of rows" not in main.sections
    assert main.tests["other"].unique().tolist() == ["base"]


def test_a_suite_compares_each_row_with_the_one_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.data.differences.MOST_ROWS_FOR_PAIRS", 1)
    folder = write(tmp_path / "toy", CLEAR)
    labels = [runs.row.label for runs in load(folder).suite.rows]
    rows = [runs.row._replace(comparator=runs.row.label == labels[-1]) for runs in load(folder).suite.rows]
    main = load_main_table(folder, rows)
    pairs = main.tests[(main.tests["other"] != "base") & (main.tests["score"] == "overall")]
    assert [*zip(pairs["row"], pairs["other"], strict=True)] == [(label, labels[-1]) for label in labels[:-1]]
    assert f"Each row is compared with the base and with {labels[-1]}, and no other pair is tested." in (
        main.verdict.sentences
    )
    assert len(main.sections["Pairs of rows"][1]) == len(labels) - 1
    assert not levels_of({"": main.suite})


def test_open_rows_do_not_hide_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.data.differences.MOST_ROWS_FOR_PAIRS", 2)
    suite = load(write(tmp_path / "toy", CLEAR)).suite
    assert not compares_pairs(suite)
    rows = [replace(runs, row=runs.row._replace(open=runs is suite.rows[0])) for runs in suite.rows]
    assert compares_pairs(replace(suite, rows=rows))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.5], "±0.50 apart"),
        ([0.98, 0.981], "±0.98 apart"),
        ([0.3, 0.01], "±0.01 to ±0.30 apart, depending on the a"),
    ],
)
def test_a_span_of_one_number_names_it_once(values: list[float], text: str) -> None:
    assert span(values, "a", "±", " apart") == text


# the reference ------------------------------------------------------------------------------------------------
def test_equal_bits_and_what_more_seeds_of_the_reference_show(tmp_path: Path) -> None:
    rows = {"cps-fixed": [0.5, 0.9, 0.1, 0.5, 0.5, 0.52], "sage_grpo-dual": [1.3, 0.8, 1.2, 1.3, 1.25, 1.3]}
    stored = write(tmp_path / "stored" / "toy", rows, spread=0.0)
    here = write(tmp_path / "toy", {name: values[:3] for name, values in rows.items()}, spread=0.0)
    main = load(here, reference=stored)
    assert main.verdict.sentences[0] == (
        "7 of 7 runs have equal bits with the stored reference: these runs are reproduced."
    )
    assert main.verdict.sentences[1].startswith(
        "With its 6 seeds the stored reference shows more in Overall: sage_grpo-dual is better than cps-fixed (0.6"
    )
    assert ", p " not in main.verdict.sentences[1], "that p is of another family"
    heads, lines = main.sections["Beside the stored reference"]
    assert {line[heads.index("verdict")] for line in lines} == {"equal bits"}
    assert not any("inside their band" in note for note in main.notes())


def test_runs_that_differ_have_the_verdict_of_the_band(tmp_path: Path) -> None:
    rows = {"cps-fixed": [0.5, 0.6, 0.4]}
    stored = write(tmp_path / "stored" / "toy", rows, spread=0.0)
    here = write(tmp_path / "toy", {"cps-fixed": [0.5, 0.6, 0.41]}, spread=0.0)
    main = load(here, reference=stored)
    assert "3 of 4 runs have equal bits with the stored reference: the others differ." in main.verdict.sentences
    heads, lines = main.sections["Beside the stored reference"]
    assert {line[heads.index("verdict")] for line in lines if line[0] == "cps-fixed"} == {"inside"}


# the screen ---------------------------------------------------------------------------------------------------
def test_a_wide_table_becomes_narrow_ones_with_all_cells() -> None:
    heads = ["Row", *itertools.chain.from_iterable((f"score {i}", "p (Holm)") for i in range(6))]
    rows = [[f"row {r}", *(f"cell {r} {i}" for i in range(12))] for r in range(2)]
    text = narrow((heads, rows), width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert all(cell in text for row in rows for cell in row)
    for part in text.split("\n\n"):
        names = [cell.strip() for cell in part.splitlines()[0].strip("|").split("|")]
        assert names[0] == "Row"
        assert names[1::2] == [name for name in names if name.startswith("score")], "p stays beside its score"


def test_long_names_are_cut_in_their_middle() -> None:
    names = ["a_long_label_of_a_row_of_the_suite-fixed", "a_long_label_of_a_row_of_the_suite-none"]
    pairs = [[f"{names[0]} - {names[1]}", "-0.25 [-0.35, -0.15] *", "0.003", "0.12"], ["short", "1.00", "n/a", "-"]]
    text = narrow((["Pair", "gold Overall ↑", "p (Holm)", "MDE"], pairs))
    assert max(map(len, text.splitlines())) <= 100
    assert "| a_long_label_of" in text
    assert "suite-none |" in text
    assert "-0.25 [-0.35, -0.15] *" in text


def test_a_cell_wider_than_the_screen_is_not_cut() -> None:
    assert "x" * 200 in narrow((["Row", "a", "b"], [["r", "x" * 200, "y"]]))
