"""The figures: their numbers against hand-computed ones, the same bytes twice, refusal of records that lack them."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench import store
from bench.api import BenchError
from bench.cli import main
from bench.core.provenance import ROOT
from bench.report.data.loading import load_records
from bench.report.data.mechanism import gradients, noise
from bench.report.data.rollouts import moving_mean, rollouts
from bench.report.data.training import load_training
from bench.report.figures import plots
from bench.report.figures.suite import build_figures
from tests.helpers.records import METRICS, make_record, make_scores, write_lines, write_run

UPDATES, NFE = 7, 320
CONFIG: dict[str, Any] = {
    "suite": "toy-nano",
    "backbone": {"name": "toy", "checkpoint": "nano"},
    "budget": {"updates": UPDATES},
    "noise_policy": {"kind": "common_eta", "eta": 0.5},
    "reward": {"videoalign": {"VQ": 0.5, "TA": 1.0}},
    "seeds": [0, 1, 2],
    "rows": [{"method": "sage_grpo", "kl": "dual"}, {"method": "cps", "kl": "fixed"}, {"method": "dance_grpo"}],
}
SAGE = {
    "sigma": [1.0, 0.9, 0.7, 0.4, 0.0],
    "std": [0.4, 0.3, 0.2, 0.0],
    "predicted_grad_norm": [0.25, 1.0, 4.0, 1.0],
    "step_weight": [4.0, 1.0, 0.25, 1.0],
}
CPS = SAGE | {"std": [0.1, 0.2, 0.2, 0.0], "predicted_grad_norm": [2.0, 1.0, 1.0, 0.5], "step_weight": [1.0] * 4}
HALF = 4.302652730 * 2 / math.sqrt(3)  # of the interval of 0, 2 and 4: Student's t, 2 degrees of freedom, 97.5 %
ROUND = math.cbrt(16)  # geometric mean of the measured norms before the equalizer, 2, 2 and 4


def line(seed: int, update: int) -> dict[str, Any]:
    """Reward update^2 + 2 seed, gold 0.6 + update; norms 8, 2, 1 times 4^seed in the geometric mean over updates."""
    sway = {0: 2.0, 1: 0.5}.get(update % 2 if update < 6 else 2, 1.0)
    norms = {"0": 8.0 * sway * 4**seed, "1": 2.0 / sway * 4**seed}
    if update % 2 == 0:  # trained in some updates only
        norms["2"] = 1.0 * 4**seed
    return {
        "update": update,
        "reward": update**2 + 2.0 * seed,
        "rewards": {"VQ": 0.0, "TA": 0.0},
        "monitor": {"gold_VQ": 0.1, "gold_MQ": 0.5, "gold_TA": float(update), "dark_fraction": 0.5},
        "grad_norm_of_step": norms,
        "reward_group_std": 1.0 + update,
        "kl_anchor": 0.0 if update % 3 == 0 else 0.01 * update,
        "grad_norm": [0.5, 1.5],
        "ratio_error": 0.0,
        "clipped_share": 0.25,
        "ledger": {"nfe_rollout": NFE * (update + 1), "nfe_anchor": 0, "reward_calls": {"videoalign": 1}},
    }


def write(folder: Path, row: str, seed: int, schedule: dict[str, Any], **changes: Any) -> Path:
    ledger = {"nfe_rollout": NFE * UPDATES, "nfe_train": 1, "reward_calls": {"videoalign": 1}}
    record = make_record(CONFIG, row, seed, **{"ledger": ledger, "extra": {"schedule": schedule}, **changes})
    scores = make_scores(["p"], 1, lambda p, k, metric: 0.5, {"videoalign": METRICS["videoalign"]})
    return write_run(folder, record, scores, [line(seed, update) for update in range(UPDATES)])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sage_grpo-dual: 2 seeds finished, 1 failed; cps-fixed: 1 seed; dance_grpo: none. Its figures are built."""
    folder = tmp_path_factory.mktemp("drawn") / "toy-nano"
    for seed in range(2):
        write(folder, "sage_grpo-dual", seed, SAGE)
    write(folder, "sage_grpo-dual", 2, SAGE, status="failed", error="loss is not finite", extra={}, updates_done=3)
    write(folder, "cps-fixed", 0, CPS)
    build_figures(folder)
    return folder


@pytest.fixture
def suite(drawn: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil, without figures."""
    return shutil.copytree(drawn, tmp_path / "toy-nano", ignore=shutil.ignore_patterns("figures"))


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of numbers and captions: images are drawn, but not turned into bytes, which takes a second."""
    monkeypatch.setattr(plots, "figure_files", lambda name, _, frame: {f"{name}.csv": frame.to_csv().encode()})


def numbers(folder: Path, name: str, row: str) -> pd.DataFrame:
    found = pd.read_csv(folder / "figures" / f"{name}.csv")
    return found[found["row"] == row].reset_index(drop=True)


def test_every_figure_has_its_three_files(drawn: Path) -> None:
    names = [
        f"{name}.{kind}" for name in ("rollouts", "dynamics", "noise", "gradients") for kind in ("png", "pdf", "csv")
    ]
    folder = drawn / "figures"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "figures.md"])
    for name in names:
        content = (folder / name).read_bytes()
        assert len(content) > 300
        assert content.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "csv": b""}[name[-3:]])


def test_the_same_records_give_the_same_bytes(drawn: Path, suite: Path) -> None:
    for name, path in build_figures(suite).items():
        assert path.read_bytes() == (drawn / "figures" / name).read_bytes(), name


def test_rollouts_are_gains_since_update_0_in_whole_windows(drawn: Path) -> None:
    found = numbers(drawn, "rollouts", "sage_grpo-dual")
    trained = found[(found["panel"] == "trained") & (found["seed"] == 0)]
    assert trained["nfe_rollout"].tolist() == [NFE * k for k in range(1, UPDATES + 1)]
    assert trained["mean_score"].tolist() == [k**2 for k in range(UPDATES)]
    gains = [math.nan, math.nan, 6, 11, 18, math.nan, math.nan]  # means of k^2 over five updates, less 0
    assert trained["value"].tolist() == pytest.approx(gains, nan_ok=True)
    assert trained["mean"].tolist() == pytest.approx(gains, nan_ok=True)
    assert set(found["panel"]) == {"trained", "gold_overall"}


def test_rollouts_are_adjusted_for_the_prompts_that_all_rows_see(suite: Path) -> None:
    """A seed whose prompts are harder in some updates has the same effect on both rows, and it is removed."""
    write(suite, "cps-fixed", 1, CPS)
    for row in ("cps-fixed", "sage_grpo-dual"):
        path = store.run_folder(suite, row, 1)
        lines = store.read_lines(path / store.TRAIN)
        for one in lines:
            one["reward"] += (-1) ** one["update"] * 10
        write_lines(path, lines)
    found = rollouts(load_training(suite, load_records(suite)))
    trained = found[(found["panel"] == "trained") & (found["row"] == "cps-fixed")]
    values = trained.pivot(index="update", columns="seed", values="value").dropna()
    assert values[0].tolist() == pytest.approx(values[1].tolist())


def test_dynamics_are_drawn_as_recorded_and_what_is_0_is_only_named(drawn: Path) -> None:
    found = numbers(drawn, "dynamics", "cps-fixed").groupby("panel")["value"].apply(list)
    assert found["reward_group_std"] == pytest.approx([math.nan, math.nan, 3, 4, 5, math.nan, math.nan], nan_ok=True)
    assert found["kl_anchor"] == pytest.approx([0, 0.01, 0.02, 0, 0.04, 0.05, 0])
    assert found["grad_norm"][2:5] == [1, 1, 1]
    assert found["ratio_error"] == [0] * UPDATES
    text = (drawn / "figures" / "figures.md").read_text(encoding="utf-8")
    assert "0 in every update and not drawn: ratio error." in text


@pytest.mark.parametrize("row", ["cps-fixed", "sage_grpo-dual"])
def test_one_seed_has_no_band_and_neither_have_two(drawn: Path, row: str) -> None:
    found = numbers(drawn, "rollouts", row)
    assert found[["lo", "hi"]].isna().all(axis=None)
    assert found["mean"].notna().any()
    assert numbers(drawn, "gradients", row)["measured_after_lo"].isna().all()
    assert "95 % intervals over seeds, from 3 seeds on" in (drawn / "figures" / "figures.md").read_text(
        encoding="utf-8"
    )


def test_three_seeds_have_an_interval(suite: Path) -> None:
    """The rewards of the seeds are 0, 2 and 4 apart, and so are the logarithms (base 2) of the norms."""
    write(suite, "sage_grpo-dual", 2, SAGE)
    trainings = load_training(suite, load_records(suite))[:1]
    for seed, path in enumerate(sorted(suite.glob("sage_grpo-dual/seed-*"))):  # gains of 0, 2 and 4 at update 6
        lines = store.read_lines(path / store.TRAIN)
        lines[6]["reward"] = 36.0 + 12 * seed
        write_lines(path, lines)
    found = rollouts(load_training(suite, load_records(suite))[:1])
    last = found[(found["panel"] == "trained") & (found["update"] == 4)]
    assert (last["mean"] - last["lo"]).tolist() == pytest.approx([HALF] * 3, rel=1e-6)
    assert (last["hi"] - last["mean"]).tolist() == pytest.approx([HALF] * 3, rel=1e-6)
    norms = gradients(trainings)
    for when in ("before", "after"):
        middle = norms[f"measured_{when}"]
        assert np.log2(norms[f"measured_{when}_hi"] / middle).tolist() == pytest.approx([HALF] * 3, rel=1e-6)
        assert np.log2(middle / norms[f"measured_{when}_lo"]).tolist() == pytest.approx([HALF] * 3, rel=1e-6)


def test_noise_is_the_schedule(drawn: Path) -> None:
    found = numbers(drawn, "noise", "sage_grpo-dual")
    assert found["std"].tolist() == SAGE["std"]
    assert found["sigma"].tolist() == SAGE["sigma"][:-1]
    assert found["sigma_next"].tolist() == SAGE["sigma"][1:]
    assert found["rss"].tolist() == pytest.approx([math.sqrt(0.16 + 0.09 + 0.04)] * 4, rel=1e-7)


def test_gradients_before_and_after_the_equalizer(drawn: Path) -> None:
    found = numbers(drawn, "gradients", "sage_grpo-dual")
    assert found["step"].tolist() == [0, 1, 2]
    assert found["n_norms"].tolist() == [14, 14, 8]
    assert found["predicted_before"].tolist() == [0.25, 1, 4]
    assert found["predicted_after"].tolist() == [1, 1, 1]
    # norms 8, 2, 1 over weights 4, 1, 1/4 are 2, 2, 4; seeds 1 and 4 have the geometric mean 2
    assert found["scale"].tolist() == pytest.approx([1 / (2 * ROUND)] * 3, rel=1e-7)
    assert found["measured_before"].tolist() == pytest.approx([x / ROUND for x in (2, 2, 4)], rel=1e-7)
    assert found["measured_after"].tolist() == pytest.approx([x / ROUND for x in (8, 2, 1)], rel=1e-7)
    spreads = {"predicted_before": 16, "predicted_after": 1, "measured_before": 2, "measured_after": 8}
    for name, spread in spreads.items():
        assert found[f"{name}_spread"].tolist() == pytest.approx([spread] * 3, rel=1e-7)
    off = numbers(drawn, "gradients", "cps-fixed")
    assert off["measured_before"].tolist() == off["measured_after"].tolist()


def test_a_norm_of_zero_is_counted_and_left_out(suite: Path) -> None:
    path = store.run_folder(suite, "cps-fixed", 0)
    lines = store.read_lines(path / store.TRAIN)
    lines[0]["grad_norm_of_step"]["0"] = 0.0
    write_lines(path, lines)
    found = gradients(load_training(suite, load_records(suite)))
    found = found[found["row"] == "cps-fixed"]
    assert found["n_zero"].tolist() == [1, 0, 0]
    assert found["n_norms"].tolist() == [6, 7, 4]
    assert np.isfinite(found["measured_after"]).all()


def test_the_page_counts_seeds_and_says_what_is_drawn(drawn: Path) -> None:
    text = (drawn / "figures" / "figures.md").read_text(encoding="utf-8")
    for phrase in [
        "nothing here is a result about HunyuanVideo-1.5",
        "sage_grpo-dual 2/3 seeds (1 failed, no band)",
        "cps-fixed 1/3 seeds (no band)",
        "dance_grpo-none 0/3 seeds (not drawn)",
        "![rollouts](rollouts.png)",
        "each method's rollouts carry its own noise, so levels do not compare between methods",
        "Gain since update 0, not adjusted for prompts",
        "No held-out curves were recorded",
        "moving mean over 5 updates",
        "kind common_eta, eta 0.5",
        "the largest norm is 8 times the smallest, without it 2 times",
    ]:
        assert phrase in text


@pytest.mark.usefixtures("unsaved")
def test_text_of_the_page_is_escaped(suite: Path) -> None:
    config = CONFIG | {"noise_policy": {"kind": "<b>&"}}
    shutil.rmtree(suite)
    write(suite, "cps-fixed", 0, CPS, config=config)
    text = build_figures(suite)["figures.md"].read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;" in text
    assert "<b>" not in text


def test_gold_as_the_reward_stands_beside_what_watches(suite: Path) -> None:
    for path in sorted(suite.glob("*/seed-*")):
        lines = store.read_lines(path / store.TRAIN)
        for one in lines:
            one["rewards"], one["monitor"] = one["monitor"], {"VQ": 1.0, "MQ": 2.0, "TA": 3.0}
        write_lines(path, lines)
    found = rollouts(load_training(suite, load_records(suite)))
    assert list(found["panel"].unique()) == ["trained", "gold_overall", "overall"]
    assert found.loc[found["panel"] == "overall", "mean_score"].unique() == [6.0]
    gold = found[(found["panel"] == "gold_overall") & (found["row"] == "cps-fixed")]
    assert gold["mean_score"].tolist() == pytest.approx([0.6 + k for k in range(UPDATES)])


@pytest.mark.usefixtures("unsaved")
def test_stored_runs_stand_beside_only_if_they_compare(suite: Path, tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    for seed in range(3):
        write(stored, "sage_grpo-dual", seed, SAGE)
    paths = build_figures(suite, reference=stored)
    found = pd.read_csv(paths["rollouts.csv"])
    beside = found[found["source"] == "reference"]
    assert set(beside["row"]) == {"sage_grpo-dual"}
    assert beside["seed"].nunique() == 3
    assert "stored reference runs (sage_grpo-dual 3 seeds)" in paths["figures.md"].read_text(encoding="utf-8")
    for seed in range(3):
        write(stored, "sage_grpo-dual", seed, SAGE, budget_digest="c")
    paths = build_figures(suite, reference=stored)
    assert "another budget digest and are not drawn" in paths["figures.md"].read_text(encoding="utf-8")
    assert set(pd.read_csv(paths["rollouts.csv"])["source"]) == {"here"}
    with pytest.raises(BenchError, match=r"reference .*nowhere holds no records"):
        build_figures(suite, reference=tmp_path / "nowhere")


@pytest.mark.parametrize("key", ["monitor", "reward", "grad_norm_of_step", "ledger"])
def test_lines_that_lack_a_key_are_refused(suite: Path, key: str) -> None:
    path = store.run_folder(suite, "sage_grpo-dual", 1)
    lines = store.read_lines(path / store.TRAIN)
    del lines[4][key]
    write_lines(path, lines)
    with pytest.raises(BenchError, match=rf"seed-1/train\.jsonl, line 5, {key}: .*run `bench run` again"):
        build_figures(suite)
    assert not (suite / "figures").exists()


def test_a_metric_that_one_run_lacks_is_refused(suite: Path) -> None:
    path = store.run_folder(suite, "cps-fixed", 0)
    write_lines(path, [one | {"monitor": {}} for one in store.read_lines(path / store.TRAIN)])
    with pytest.raises(BenchError, match=r"cps-fixed/seed-0/train\.jsonl does not record the metrics.*gold_overall"):
        build_figures(suite)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, r"cps-fixed/seed-0/run\.json, extra\.schedule"),
        ({"schedule": CPS | {"std": [0.1]}}, r"run\.json, extra\.schedule: .*one value per step"),
        ({"schedule": {k: v[:-2] for k, v in CPS.items()}}, r"train\.jsonl has gradients of a step"),
    ],
)
def test_a_record_without_its_schedule_is_refused(suite: Path, extra: dict[str, Any], message: str) -> None:
    write(suite, "cps-fixed", 0, CPS, extra=extra)
    with pytest.raises(BenchError, match=message):
        build_figures(suite)


def test_curves_that_are_missing_cut_short_or_odd_are_refused(suite: Path) -> None:
    path = store.run_folder(suite, "sage_grpo-dual", 1)
    lines = store.read_lines(path / store.TRAIN)
    write_lines(path, lines[:-1])
    with pytest.raises(BenchError, match=r"train\.jsonl does not hold updates 0 to 6"):
        build_figures(suite)
    write_lines(path, [one | {"ledger": {"nfe_rollout": 1}} for one in lines])
    with pytest.raises(BenchError, match=r"seed-1/train\.jsonl has other rollout NFE than .*seed-0"):
        build_figures(suite)
    (path / store.TRAIN).unlink()
    with pytest.raises(BenchError, match=r"train\.jsonl is missing or empty"):
        build_figures(suite)
    write(suite, "sage_grpo-dual", 1, CPS)
    with pytest.raises(BenchError, match=r"schedule of .*seed-1.* is not that of .*seed-0"):
        build_figures(suite)


def test_without_a_finished_run_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="bench run"):
        build_figures(tmp_path)
    write(tmp_path, "cps-fixed", 0, CPS, status="failed", error="loss is not finite")
    with pytest.raises(BenchError, match="no finished run"):
        build_figures(tmp_path)


def test_the_command_says_what_to_run_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["figures", str(ROOT / "bench/configs/nano.yaml"), "--results", str(tmp_path)]) == 2
    assert re.fullmatch(r"bench figures: .*holds no records.*`bench run`.*\n", capsys.readouterr().err)


def test_failed_runs_need_no_curves(suite: Path) -> None:
    (store.run_folder(suite, "sage_grpo-dual", 2) / store.TRAIN).unlink()
    found = noise(load_training(suite, load_records(suite)))
    assert found.groupby("row")["n_seeds"].first().to_dict() == {"cps-fixed": 1, "sage_grpo-dual": 2}


def test_the_moving_mean_keeps_straight_lines_and_has_no_ends() -> None:
    x = np.stack([np.arange(8.0), 3 - 2 * np.arange(8.0)])
    smooth = moving_mean(x)
    assert smooth[:, 2:-2] == pytest.approx(x[:, 2:-2])
    assert np.isnan(smooth[:, [0, 1, -2, -1]]).all()
    assert moving_mean(np.array([4.0])).tolist() == [4.0]
    assert moving_mean(np.array([1.0, 2.0, 6.0, 9.0])).tolist() == pytest.approx(
        [math.nan, 3, 17 / 3, math.nan], nan_ok=True
    )


def test_figures_load_neither_torch_nor_matplotlib_to_start() -> None:
    code = "import sys, bench.report.figures.suite; print({'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
