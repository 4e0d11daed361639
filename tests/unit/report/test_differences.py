"""Tested differences: one family of p-values per table, the same runs are no test, and views of the prompts."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from bench import store
from bench.nano.world import COLOURS
from bench.report.data import differences, statistics
from bench.report.data.differences import (
    colours_of,
    common_seeds,
    prompt_texts,
    sensitivity,
)
from bench.report.data.loading import load_records
from bench.report.data.power import detectable_difference
from bench.report.data.records import SuiteRecords
from bench.report.tables.main import MainTable, load_main_table
from bench.suite.schema import Suite
from tests.helpers import toy_records
from tests.helpers.toy_records import CONFIG


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base and two rows with three seeds, whose prompts are nano's held-out captions."""
    return toy_records.write_suite(tmp_path_factory.mktemp("written") / "toy")


@pytest.fixture
def spoilt(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(folder, tmp_path / "toy")


def load(folder: Path) -> MainTable:
    return load_main_table(folder, reference=folder.parent / "nowhere")


def matrices(suite: SuiteRecords, score: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = (runs.matrix(score) for runs in suite.rows)
    assert x is not None
    assert y is not None
    return x, y


def test_the_page_has_one_family_of_the_primary_score_and_its_check(folder: Path) -> None:
    suite = load_records(folder)
    tests = differences.tested_differences(suite)
    assert [tuple(line) for line in tests[["score", "row", "other"]].to_numpy()] == [
        (score, *sides)
        for score in ("overall", "gold_overall")
        for sides in [("sage_grpo-dual", "base"), ("cps-fixed", "base"), ("sage_grpo-dual", "cps-fixed")]
    ]
    assert suite.base is not None
    by_hand = []
    for score in ("overall", "gold_overall"):
        x, y = matrices(suite, score)
        base = suite.base.cells[score].to_numpy()
        by_hand += [statistics.paired_difference(*sides) for sides in ((x, base), (y, base), (x, y))]
    assert tests["diff_p"].tolist() == [one.p for one in by_hand]
    assert tests["diff_p_holm"].tolist() == statistics.holm([one.p for one in by_hand])
    assert tests["diff_margin"].tolist() == [statistics.equivalence_margin(one) for one in by_hand]
    effects = differences.with_effects(suite, tests)["diff_mde"]
    assert effects.isna().tolist() == [True, True, False] * 2, "pairs have it, differences to the base do not"
    assert effects[2] == detectable_difference(np.subtract(*matrices(suite, "overall")), level=0.05 / 6)


def test_the_table_prints_the_p_values_of_the_family_and_no_others(folder: Path) -> None:
    main = load(folder)
    table, tests = main.table.set_index("row"), main.tests.set_index(["score", "row", "other"])["diff_p_holm"]
    for row, score in itertools.product(("sage_grpo-dual", "cps-fixed"), ("overall", "gold_overall")):
        assert table.loc[row, f"{score}_delta_p_holm"] == tests[score, row, "base"]
    named = {name for name in table if str(name).endswith(("_p", "_p_holm", "_mde"))}
    tested = ("overall_delta", "gold_overall_delta")
    assert named == {f"{name}{end}" for name in tested for end in ("_p", "_p_holm")}
    heads, lines = main.sections["Pairs of rows"]
    assert heads == ["Pair", "Overall ↑", "p (Holm)", "MDE", "gold Overall ↑", "p (Holm)", "MDE"]
    assert [line[0] for line in lines] == ["sage_grpo-dual - cps-fixed"]
    assert main.sections["Differences"][0][:6] == [
        *("Row", "Overall - base ↑", "p (Holm)", "Reward - base ↑", "gold Overall - base ↑", "p (Holm)")
    ]
    assert not any("p (Holm)" in head for head in main.sections["Differences of single scores"][0])
    assert any("are one family of 6 tests" in note for note in main.notes())


def test_rows_with_equal_scores_of_their_common_seeds_are_no_test(spoilt: Path) -> None:
    for seed in range(2):
        record, _ = store.read_run(spoilt / "cps-fixed" / f"seed-{seed}")
        _, scores = store.read_run(spoilt / "sage_grpo-dual" / f"seed-{seed}")
        store.write_run(spoilt / "cps-fixed" / f"seed-{seed}", record, scores)
    assert differences.tested_differences(load_records(spoilt))["diff_p"].notna().all(), "the third seed differs"
    shutil.rmtree(spoilt / "cps-fixed" / "seed-2")
    toy_records.write(spoilt, "cps-fixed", 3, {"seeds": [0, 1, 2, 3]})
    toy_records.write(spoilt, "cps-fixed", 4, {"seeds": [0, 1, 2, 3, 4]})
    suite = load_records(spoilt)
    assert common_seeds(*suite.rows) == [0, 1]
    tests = differences.tested_differences(suite)
    assert tests["same_runs"].tolist() == [False, False, True] * 2
    assert tests["diff_p"].notna().tolist() == [True, True, False] * 2
    assert differences.number_of_tests(tests) == 4
    assert sensitivity(suite).empty


def test_fewer_than_three_seeds_have_no_interval_and_no_test(spoilt: Path) -> None:
    shutil.rmtree(spoilt / "cps-fixed" / "seed-2")
    main = load(spoilt)
    row = main.table.set_index("row").loc["cps-fixed"]
    assert np.isfinite(row["overall"])
    assert row[["overall_lo", "overall_delta_p"]].isna().all()
    assert main.tests["diff_p"].notna().sum() == 2, "the other row less the base, in both scores"
    assert any("[n/a]: fewer than 3 seeds, no interval." in note for note in main.notes())
    cells = dict(zip(main.sections["Scores"][0], main.sections["Scores"][1][2], strict=True))
    assert cells["Overall ↑"].endswith(" [n/a]")


def test_a_pair_has_one_interval_per_view_of_the_prompts(folder: Path) -> None:
    suite = load_records(folder)
    (line,) = sensitivity(suite).to_dict("records")
    x, y = matrices(suite, "overall")
    colours = [text.split()[1] for text in prompt_texts(suite)]
    views = {
        "random": statistics.two_way(x - y),
        "fixed": statistics.t_over_seeds(x - y),
        "colour": statistics.grouped(x - y, colours),
    }
    for name, estimate in views.items():
        assert [line[name], line[f"{name}_lo"], line[f"{name}_hi"]] == pytest.approx(
            [(x - y).mean(), estimate.lo, estimate.hi]
        )
    main = load(folder)
    heads = ["Pair", "Overall, prompts random", "Overall, prompts fixed", "Overall, colours random"]
    assert main.sections["Sensitivity of the pairs"][0] == heads
    assert any("Prompts fixed: the claim is about these very prompts" in note for note in main.notes())


def test_the_colours_of_the_held_out_captions_are_those_of_the_world() -> None:
    captions = Suite.model_validate(CONFIG).prompt_list("heldout")
    colours = colours_of(captions)
    assert colours is not None
    assert set(colours) == set(COLOURS)
    assert len(colours) == len(captions)


@pytest.mark.parametrize("prompts", [[], ["a cat sleeps"], ["a red circle moving up slowly", "a cat sleeps"]])
def test_other_prompts_have_no_colours(prompts: list[str]) -> None:
    assert colours_of(prompts) is None
