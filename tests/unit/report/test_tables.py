"""The main table: the right numbers from the records, and a refusal wherever rows would not compare."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench import store
from bench.api import BenchError
from bench.report import formatting
from bench.report.data import controls, statistics
from bench.report.data.loading import load_records
from bench.report.data.reference import prediction_band
from bench.report.tables.main import build_table, load_main_table, render_table
from tests.helpers.records import METRICS, make_record, make_scores, noisy_value, write_lines, write_run

VIDEOS = 2
PROMPTS = [f"prompt {p}" for p in range(12)]
CONFIG: dict[str, Any] = {
    "suite": "toy-nano",
    "backbone": {"name": "toy", "checkpoint": "nano"},
    "budget": {"updates": 2, "minibatches": 1, "grad_clip": 2.0},
    "decode": "predicted_x0",
    "noise_policy": {"kind": "common_eta", "eta": 0.5},
    "reward": {"videoalign": {"VQ": 0.5, "MQ": 0.5, "TA": 1.0}},
    "seeds": [0, 1, 2],
    "rows": [{"method": "sage_grpo", "kl": "dual"}, {"method": "cps", "kl": "none"}, {"method": "cps", "kl": "fixed"}],
}
LEDGER = {"nfe_rollout": 1280, "nfe_train": 1920, "nfe_anchor": 0, "reward_calls": {"videoalign": 128}, "videos": 128}
LIFTS = {"cps-fixed": 0.0, "sage_grpo-dual": 0.5}


def write(folder: Path, row: str, seed: int | None, lift: float = 0.0, **changes: Any) -> None:
    scores = make_scores(PROMPTS, VIDEOS, noisy_value(row, seed, lift, len(PROMPTS)))
    values = {
        **{"ledger": LEDGER if seed is not None else {}, "seconds": {"rollout": 60.0, "update": 30.0}},
        **{"peak_memory_mb": 900.4, **changes},
    }
    write_run(folder, make_record(CONFIG, row, seed, **values), scores)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "toy-nano"
    write(folder, "base", None)
    for row, lift in LIFTS.items():
        for seed in range(3):
            write(folder, row, seed, lift)
    return folder


@pytest.fixture
def suite(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil: the base and two of three rows, all seeds finished."""
    return shutil.copytree(written, tmp_path / "toy-nano")


def render(folder: Path, **options: Any) -> dict[str, str]:
    return render_table(load_main_table(folder, **options))


def table(folder: Path, **arguments: Any) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(render(folder, **arguments)["main.csv"]))


def test_the_files_are_written_from_the_records(suite: Path) -> None:
    paths = build_table(suite)
    assert sorted(paths) == ["main.csv", "main.md", "main.tex", "main_narrow.tex"]
    assert paths["main.md"] == suite / "tables" / "main.md"
    before = {name: path.read_bytes() for name, path in paths.items()}
    assert {name: path.read_bytes() for name, path in build_table(suite).items()} == before
    assert len(list((suite / "tables").iterdir())) == 4


def test_csv_has_its_columns_and_rows_in_order(suite: Path) -> None:
    found = table(suite)
    assert found["row"].tolist() == ["base", "sage_grpo-dual", "cps-none", "cps-fixed"]
    assert found["method"].tolist() == ["base", "sage_grpo", "cps", "cps"]
    assert found["kl"].tolist() == ["none", "dual", "none", "fixed"]
    assert found["n_seeds"].tolist() == [0, 3, 0, 3]
    names = ["overall", "overall_delta", "trained", "trained_delta", "vq", "mq", "ta", "clipscore", "pickscore"]
    for name in [*names, "gold_overall"]:
        assert {name, f"{name}_lo", f"{name}_hi"} <= set(found.columns)
    assert "variant" not in found.columns
    assert {"n_failed", "run_ids"} <= set(found.columns)
    assert not [name for name in found.columns if name.startswith("published")]


def test_numbers_are_the_statistics_of_the_scores(suite: Path) -> None:
    found = table(suite).set_index("row").loc["sage_grpo-dual"]

    def overall(row: str, seed: int | None) -> np.ndarray:
        frame = store.read_run(store.run_folder(suite, row, seed))[1]
        frame = frame[frame["metric"].isin(["VQ", "MQ", "TA"])]
        return (frame.groupby("prompt_index")["value"].sum() / VIDEOS).to_numpy()

    x, base = np.stack([overall("sage_grpo-dual", seed) for seed in range(3)]), overall("base", None)
    mean, delta = statistics.two_way(x), statistics.paired_difference(x, base)
    assert [found[f"overall{end}"] for end in ("", "_lo", "_hi")] == pytest.approx(
        [mean.mean, mean.lo, mean.hi], rel=1e-6
    )
    names = [f"overall_delta{end}" for end in ("", "_lo", "_hi")]
    assert [found[name] for name in names] == pytest.approx([delta.mean, delta.lo, delta.hi], rel=1e-6)
    assert found["overall_delta"] == pytest.approx(1.5, abs=0.2)
    assert found["trained_delta"] == pytest.approx(1.0, abs=0.15)
    assert found["overall_delta_p"] == pytest.approx(delta.p, rel=1e-6)
    assert found["seeds"] == "0 1 2"
    assert [float(text) for text in found["overall_by_seed"].split()] == pytest.approx(x.mean(1), rel=1e-7)
    assert found["improvement"] > 0.9
    assert found["nfe_rollout"] == 1280
    assert found["reward_calls"] == 128


def test_the_base_has_an_interval_over_prompts(suite: Path) -> None:
    base = table(suite).iloc[0]
    assert base["overall_lo"] < base["overall"] < base["overall_hi"]
    assert np.isnan(base["overall_delta"])


def test_markdown_says_what_must_be_said(suite: Path) -> None:
    text = render(suite)["main.md"]
    assert re.search(r"\| sage_grpo-dual +\| +3/3 \| +\*\*-?\d\.\d\d \[-?\d\.\d\d, -?\d\.\d\d\]\*\*", text)
    for phrase in [
        "nothing here is a result about HunyuanVideo-1.5",
        "the ratio is 1, and the clip has no effect",
        "variance components of seeds x prompts",
        "n = 3 seeds (0, 1, 2)",
        "predicted_x0",
        "common_eta (eta 0.5)",
        "MDE",
        "0.5 VQ + 0.5 MQ + 1 TA",
        "cps-none: 3 of 3 seeds have not run yet",
    ]:
        assert phrase in text
    assert re.search(r"\| cps-none +\| +0/3 \| +n/a \|", text)


def cells(text: str, section: str) -> dict[str, list[str]]:
    """The cells of a section of main.md by the first one of their line."""
    lines = text.partition(f"## {section}\n")[2].partition("\n## ")[0].splitlines()
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    return {line[0]: line[1:] for line in found}


def test_bold_is_the_best_and_a_star_is_significant(suite: Path) -> None:
    text = render(suite)["main.md"]
    differences, scores = cells(text, "Differences"), cells(text, "Scores")
    assert re.fullmatch(r"\*\*1\.\d+ \[1\.\d+, 1\.\d+\]\*\* \*", differences["sage_grpo-dual"][0])
    assert re.fullmatch(r"-?0\.\d+ \[-0\.\d+, 0\.\d+\]", differences["cps-fixed"][0]), "worse, and not told from 0"
    assert scores["sage_grpo-dual"][1].startswith("**")
    assert not scores["cps-fixed"][1].startswith("**")
    assert "**" not in "".join(scores["base"])


def test_a_significant_loss_has_a_star_and_is_never_bold(suite: Path) -> None:
    for seed in range(3):
        write(suite, "sage_grpo-dual", seed, -0.5)
        write(suite, "cps-fixed", seed, -0.6)
    text = render(suite)["main.md"]
    for row in ("sage_grpo-dual", "cps-fixed"):
        assert re.fullmatch(r"-1\.\d+ \[-\d\.\d+, -1\.\d+\] \*", cells(text, "Differences")[row][0])
    assert cells(text, "Scores")["base"][1].startswith("**"), "the base is the best"


def test_rows_that_the_tests_do_not_tell_apart_are_bold_too(suite: Path) -> None:
    for seed in range(3):
        write(suite, "cps-none", seed, 0.5)
    scores = cells(render(suite)["main.md"], "Scores")
    assert all(scores[row][1].startswith("**") for row in ("sage_grpo-dual", "cps-none"))
    assert not scores["cps-fixed"][1].startswith("**")
    assert sum(scores[row][2].startswith("**") for row in scores) == 1, "VQ has no tests: the best mean only"


def test_every_tested_difference_has_one_p_value_on_the_page(suite: Path) -> None:
    main = load_main_table(suite)
    heads = {title: section[0] for title, section in main.sections.items()}
    assert [title for title, names in heads.items() if "p (Holm)" in names] == ["Differences", "Pairs of rows"]
    assert "best other" not in render(suite)["main.md"]
    assert list(main.sections)[:3] == ["Scores", "Differences", "Pairs of rows"], "the result comes first"
    assert list(main.sections)[-1] == "Runs"


def test_further_metrics_have_names_and_run_ids_a_section(suite: Path) -> None:
    sections = load_main_table(suite).sections
    assert sections["Further metrics"][0] == ["Row", "gold MQ ↑", "gold TA ↑", "gold VQ ↑"]
    assert sections["Scores"][0][:3] == ["Row", "seeds", "Overall ↑"]
    assert len(sections["Runs"][1][1][1].split()) == 3


def test_the_page_starts_with_headline_and_checks(suite: Path) -> None:
    lines = render(suite)["main.md"].splitlines()
    assert lines[2].startswith("**SAGE-GRPO gains most in Overall over the base, 1.")
    assert lines[4].startswith("Checks: **missing**: seeds done (6 of 9 runs finished); positive control (not run); ")
    assert lines[4].endswith(" passed: equal budget, ratio_audit, smallest detectable effect.")


def test_scores_of_one_kind_have_one_number_of_decimals(suite: Path) -> None:
    scores = cells(render(suite)["main.md"], "Scores")
    names = load_main_table(suite).sections["Scores"][0][1:]
    digits = {
        len(scores[row][names.index(name)].strip("*").split()[0].partition(".")[2])
        for row in ("base", "sage_grpo-dual", "cps-fixed")
        for name in ("Overall ↑", "VQ ↑", "MQ ↑", "TA ↑", "gold Overall ↑")
    }
    assert len(digits) == 1


def test_failed_and_missing_runs_are_counted(suite: Path) -> None:
    write(suite, "cps-none", 0, 0.1)
    write(suite, "cps-none", 1, status="failed", error="reward is not finite", ledger={})
    rendered = render(suite)
    found = pd.read_csv(io.StringIO(rendered["main.csv"])).set_index("row").loc["cps-none"]
    assert (found["n_seeds"], found["n_failed"]) == (1, 1)
    assert np.isfinite(found["overall"])
    assert np.isnan(found["overall_lo"])
    assert "1/3 (1 failed)" in rendered["main.md"]
    assert "cps-none, seed 1 failed: reward is not finite." in rendered["main.md"]
    assert "cps-none: 1 of 3 seeds have not run yet." in rendered["main.md"]


def test_pilot_seeds_stay_out(suite: Path) -> None:
    before = table(suite)
    write(suite, "cps-fixed", 100, 9.0, config=CONFIG | {"seeds": [100]})
    pd.testing.assert_frame_equal(table(suite), before)
    assert "not in this table: cps-fixed/seed-100" in render(suite)["main.md"]


@pytest.mark.parametrize("folder", ["seed-7", "seed-0_copy"])
def test_a_run_that_is_there_twice_is_refused_by_both_folders(suite: Path, folder: str) -> None:
    row = suite / "cps-fixed"
    shutil.copytree(row / "seed-0", row / folder)
    with pytest.raises(BenchError, match=r"cps-fixed seed 0 is there twice: .*seed-0 and .*" + folder):
        render(suite)


@pytest.mark.parametrize("place", ["cps-fixed/.ipynb_checkpoints/seed-0", ".trash/seed-0", "cps-fixed/.seed-0"])
def test_hidden_folders_are_passed_over(suite: Path, place: str) -> None:
    before = render(suite)
    shutil.copytree(suite / "cps-fixed" / "seed-0", suite / place)
    assert render(suite) == before


def test_a_run_that_fails_a_gate_is_marked(suite: Path) -> None:
    write(suite, "cps-none", 0, gates={"ratio_audit": {"passed": False}, "golden": True})
    text = render(suite)["main.md"]
    assert "| cps-none †" in text
    assert "fails the validity gate ratio_audit" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"budget": {"updates": 3, "minibatches": 1, "grad_clip": 2.0}},
            r"budget \{'updates': 2\} against \{'updates': 3\}",
        ),
        ({"budget_digest": "c"}, "budget digest b against c"),
        ({"prompts_digest": "q"}, "prompts digest p against q"),
        ({"evaluators": {name: {"weights": "9"} for name in METRICS}}, "evaluator fingerprints"),
        ({"backbone": {"weights": "9"}}, "backbone fingerprint"),
        ({"suite": "full"}, "suite toy-nano against full"),
        ({"ledger": LEDGER | {"nfe_rollout": 1281}}, "nfe_rollout 1280 against 1281"),
        ({"ledger": LEDGER | {"nfe_train": 1}}, "nfe_train 1920 against 1"),
        ({"ledger": LEDGER | {"reward_calls": {"videoalign": 127}}}, "reward_calls .*128.* against .*127"),
        ({"ledger": {}}, "has no nfe_rollout"),
        ({"config": CONFIG | {"decode": "final_latent"}}, "decode predicted_x0 against final_latent"),
        ({"config": CONFIG | {"reward": {"videoalign": {"VQ": 1.0}}}}, "reward"),
    ],
)
def test_unequal_rows_are_refused(suite: Path, changes: dict[str, Any], message: str) -> None:
    write(suite, "cps-none", 0, **changes)
    with pytest.raises(BenchError, match=rf"cps-none/seed-0.*{message}"):
        render(suite)


def drop_prompt(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["prompt_index"] > 0]


def other_evaluator(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame[frame["metric"] == "VQ"].assign(evaluator="other")])


def no_ta(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["metric"] != "TA"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_prompt, "scored videos"),
        (other_evaluator, "two evaluators"),
        (no_ta, r"lack the trained metrics \['TA'\]"),
    ],
)
def test_other_videos_or_metrics_are_refused(
    suite: Path, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    folder = store.run_folder(suite, "cps-fixed", 2)
    record, frame = store.read_run(folder)
    store.write_run(folder, record, change(frame))
    with pytest.raises(BenchError, match=message):
        render(suite)


def test_a_folder_without_records_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="bench run"):
        build_table(tmp_path)
    assert not (tmp_path / "tables").exists()


def test_without_a_base_there_are_no_differences(suite: Path) -> None:
    for name in (store.RUN, store.SCORES):
        (suite / "base" / name).unlink()
    rendered = render(suite)
    assert "The base has no record yet" in rendered["main.md"]
    assert pd.read_csv(io.StringIO(rendered["main.csv"]))["overall_delta"].isna().all()


def test_a_suite_with_fewer_evaluators_has_fewer_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gold", "pickscore"):
        monkeypatch.delitem(METRICS, name)
    write(tmp_path / "s", "base", None)
    write(tmp_path / "s", "cps-none", 0)
    found = table(tmp_path / "s")
    assert not [name for name in found if "gold" in name or "pickscore" in name]
    assert found["vq"].notna().sum() == 2
    assert "[n/a]" in render(tmp_path / "s")["main.md"]


def test_the_stored_reference_stands_beside(suite: Path, tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    for seed in range(5):
        write(stored, "sage_grpo-dual", seed, 0.5, config=CONFIG | {"seeds": list(range(5))})
    rendered = render(suite, reference=stored)
    found = pd.read_csv(io.StringIO(rendered["main.csv"])).set_index("row")
    assert found.loc["sage_grpo-dual", "reference_n_seeds"] == 5
    low, mean, high = (found.loc["sage_grpo-dual", f"reference_overall{end}"] for end in ("_lo", "", "_hi"))
    assert low < mean < high
    assert np.isnan(found.loc["cps-fixed", "reference_overall"])
    assert "Stored reference: our own runs with the same budget and prompts" in rendered["main.md"]
    for seed in range(5):
        write(stored, "sage_grpo-dual", seed, 0.5, budget_digest="c")
    assert "ANOTHER budget" in render(suite, reference=stored)["main.md"]


def flat(folder: Path, row: str, seed: int | None, value: float, **changes: Any) -> None:
    """A run whose every score is `value`: Overall and gold Overall are 3 times, trained is twice that."""
    write(folder, row, seed, **changes)
    record, frame = store.read_run(store.run_folder(folder, row, seed))
    store.write_run(store.run_folder(folder, row, seed), record, frame.assign(value=value))


def beside(suite: Path, stored: Path) -> tuple[pd.DataFrame, str]:
    rendered = render(suite, reference=stored)
    return pd.read_csv(io.StringIO(rendered["main.csv"])).set_index("row"), rendered["main.md"]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A suite with the base at 1 and three seeds of one row, and its reference with five: 1, 2, 3, 4, 5."""
    suite, stored = tmp_path / "own" / "toy-nano", tmp_path / "stored" / "toy-nano"
    for folder, values in [(suite, [4.0, 4.0, 4.0]), (stored, [1.0, 2.0, 3.0, 4.0, 5.0])]:
        config = CONFIG | {"seeds": list(range(len(values)))}
        flat(folder, "base", None, 1.0, config=config)
        for seed, value in enumerate(values):
            flat(folder, "cps-fixed", seed, value, config=config)
    return suite, stored


@pytest.mark.parametrize(
    ("stored", "n", "mean", "half"),
    [
        ([1, 2, 3], 3, 2.0, 4.302653 * 1.0 * 0.816497),  # t(2), s, sqrt(1/3 + 1/3)
        ([1, 2, 3, 4, 5], 3, 3.0, 2.776445 * 1.581139 * 0.730297),
    ],
)
def test_prediction_band_by_hand(stored: list[float], n: int, mean: float, half: float) -> None:
    assert prediction_band(stored, n) == pytest.approx((mean - half, mean + half), rel=1e-5)


@pytest.mark.parametrize(("stored", "n"), [([1.0], 3), ([], 3), ([1.0, 2.0], 3), ([1.0, 2.0, 3.0], 0)])
def test_no_band_without_three_stored_seeds_and_one_here(stored: list[float], n: int) -> None:
    assert np.isnan(prediction_band(stored, n)).all()


def test_prediction_band_covers_95_percent() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 8))
    bands = [prediction_band(draw[:5], 3) for draw in draws]
    covered = np.mean([lo <= draw[5:].mean() <= hi for draw, (lo, hi) in zip(draws, bands, strict=True)])
    assert covered == pytest.approx(0.95, abs=0.014)  # 4 standard errors of a share over 4000 draws


def test_inside_and_outside_the_band(pair: tuple[Path, Path]) -> None:
    found, text = beside(*pair)
    row = found.loc["cps-fixed"]
    for name, factor, shift in [("overall", 3, 0), ("trained", 2, 0), ("gold_overall", 3, 0), ("overall_delta", 3, 1)]:
        assert row[f"reference_{name}"] == pytest.approx(factor * (3 - shift))
        band = [row[f"reference_{name}_band_{end}"] for end in ("lo", "hi")]
        half = 3.205963  # t(4) 2.776445, s 1.581139, sqrt(1/3 + 1/5) 0.730297
        assert band == pytest.approx([factor * (3 - shift - half), factor * (3 - shift + half)], rel=1e-5)
        assert str(row[f"reference_{name}_inside"]) == "True"
        assert pd.isna(found.loc["base", f"reference_{name}_inside"])
    assert re.search(
        r"\| cps-fixed +\| +Overall +\| +3 \| +5 \| +12.00 \| +9.00 \| +\[-0.62, 18.62\] \| +160 % \| +inside", text
    )
    assert re.search(r"\| base +\| +Overall +\| +- \| +- \| +3.00 \| +3.00 \| +- \| +- \| +equal", text)
    assert "3 of 3 comparisons (Overall, Reward, gold Overall of each row) are inside their band" in text
    assert "1 of 4 runs that are also in the reference (row and seed, or the base) have equal bits; Overall" in text
    assert "cps-fixed: band ± 160 % of the gain: it cannot tell learning from none." in text
    assert "Overall of the others differs by up to 9" in text

    flat(pair[0], "cps-fixed", 2, 20.0)  # mean 9.33, band up to 6.21
    found, text = beside(*pair)
    assert str(found.loc["cps-fixed", "reference_overall_inside"]) == "False"
    assert "0 of 3 comparisons" in text
    assert re.search(r"\| cps-fixed +\| +Reward .*\| +outside", text)


def test_equal_runs_are_counted_and_equal_scores_are_inside(pair: tuple[Path, Path]) -> None:
    suite, stored = pair
    shutil.rmtree(stored)
    shutil.copytree(suite, stored)
    found, text = beside(suite, stored)  # the seeds do not differ at all: a band of no width
    assert str(found.loc["cps-fixed", "reference_overall_inside"]) == "True"
    assert "4 of 4 runs that are also in the reference (row and seed, or the base) have equal bits. Equal" in text
    assert "cannot tell learning from none" not in text


def test_one_stored_seed_gives_no_band(pair: tuple[Path, Path]) -> None:
    for seed in range(1, 5):
        shutil.rmtree(pair[1] / "cps-fixed" / f"seed-{seed}")
    found, text = beside(*pair)
    assert found.loc["cps-fixed", "reference_n_seeds"] == 1
    assert found.loc["cps-fixed", "reference_overall"] == 3
    assert np.isnan(found.loc["cps-fixed", "reference_overall_band_lo"])
    assert "No comparison with the reference has a band." in text


def test_a_base_that_differs_says_by_how_much(pair: tuple[Path, Path]) -> None:
    flat(pair[1], "base", None, 0.999)
    assert re.search(r"\| base +\| +Overall .*\| +differs by 3.0e-03", beside(*pair)[1])


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"budget_digest": "c"}, "budget digest"),
        ({"prompts_digest": "q"}, "prompts digest"),
        ({"backbone": {"weights": "9"}}, "backbone fingerprint"),
        ({"config": CONFIG | {"decode": "final_latent"}}, "decode"),
    ],
)
def test_other_settings_than_the_reference_give_no_verdict(
    pair: tuple[Path, Path], changes: dict[str, Any], what: str
) -> None:
    shutil.rmtree(pair[1])
    flat(pair[1], "base", None, 1.0, **changes)
    for seed in range(3):
        flat(pair[1], "cps-fixed", seed, float(seed), **changes)
    found, text = beside(*pair)
    assert f"made with ANOTHER {what}: do not compare" in text
    assert found.loc["cps-fixed", "reference_overall"] == 3
    assert found.filter(regex="_inside$|_band_").isna().all(axis=None)
    assert "inside" not in text
    assert not re.search(r"\| +outside +\|", text), "a verdict; the share of videos outside is another column"


@pytest.mark.parametrize(
    "changes",
    [
        {"method_params": {"eta": 0.9}},
        {"config": CONFIG | {"rows": [{"method": "cps", "kl": {"name": "fixed", "params": {"beta": 1}}}]}},
    ],
)
def test_a_row_with_other_parameters_is_not_compared(pair: tuple[Path, Path], changes: dict[str, Any]) -> None:
    for seed in range(3):
        flat(pair[0], "cps-fixed", seed, 4.0, **changes)
    found, text = beside(*pair)
    assert np.isnan(found.loc["cps-fixed", "reference_overall_band_lo"])
    assert "Not compared, because their parameters differ from those of the reference: cps-fixed." in text


# controls -----------------------------------------------------------------------------------------------------
def control(folder: Path, which: str, lift: float, seeds: int = 3, shuffled: bool | None = None) -> None:
    """A control suite of toy-nano below `folder`: one row, the base at its own noise."""
    name = f"toy-nano_control_{which}"
    config = CONFIG | {
        **{"suite": name, "reward": {"gold": {"gold_VQ": 1.0}}, "rows": [{"method": "cps", "kl": "fixed"}]},
        "shuffle_rewards": which == "shuffled" if shuffled is None else shuffled,
    }
    write(folder / name, "base", None, suite=name, config=config)
    for seed in range(seeds):
        write(folder / name, "cps-fixed", seed, lift, suite=name, config=config)


def control_lines(suite: Path) -> list[str]:
    text = render(suite, reference=suite.parent / "stored" / "toy-nano")["main.md"]
    return [
        line
        for line in text.splitlines()
        if re.match(r"(- )?\**(Positive control|Negative control|Controls|This)", line)
    ]


def test_controls_that_pass(suite: Path, tmp_path: Path) -> None:
    control(tmp_path, "gold", 0.5)
    control(tmp_path / "stored", "shuffled", 0.0)
    positive, negative = control_lines(suite)
    start = r"- Positive control toy-nano_control_gold \(your own runs\): 3 seeds, reward 1 gold_VQ; Reward - base: "
    assert re.match(start + r"cps-fixed 0\.\d+ \[0\.\d+, 0\.\d+\]\. It passes", positive)
    assert "Negative control toy-nano_control_shuffled (our stored runs): 3 seeds" in negative
    assert "reward 1 gold_VQ, shuffled within each group" in negative
    assert "It passes: each upper limit lies below half of the positive control's effect" in negative


def test_controls_that_fail_are_bold(suite: Path, tmp_path: Path) -> None:
    control(tmp_path, "gold", 0.0)
    control(tmp_path, "shuffled", 0.5)
    positive, negative = control_lines(suite)
    for line, why in [(positive, "no interval lies above 0"), (negative, "cps-fixed rises although")]:
        assert line.startswith("- **")
        assert line.endswith("**")
        assert f"It FAILS: {why}" in line
    tex = render(suite)["main.tex"].replace(r"\allowbreak{}", "")
    assert "FAILED: positive control, negative control." in tex, "LaTeX says so too"


def test_own_controls_stand_before_stored_ones(suite: Path, tmp_path: Path) -> None:
    control(tmp_path, "gold", 0.5)
    control(tmp_path / "stored", "gold", 0.0)
    assert ["your own runs" in line and "passes" in line for line in control_lines(suite)] == [True]


def test_controls_without_enough_seeds_are_undecided(suite: Path, tmp_path: Path) -> None:
    control(tmp_path, "gold", 0.5, seeds=1)
    control(tmp_path, "shuffled", 0.0, seeds=2)
    positive, negative = control_lines(suite)
    assert "[n/a] (1/3 seeds, 0 failed). Undecided" in positive
    assert "(2/3 seeds, 0 failed). Undecided" in negative


def test_a_control_with_the_wrong_rewards_or_broken_records_is_named(suite: Path, tmp_path: Path) -> None:
    control(tmp_path, "shuffled", 0.0, shuffled=False)
    control(tmp_path, "gold", 0.5)
    (tmp_path / "toy-nano_control_gold" / "base" / store.SCORES).unlink()
    positive, negative = control_lines(suite)
    assert "**Positive control toy-nano_control_gold (your own runs) has no verdict: scores" in positive
    assert "It is NOT a negative control: its rewards are not shuffled.**" in negative


def test_absent_controls_are_named_if_the_project_has_them(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert control_lines(suite) == []
    monkeypatch.setattr(controls, "CONFIGS", tmp_path)
    for which in ("gold", "shuffled"):
        (tmp_path / f"toy-nano_control_{which}.yaml").touch()
    absent = [
        f"- {kind} control toy-nano_control_{which}: Not run. Run `bench run toy-nano_control_{which}`."
        for kind, which in (("Positive", "gold"), ("Negative", "shuffled"))
    ]
    assert control_lines(suite) == absent
    control(tmp_path, "gold", 0.5)
    assert control_lines(suite)[1:] == absent[1:]
    assert not any("Not run" in line for line in control_lines(tmp_path / "toy-nano_control_gold"))


def test_a_control_says_so_above_its_own_table(tmp_path: Path) -> None:
    for which, kind in [("gold", "positive"), ("shuffled", "negative")]:
        control(tmp_path, which, 0.5 if which == "gold" else 0.0)
        (line,) = control_lines(tmp_path / f"toy-nano_control_{which}")
        assert line.startswith(f"- This suite is a {kind} control: 3 seeds")


def test_tex_is_escaped_and_balanced(suite: Path) -> None:
    text = render(suite)["main.tex"]
    assert "SAGE-" in text
    assert "sage_grpo" not in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\end{tabular*}")
    blocks = re.findall(r"\\begin\{tabular\*\}[^\n]*?(c+)@\{\}\}\n(.*?)\\end\{tabular\*\}", text, flags=re.S)
    assert len(blocks) == text.count(r"\toprule")
    for columns, body in blocks:
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") for line in lines} == {len(columns)}


def test_loading_gives_figures_what_they_need(suite: Path) -> None:
    loaded = load_records(suite)
    assert loaded.seeds == [0, 1, 2]
    assert loaded.nano
    matrix = loaded.rows[0].matrix("overall")
    assert matrix is not None
    assert matrix.shape == (3, len(PROMPTS))
    assert {"gold_vq", "gold_mq", "gold_ta", "trained"} <= set(loaded.columns)


def test_clipped_gradients_have_a_footnote_with_their_share(suite: Path) -> None:
    write_lines(suite / "cps-fixed" / "seed-0", [{"grad_norm": [2.0, 0.1], "grad_clipped": 1}] * 3)
    write_lines(suite / "cps-fixed" / "seed-1", [{"grad_norm": [0.1, 0.1], "grad_clipped": 0}] * 3)
    write_lines(suite / "sage_grpo-dual" / "seed-0", [{"grad_norm": [2.0, 2.0]}] * 3)
    notes = [note for note in load_main_table(suite).notes() if "clipped" in note]
    assert notes == [
        "cps-fixed: its gradients were clipped in 3 of 12 optimizer steps (25 %; median norm over the limit: 0.05): "
        "there the scale of its loss acted as a learning rate."
    ], "an older log does not say"
    write_lines(suite / "sage_grpo-dual" / "seed-0", [{"grad_norm": [0.2, 0.4], "grad_clipped": 0}] * 3)
    first, note = (note for note in load_main_table(suite).notes() if "clipped" in note)
    assert first == notes[0]
    assert note.startswith("No gradient of these rows was clipped; in brackets the median norm over the limit: ")
    assert note.endswith(": sage_grpo-dual (0.15).")


def test_the_mean_of_each_seed_stands_in_the_table(suite: Path) -> None:
    (suite / "cps-fixed" / "seed-1" / store.RUN).unlink()
    heads, lines = load_main_table(suite).sections["Each seed"]
    assert heads == ["Row", "Overall of seed 0, 1, 2"]
    by_row = dict(lines)
    assert re.fullmatch(r"-?\d\.\d\d, n/a, -?\d\.\d\d", by_row["cps-fixed"])
    assert by_row["cps-none"] == "n/a, n/a, n/a"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.465, -0.005, 0.935), "0.47 [-0.01, 0.94]"),
        ((0.465, -0.0047, 0.935), "0.465 [-0.005, 0.935]"),
        ((0.465, 0.0047, 0.935), "0.465 [0.005, 0.935]"),
        ((-0.5, -0.9, -0.0003), "-0.5000 [-0.9000, -0.0003]"),
        ((0.5, 0.0, 1.0), "0.50 [0.00, 1.00]"),
        ((0.5, -1e-12, 1.0), "0.500000 [0.000000, 1.000000]"),
    ],
)
def test_rounding_does_not_hide_on_which_side_of_0_a_limit_lies(values: tuple[float, ...], text: str) -> None:
    row = pd.Series(dict(zip(("x", "x_lo", "x_hi"), values, strict=True)))
    assert formatting.interval(row, "x", 2) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"), [(0.812, 2, "0.81"), (-0.001, 2, "0.00"), (None, 2, "n/a"), (float("nan"), 2, "n/a")]
)
def test_number(value: float | None, digits: int, text: str) -> None:
    assert formatting.number(value, digits) == text


def test_decimals_follow_the_narrowest_interval() -> None:
    for width, digits in [(1.0, 2), (0.08, 3), (0.008, 4), (1e-9, 4), (0.0, 2)]:
        frame = pd.DataFrame({"x": [0.0], "x_lo": [0.0], "x_hi": [width]})
        assert formatting.decimals(frame, "x") == digits


def test_small_texts() -> None:
    assert formatting.p_value(0.0001) == "<0.001"
    assert formatting.p_value(None) == "n/a"
    assert formatting.count(1234567) == "1,234,567"
    assert formatting.marked("1.0", is_best=True, is_starred=True) == "**1.0** *"
    assert [formatting.effect(value) for value in (1.234, 0.09999, 0.00024, None)] == ["1.23", "0.1", "0.00024", "n/a"]


# prompts that a scorer cuts -----------------------------------------------------------------------------------
def test_the_notes_say_how_many_prompts_are_cut_where_the_records_do(suite: Path) -> None:
    assert "prompts are cut" not in render(suite)["main.md"]
    found = {"clipscore": 0.0, "pickscore": 0.25, "videoalign": 0.0}
    limits = {"clipscore": 77, "pickscore": 77}
    write(suite, "sage_grpo-dual", 1, 0.5, extra={"prompts_cut": found, "token_limit": limits})
    for text in render(suite).values():
        told = re.findall(r"(\S+): (\S+) \\?% of the prompts are cut at (\d+) tokens", text)
        assert told in ([], [("CLIPScore", "0", "77"), ("PickScore", "25", "77")])
    assert "CLIPScore: 0 % of the prompts are cut at 77 tokens." in render(suite)["main.md"]
