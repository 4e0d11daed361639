"""The Python door: `bench.load_results` returns records as data frames with documented columns, without torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import bench
from bench import store
from bench.api import BenchError
from bench.core.provenance import ROOT
from bench.report.results import Results
from bench.report.tables.main import build_table
from tests.helpers.toy_records import LIFTS, write, write_suite


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite with a failed run, and another one below it in a folder of its own."""
    top = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        write_suite(top / "toy")
        write(top / "toy", "cps-fixed", 2, status="failed", error="reward is not finite.", updates_done=3)
        write_suite(top / "reference" / "toy", seeds=(0,))
    return top


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return bench.load_results(folder / "toy")


def test_runs_have_one_line_each_and_failed_ones_no_scores(results: Results) -> None:
    runs = results.runs
    assert set(runs["suite"]) == {"toy"}
    assert runs["row"].value_counts().to_dict() == {"base": 1, **dict.fromkeys(LIFTS, 3)}
    base = runs[runs["row"] == "base"].iloc[0]
    assert base["seed"] is pd.NA
    assert base["updates"] == 0
    failed = runs[runs["status"] == "failed"].iloc[0]
    assert (failed["row"], failed["seed"], failed["updates"]) == ("cps-fixed", 2, 3)
    assert failed["error"] == "reward is not finite."
    assert pd.isna(failed["overall"])
    first = runs[(runs["row"] == "sage_grpo-dual") & (runs["seed"] == 0)].iloc[0]
    record, scores = store.read_run(first["folder"])
    assert first["digest"] == record.digest
    assert first["seconds"] == 90.0
    assert first["nfe_rollout"] == record.ledger["nfe_rollout"]
    assert first["reward_calls"] == sum(record.ledger["reward_calls"].values())
    means = scores.groupby("metric")["value"].mean()
    assert first["overall"] == pytest.approx(means["VQ"] + means["MQ"] + means["TA"])
    assert first["trained"] == pytest.approx(0.5 * means["VQ"] + 0.5 * means["MQ"] + means["TA"])


def test_scores_are_those_of_the_parquet_files(results: Results) -> None:
    names = ["suite", "row", "seed", "prompt_index", "prompt", "video", "evaluator", "metric", "value"]
    assert list(results.scores.columns) == names
    own = results.scores[(results.scores["row"] == "cps-fixed") & (results.scores["seed"] == 1)]
    stored = store.read_run(results.folder / "cps-fixed" / "seed-1")[1]
    pd.testing.assert_frame_equal(own[names[3:]].reset_index(drop=True), stored)
    assert len(results.scores) == 6 * len(stored)


def test_curves_have_the_numbers_of_train_jsonl(results: Results) -> None:
    curves = results.curves
    assert "base" not in set(curves["row"])
    own = curves[(curves["row"] == "sage_grpo-dual") & (curves["seed"] == 2)]
    lines = store.read_lines(results.folder / "sage_grpo-dual" / "seed-2" / store.TRAIN)
    assert own["update"].tolist() == list(range(6))
    assert own["reward"].tolist() == [line["reward"] for line in lines]
    assert own["reward_VQ"].tolist() == [line["rewards"]["VQ"] for line in lines]
    assert own["monitor_gold_TA"].tolist() == [0.1] * 6
    assert own["grad_norm_of_step_1"].tolist() == [1.0] * 6
    assert own["nfe_rollout"].tolist() == [line["ledger"]["nfe_rollout"] for line in lines]
    assert own["reward_calls"].tolist() == [sum(line["ledger"]["reward_calls"].values()) for line in lines]


def test_a_number_that_one_run_lacks_is_nan(folder: Path, tmp_path: Path) -> None:
    for seed, line in ((0, {"update": 0, "reward": 1.0}), (1, {"update": 0, "reward": 2.0, "grad_norm": [3.0, 5.0]})):
        path = write(tmp_path / "toy", "cps-fixed", seed)
        (path / store.TRAIN).write_text(json.dumps(line) + "\n", encoding="utf-8")
    curves = bench.load_results(tmp_path / "toy").curves
    assert curves["reward"].tolist() == [1.0, 2.0]
    assert pd.isna(curves["grad_norm"].iloc[0])
    assert curves["grad_norm"].iloc[1] == 4.0


def test_the_table_is_main_csv(folder: Path, results: Results) -> None:
    stored = pd.read_csv(build_table(folder / "toy")["main.csv"])
    table = results.table()
    assert list(table.columns) == list(stored.columns)
    assert table["row"].tolist() == stored["row"].tolist()
    assert table["overall_delta_lo"].tolist() == pytest.approx(
        stored["overall_delta_lo"].tolist(), nan_ok=True, rel=1e-6
    )


def test_a_parent_of_several_suites_names_them_by_folder(folder: Path) -> None:
    results = bench.load_results(folder)
    assert set(results.suites) == {"toy", "reference/toy"}
    assert (
        set(results.runs["suite"]) == set(results.scores["suite"]) == set(results.curves["suite"]) == {*results.suites}
    )
    with pytest.raises(BenchError, match=r"holds 2 suites: name one with suite= \(reference/toy, toy\)"):
        results.table()
    with pytest.raises(BenchError, match="holds no suite 'nano': choose one of"):
        results.table("nano")
    assert results.table(suite="toy")["n_seeds"].tolist() == [0, 3, 2]


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="holds no records"):
        bench.load_results(tmp_path)


def test_columns_are_documented(results: Results) -> None:
    text = Results.__doc__ or ""
    patterns = ("reward_", "monitor_", "grad_norm_of_step_", "kl_weight_", "kl_gradient_", "seconds_")
    names = {*results.scores.columns, *results.runs.loc[:, :"trained"].columns}
    assert {name for name in names if f"`{name}`" not in text} <= {"mq", "ta"}
    assert all(f"`{pattern}<" in text or f"`{pattern}kl`" in text for pattern in patterns)


def test_a_suite_is_loaded_with_overrides() -> None:
    suite = bench.load_suite(ROOT / "bench" / "configs" / "nano.yaml", ["budget.updates=3"])
    assert suite.budget.updates == 3


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import bench", ("torch", "pandas", "pydantic")),
        ("import bench; r = bench.load_results({!r}); r.runs, r.scores, r.curves, r.table()", ("torch", "matplotlib")),
    ],
)
def test_results_need_no_torch(folder: Path, code: str, absent: tuple[str, ...]) -> None:
    check = f"import sys; {code.format(str(folder / 'toy'))}; sys.exit(bool({set(absent)!r} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0


def test_the_tutorial_runs() -> None:
    command = [sys.executable, "docs/tutorials/analyse_results.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    table = pd.read_csv(ROOT / "results" / "reference" / "nano" / "tables" / "main.csv").set_index("row")
    for row, gain in table["overall_delta"].dropna().items():
        assert re.search(rf"^ *{row} .* {gain:.2f} +\S+ +\S+$", run.stdout, flags=re.MULTILINE), row
    assert re.search(r"^smallest gains of sage_grpo-dual: \{'.+': -?\d+\.\d+,", run.stdout, flags=re.MULTILINE)
