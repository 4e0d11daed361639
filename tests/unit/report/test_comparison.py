"""`bench compare`: the right differences between two folders, and a refusal wherever they do not compare."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from bench import store
from bench.cli import main
from bench.report.data import statistics
from bench.report.data.comparison import select_seeds
from bench.report.data.loading import load_records
from bench.report.data.power import detectable_difference
from bench.report.data.reference import prediction_band
from tests.helpers.toy_records import CONFIG, write, write_suite


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of one suite: seeds 0 to 2 in `old`, seeds 3 to 5 in `fresh`."""
    top = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        write_suite(top / "old")
        write_suite(top / "fresh", seeds=(3, 4, 5))
    return top


@pytest.fixture
def old(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(written / "old", tmp_path / "copy")


def compared(capsys: pytest.CaptureFixture[str], a: Path, b: Path, *words: str) -> tuple[pd.DataFrame, str]:
    """The numbers by row and score, and the text."""
    file = a.parent / "numbers.csv"
    assert main(["compare", str(a), str(b), "--csv", str(file), *words]) == 0
    return pd.read_csv(file).set_index(["row", "score"]), capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], a: Path, b: Path, *words: str) -> str:
    assert main(["compare", str(a), str(b), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def shift(folder: Path, row: str, seed: int, by: float) -> None:
    """Add a number to every score of a run, in a whole record."""
    path = store.run_folder(folder, row, seed)
    record, frame = store.read_run(path)
    store.write_run(path, record, frame.assign(value=frame["value"] + by))


# numbers ------------------------------------------------------------------------------------------------------
def test_a_copy_is_equal_bit_for_bit(capsys: pytest.CaptureFixture[str], written: Path, old: Path) -> None:
    table, text = compared(capsys, old, written / "old")
    assert (table["diff"] == 0).all()
    assert (table.loc["cps-fixed", "diff_hi"] == 0).all()
    assert (table.loc["base", "paired"] == "equal").all()
    assert (table.loc["cps-fixed", "paired"] == "seed, prompt").all()
    first = text.splitlines()[2]
    assert first == "- 6 of 6 runs with the same row and seed in both have equal bits."
    assert "|" not in text, "rows of zeros are left out"
    assert "Equal for every seed, prompt and metric, and not in a table: base, sage_grpo-dual, cps-fixed." in text


def test_a_planted_difference_is_found_paired(capsys: pytest.CaptureFixture[str], written: Path, old: Path) -> None:
    for seed in range(3):
        shift(old, "cps-fixed", seed, 0.2 + 0.01 * seed)
    table, text = compared(capsys, old, written / "old")
    found = table.loc["cps-fixed", "overall"]
    half = float(scipy_stats.t.ppf(0.975, 2)) * 3 * 0.01 / np.sqrt(3)  # by hand: no noise over prompts
    assert found["diff"] == pytest.approx(3 * 0.21, rel=1e-7)
    assert found["diff_hi"] - found["diff"] == pytest.approx(half, rel=1e-5)
    assert found["diff_p_holm"] == pytest.approx(2 * found["diff_p"]), "with gold Overall, without the equal row"
    x = 3 * np.array([[0.2], [0.21], [0.22]]) * np.ones(36)
    assert found["diff_mde"] == pytest.approx(detectable_difference(x, 0.05 / 2), rel=1e-4)
    assert table["diff_p"].notna().sum() == 2
    assert table["diff_p"].notna()[[("cps-fixed", "overall"), ("cps-fixed", "gold_overall")]].all()
    assert "Differences of the rows in Overall and gold Overall are one family of 2 tests" in text.replace("\n  ", " ")
    assert table.loc["sage_grpo-dual", "overall"]["diff"] == 0
    assert (
        "3 of 6 runs with the same row and seed in both have equal bits; Overall of the others differs by up to"
        in text.replace("\n  ", " ")
    )
    assert "| sage_grpo-dual" not in text, "a row of zeros is left out"
    assert max(map(len, text.splitlines()[1:])) <= 100, "all but the title, which has both paths"
    assert re.search(r"\| cps-fixed +\| +Overall ↑ +\|.* 0\.63\d* \[[^\]]*\] \*", text)


def test_fresh_seeds_are_independent_and_judged_by_the_band(capsys: pytest.CaptureFixture[str], written: Path) -> None:
    table, text = compared(capsys, written / "fresh", written / "old")
    x, y = (
        next(runs for runs in load_records(written / name).rows if runs.row.label == "cps-fixed").matrix("overall")
        for name in ("fresh", "old")
    )
    assert x is not None
    assert y is not None
    found, expected = table.loc["cps-fixed", "overall"], statistics.independent_difference(x, y)
    assert [found["diff"], found["diff_lo"], found["diff_hi"]] == pytest.approx(expected[:1] + expected[3:5], rel=1e-6)
    assert found["paired"] == "prompt"
    assert [found["band_lo"], found["band_hi"]] == pytest.approx(prediction_band(y.mean(1), 3), rel=1e-6)
    assert bool(found["inside"])
    assert "6 of 6 comparisons" in text


def test_a_planted_shift_of_fresh_seeds_is_outside(
    capsys: pytest.CaptureFixture[str], written: Path, tmp_path: Path
) -> None:
    fresh = shutil.copytree(written / "fresh", tmp_path / "fresh")
    for seed in (3, 4, 5):
        shift(fresh, "sage_grpo-dual", seed, 0.5)
    table, text = compared(capsys, fresh, written / "old")
    assert not table.loc[("sage_grpo-dual", "overall"), "inside"]
    assert table.loc[("cps-fixed", "overall"), "inside"]
    assert "3 of 6 comparisons" in text


@pytest.mark.parametrize(
    ("a", "b", "used"),
    [
        ([0, 1, 2], [0, 1, 2, 3, 4], ([0, 1, 2], [0, 1, 2], True)),
        ([0, 1, 2], [3, 4, 5], ([0, 1, 2], [3, 4, 5], False)),
        ([0, 1, 2], [2, 3, 4], ([0, 1, 2], [3, 4], False)),
        ([0, 1, 2], [2, 3], ([0, 1], [2, 3], False)),
        ([0, 1, 2, 3, 4], [3, 4, 5, 6, 7], ([0, 1, 2, 3, 4], [5, 6, 7], False)),
        ([0, 1], [0, 1, 2, 3, 4], ([0, 1], [0, 1], True)),
        ([0], [0], ([0], [0], True)),
    ],
)
def test_seeds_are_paired_where_they_are_the_same(
    a: list[int], b: list[int], used: tuple[list[int], list[int], bool]
) -> None:
    assert tuple(select_seeds(a, b)) == used


# rows ---------------------------------------------------------------------------------------------------------
def test_rows_are_matched_by_their_settings_not_their_labels(
    capsys: pytest.CaptureFixture[str], written: Path, tmp_path: Path
) -> None:
    rows = [{"method": "cps", "kl": "fixed", "label": "mine"}, {"method": "sage_grpo", "kl": "none"}]
    settings = {"rows": rows}
    write(tmp_path / "other", "base", None, settings)
    for seed in range(3):
        write(tmp_path / "other", "mine", seed, settings)
        write(tmp_path / "other", "sage_grpo-none", seed, settings)
    table, text = compared(capsys, written / "old", tmp_path / "other")
    assert set(table.index.get_level_values("row")) == {"base", "cps-fixed (B: mine)"}
    assert "sage_grpo-dual has no counterpart in B." in text
    assert "sage_grpo-none has no counterpart in A." in text


def test_a_row_of_the_same_name_with_other_parameters_is_not_compared(
    capsys: pytest.CaptureFixture[str], written: Path, old: Path
) -> None:
    for seed in range(3):
        path = store.run_folder(old, "cps-fixed", seed)
        record, frame = store.read_run(path)
        store.write_run(path, record.model_copy(update={"method_params": {"eta": 0.3}}), frame)
    table, text = compared(capsys, old, written / "old")
    assert "cps-fixed" not in table.index.get_level_values("row")
    assert "cps-fixed has other settings in B: {'params': {'eta': 0.3}} against {'params': {" in text


def test_named_rows_are_compared_whatever_their_settings_in_the_open_division(
    capsys: pytest.CaptureFixture[str], written: Path
) -> None:
    a, b, pair = written / "old", written / "fresh", "sage_grpo-dual=cps-fixed"
    assert "row sage_grpo-dual (B: cps-fixed).method is sage_grpo in A and cps in B" in refused(
        capsys, a, b, "--rows", pair
    )
    table, text = compared(capsys, a, b, "--open", "--rows", pair, pair)
    assert set(table.index.get_level_values("row")) == {"base", "sage_grpo-dual (B: cps-fixed)"}
    x, y = (
        next(runs for runs in load_records(folder).rows if runs.row.label == label).matrix("overall")
        for folder, label in ((a, "sage_grpo-dual"), (b, "cps-fixed"))
    )
    assert x is not None
    assert y is not None
    found = table.loc["sage_grpo-dual (B: cps-fixed)", "overall"]
    assert found["diff"] == pytest.approx(x.mean() - y.mean(), rel=1e-7)
    tests = table[table["diff_p"].notna()]
    assert len(tests) == 2, "the family is that of the named rows"
    assert tests["diff_p_holm"].tolist() == pytest.approx(statistics.holm(tests["diff_p"].tolist()))
    assert table["inside"].isna().all(), "another method is no reproduction"
    assert "row sage_grpo-dual (B: cps-fixed).kl is dual in A and fixed in B" in text
    flat = text.replace("\n  ", " ")
    assert "Rows are paired as the command names them: sage_grpo-dual (B: cps-fixed)." in flat
    assert re.search(r"\| sage_grpo-dual +\| +Overall ↑ +\|", text), "the tables have the label in A alone"
    assert re.search(r"\| sage_grpo-dual: B +\| +144 \|", text)
    assert "has no counterpart" not in text


@pytest.mark.parametrize(
    ("pair", "named"),
    [
        ("mine=cps-fixed", "old has no finished run of a row 'mine': name one of sage_grpo-dual, cps-fixed."),
        ("cps-fixed=mine", "fresh has no finished run of a row 'mine': name one of sage_grpo-dual, cps-fixed."),
        ("cps-fixed", "--rows takes A=B, got 'cps-fixed'"),
        ("cps-fixed=", "--rows takes A=B, got 'cps-fixed='"),
    ],
)
def test_a_named_row_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], written: Path, pair: str, named: str
) -> None:
    assert named in refused(capsys, written / "old", written / "fresh", "--rows", pair)


# refusals -----------------------------------------------------------------------------------------------------
BUDGET = CONFIG["budget"]


@pytest.mark.parametrize(
    ("settings", "changes", "named"),
    [
        ({"budget": BUDGET | {"updates": 5}}, {}, "budget.updates is 6 in A and 5 in B"),
        ({"reward": {"videoalign": {"TA": 1.0}}}, {}, "reward.videoalign.VQ is 0.5 in A and null in B"),
        ({"decode": "final_latent"}, {}, "decode is predicted_x0 in A and final_latent in B"),
        ({}, {"prompts_digest": "other"}, "prompts digest is"),
        ({}, {"backbone": {"weights": "9"}}, "backbone fingerprint.weights is 2 in A and 9 in B"),
        ({}, {"evaluators": {"gold": {"weights": "9"}}}, "evaluator fingerprints.videoalign is"),
    ],
)
def test_other_settings_are_refused_by_name_and_open_to_the_open_division(
    capsys: pytest.CaptureFixture[str],
    written: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    changes: dict[str, Any],
    named: str,
) -> None:
    for seed in range(2):
        write(tmp_path / "b", "cps-fixed", seed, settings, **changes)
    assert named in refused(capsys, written / "old", tmp_path / "b")
    table, text = compared(capsys, written / "old", tmp_path / "b", "--open")
    assert "Open division" in text
    assert named in text
    assert re.search(r"\| cps-fixed: A +\| +144 \|", text)
    assert re.search(rf"\| cps-fixed: B +\| +{24 * settings.get('budget', BUDGET)['updates']} \|", text)
    assert table["inside"].isna().all()
    assert (("cps-fixed", "trained") in table.index) == ("reward" not in settings)


def test_other_spending_is_refused(capsys: pytest.CaptureFixture[str], written: Path, tmp_path: Path) -> None:
    spent = store.read_record(written / "old" / "cps-fixed" / "seed-0").ledger | {"nfe_train": 7}
    write(tmp_path / "b", "cps-fixed", 0, ledger=spent)
    assert "ledger nfe_train is 288 in A and 7 in B" in refused(capsys, written / "old", tmp_path / "b")


def test_other_prompts_are_compared_unpaired_in_the_open_division(
    capsys: pytest.CaptureFixture[str], written: Path, tmp_path: Path
) -> None:
    write_suite(
        tmp_path / "b",
        {"prompts": {"heldout": "bench/prompts/nano_train.txt", "train": "bench/prompts/nano_heldout.txt"}},
    )
    assert "prompts digest" in refused(capsys, written / "old", tmp_path / "b")
    table, text = compared(capsys, written / "old", tmp_path / "b", "--open")
    assert (table.loc["cps-fixed", "paired"] == "nothing").all()
    assert "neither seeds nor prompts are paired" in text


def test_a_score_that_one_side_lacks_is_not_called_primary(
    capsys: pytest.CaptureFixture[str], written: Path, tmp_path: Path
) -> None:
    for side, kept in (("gold", ("gold_VQ", "gold_MQ", "gold_TA")), ("parts", ("VQ", "TA"))):
        for path in (written / "fresh").rglob(store.RUN):
            record, frame = store.read_run(path.parent)
            place = tmp_path / side / path.parent.relative_to(written / "fresh")
            own = record.model_copy(update={"config": {**record.config, "reward": {}}})
            store.write_run(place, own, frame[frame["metric"].isin(kept)])
    table, text = compared(capsys, written / "old", tmp_path / "gold", "--open")
    assert "overall" not in table.index.get_level_values("score")
    flat = " ".join(text.split())
    assert "- Differences of the rows in gold Overall are one family of 2 tests" in flat
    assert "primary score" not in flat
    table, text = compared(capsys, written / "old", tmp_path / "parts", "--open")
    assert table["diff_p"].isna().all()
    assert "family" not in text.partition("## Words")[0]
    err = refused(capsys, tmp_path / "gold", tmp_path / "parts", "--open")
    assert "have no score in common: score both with one evaluator, and run them again." in err


def test_the_same_folder_and_an_empty_one_are_refused(
    capsys: pytest.CaptureFixture[str], written: Path, tmp_path: Path
) -> None:
    assert "is given twice" in refused(capsys, written / "old", written / "old" / ".." / "old")
    assert "holds no records" in refused(capsys, written / "old", tmp_path)
    write(tmp_path / "b", "base", None)
    assert "holds no finished run of a row" in refused(capsys, written / "old", tmp_path / "b")
    write(
        tmp_path / "c",
        "cps-fixed",
        0,
        {"rows": [{"method": "cps", "kl": "fixed", "params": {"eta": 0.1}, "label": "cps-fixed"}]},
    )
    assert "have no row in common" in refused(capsys, written / "old", tmp_path / "c")


def test_nano_never_compares_with_the_full_size_model(
    capsys: pytest.CaptureFixture[str], written: Path, tmp_path: Path
) -> None:
    full = {
        "backbone": {"name": "hunyuanvideo15", "checkpoint": "../full"},
        "prompts": {"train": "bench/prompts/nano_train.txt", "heldout": "bench/prompts/nano_heldout.txt"},
    }
    write(tmp_path / "b", "cps-fixed", 0, full)
    assert "miniature model" in refused(capsys, written / "old", tmp_path / "b", "--open")


# statistics ---------------------------------------------------------------------------------------------------
def cells(rng: np.random.Generator, seeds: int, by_prompt: np.ndarray, by_seed: float, rest: float) -> np.ndarray:
    noise = rng.normal(0, rest, (seeds, len(by_prompt)))
    return rng.normal(0, by_seed, (seeds, 1)) + by_prompt[None] + noise


@pytest.mark.parametrize(("seeds", "others"), [(3, 3), (3, 5)])
@pytest.mark.parametrize(
    "sd",  # of the seeds of both sides, of the prompts' difference, of the rest
    [(0.1, 0.1, 0.1, 0.3), (1.0, 0.1, 0.1, 0.3), (0.1, 0.1, 1.0, 0.3), (0.3, 0.3, 0.3, 1.0)],
)
def test_the_interval_of_independent_seeds_covers_the_true_difference(
    seeds: int, others: int, sd: tuple[float, float, float, float]
) -> None:
    rng, repeats, inside = np.random.default_rng(seeds * others), 600, 0
    for _ in range(repeats):
        prompts = rng.normal(0, 1, 32)
        x = cells(rng, seeds, prompts, sd[0], sd[3]) + 0.3
        y = cells(rng, others, prompts + rng.normal(0, sd[2], 32), sd[1], sd[3])
        estimate = statistics.independent_difference(x, y)
        inside += estimate.lo <= 0.3 <= estimate.hi
    # binomial standard error at .95 and 600 repeats: .009; above .98 only where the rest outweighs seeds and prompts
    assert 0.92 <= inside / repeats <= 0.985


def test_the_interval_of_unpaired_prompts_covers_the_true_difference() -> None:
    rng, repeats, inside = np.random.default_rng(4), 600, 0
    for _ in range(repeats):
        x, y = (cells(rng, 3, rng.normal(0, 1, 32), 0.2, 0.3) for _ in range(2))
        estimate = statistics.unpaired_difference(x, y)
        inside += estimate.lo <= 0 <= estimate.hi
    assert 0.92 <= inside / repeats <= 0.98


def test_independent_seeds_alone_are_welchs_t() -> None:
    """No effect of prompts and no rest: each run is one number."""
    a, b = np.array([0.0, 1.0, 2.0]), np.array([3.0, 3.5, 5.0, 7.0])
    x, y = (one[:, None] + np.zeros((1, 40)) for one in (a, b))
    found, expected = statistics.independent_difference(x, y), scipy_stats.ttest_ind(a, b, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.lo, found.hi) == pytest.approx(expected.confidence_interval(), rel=1e-9)


def test_prompts_alone_are_a_paired_t() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=20), rng.normal(size=20)
    found = statistics.independent_difference(np.tile(p, (3, 1)), np.tile(q, (4, 1)))
    assert found.p == pytest.approx(scipy_stats.ttest_rel(p, q).pvalue, rel=1e-9)


def test_differences_need_two_seeds_and_the_same_prompts() -> None:
    for found in (
        statistics.independent_difference(np.ones((1, 4)), np.zeros((3, 4))),
        statistics.unpaired_difference(np.ones((1, 4)), np.zeros((3, 5))),
    ):
        assert found.mean == 1
        assert np.isnan([found.lo, found.hi, found.p]).all()
    with pytest.raises(ValueError, match="same prompts"):
        statistics.independent_difference(np.ones((3, 4)), np.ones((3, 5)))
