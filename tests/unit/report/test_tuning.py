"""The table of a search: what is chosen and why, the best after k trials over all orders, rows to paste, no test."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from itertools import permutations
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from bench.cli import main
from bench.core.errors import BenchError
from bench.core.provenance import ROOT
from bench.report.data.loading import load_records
from bench.report.data.selection import row_settings, rows_of
from bench.report.data.tuning import best_after, best_table, chosen_rows, search_cost, trial_table
from bench.report.tables.screen import WIDTH
from bench.report.tables.tuning import TuningTable, render_tuning, tuning_screen
from bench.suite.load import load_suite
from bench.suite.methods import make_method
from bench.suite.schema import RowSpec, Suite
from tests.helpers.records import make_record, make_scores, write_run

CONFIG: dict[str, Any] = {
    "suite": "toy_search",
    "backbone": {"name": "hunyuanvideo15", "checkpoint": "nano"},
    "budget": {"updates": 6, "prompts": 2, "group_size": 4, "steps": 10, "train_steps": 2, "shift": 5.0}
    | {"guidance": 1.0, "lr": 3e-4},
    "reward": {"videoalign": {"VQ": 0.5, "TA": 1.0}},
    "evaluation": {"evaluators": ["videoalign", "gold"], "steps": 4, "videos_per_prompt": 1}
    | {"prompts": "validation", "seed": 1000},
    "search": {"trials": 4, "lr": [1e-4, 1e-3], "eta": [0.5, 2.0], "equalizer": ["off", "released"]},
    "seeds": [100, 101],
    "rows": [{"method": "cps", "kl": "fixed"}, {"method": "sage_grpo", "kl": "dual"}],
}
SUITE = Suite.model_validate(CONFIG)
LEVELS = {"cps-fixed": [1.0, 0.5, 3.0, 2.0], "sage_grpo-dual": [4.0, 4.0, 1.0, 2.0]}
"""Row to the level of each trial: every metric of a video of its runs, and so 1.5 times that is its Reward."""
SWAY = {None: 0.0, 100: -0.1, 101: 0.1}


def write(folder: Path, row: RowSpec | None, seed: int | None, level: float, **changes: Any) -> None:
    """One run whose every score is `level` and the seed's sway; two minutes of work."""
    name, values = ("base" if row is None else row.name), dict[str, Any]()
    if row is not None:
        method = make_method(SUITE, row)
        values |= {"method": row.method, "kl": row.kl_spec.name, "digest": f"{sum(name.encode()):08x}{seed:08x}"}
        values |= {"method_params": {"eta": getattr(method, "eta", nan), "equalizer": method.equalizer}}
        values |= {"ledger": {"nfe_rollout": 1, "nfe_train": 1, "reward_calls": {}}, "seconds": {"rollout": 120.0}}
    record = make_record(SUITE.model_dump(mode="json"), name, seed, **{**values, **changes})
    write_run(folder, record, make_scores(["a", "b"], 1, lambda p, k, metric: level + SWAY[seed]))


def write_search(folder: Path, skip: Mapping[tuple[str, int], dict[str, Any] | None] | None = None) -> Path:
    """The base and all trials; `skip`: row and seed to what its record changes, or None to leave it out."""
    skip = skip or {}
    write(folder, None, None, -1.0)
    for row in SUITE.rows:
        name, _, trial = row.name.rpartition(".t")
        for seed in SUITE.seeds:
            changes = skip.get((row.name, seed), {})
            if changes is not None:
                write(folder, row, seed, LEVELS[name][int(trial)], **changes)
    return folder


def table_of(folder: Path) -> TuningTable:
    return TuningTable(load_records(folder, rows_of(SUITE), SUITE.seeds), folder)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small records: nothing here is about what a power cut leaves, or about changed sources."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr("bench.core.provenance.source_digest", lambda: "same")
    monkeypatch.setattr("bench.suite.sources.plugin_digests", lambda group, name: {"file.py": "same"})


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of a search that has ended, which no test changes."""
    return write_search(tmp_path_factory.mktemp("results") / "toy_search")


@pytest.fixture
def folder(ended: Path, tmp_path: Path) -> Path:
    """A copy of these records."""
    return Path(shutil.copytree(ended, tmp_path / "results" / "toy_search"))


@pytest.fixture(scope="module")
def tuning(ended: Path) -> TuningTable:
    """The table of the search that has ended."""
    return table_of(ended)


# the choice -------------------------------------------------------------------------------------------------------
def test_each_trial_has_its_settings_its_score_and_its_rank(tuning: TuningTable) -> None:
    table = tuning.table
    assert list(table["row"]) == ["cps-fixed"] * 4 + ["sage_grpo-dual"] * 4
    assert list(table["trial"]) == [0, 1, 2, 3] * 2
    np.testing.assert_allclose(table["score"], [1.5 * level for levels in LEVELS.values() for level in levels])
    np.testing.assert_allclose(table["score_seed_101"] - table["score_seed_100"], 1.5 * 0.2)
    default, drawn = table.iloc[0], table.iloc[1]
    assert (default["lr"], default["eta"], default["equalizer"]) == (3e-4, 0.7, "off")
    assert (drawn["lr"], drawn["equalizer"]) == (SUITE.rows[1].lr, SUITE.rows[1].params["equalizer"])
    assert drawn["eta"] == pytest.approx(0.7 * (SUITE.rows[1].eta_factor or nan))
    assert list(table["rank"]) == [3, 4, 1, 2, 1, 2, 4, 3], "the first of equal scores is the better one"
    assert list(table["chosen"].to_numpy().nonzero()[0]) == [2, 4]


def test_nothing_is_chosen_before_every_trial_has_run(tmp_path: Path) -> None:
    skip = {("cps-fixed.t1", 101): None, ("cps-fixed.t3", 100): None, ("cps-fixed.t3", 101): None}
    tuning = table_of(write_search(tmp_path / "toy_search", skip))
    assert list(tuning.table["chosen"].to_numpy().nonzero()[0]) == [4]
    assert set(tuning.best["row"]) == {"sage_grpo-dual"}
    assert "cps-fixed: nothing is chosen, since its runs are not complete (missing: 3)." in tuning.verdict
    assert tuning.yaml_rows is None
    assert tuning.sections["Trials"][1][3][:6] == ["cps-fixed.t3", *["n/a"] * 5]
    assert "cps-fixed.t1: 1 of 2 seeds have not run yet." in tuning.notes


@pytest.mark.parametrize(
    "changes", [{"status": "failed", "error": "it diverged"}, {"gates": {"ratio_audit": {"passed": False}}}]
)
def test_a_trial_that_fails_is_never_chosen_and_counts_as_a_trial(tmp_path: Path, changes: dict[str, Any]) -> None:
    table = table_of(write_search(tmp_path / "toy_search", {("cps-fixed.t2", 100): changes})).table
    failed = table[(table["row"] == "cps-fixed") & (table["trial"] == 2)].iloc[0]
    assert (failed["n_seeds"], failed["n_failed"]) == (1, 1)
    assert np.isnan(failed["score"])
    assert list(table["chosen"].to_numpy().nonzero()[0]) == [3, 4]
    assert best_table(table)["trials"].max() == 4


def test_a_row_that_is_no_trial_is_refused(folder: Path) -> None:
    write(folder, RowSpec(method="cps", kl="none"), 100, 9.0)
    with pytest.raises(BenchError, match=r"row 'cps-none' of suite toy_search is no trial of its search"):
        trial_table(load_records(folder))


# the best after k trials ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("default", [-1.0, 0.4, 9.0])
def test_best_after_is_the_mean_over_all_orders(default: float) -> None:
    draws = [0.3, 1.0, 0.3, -2.0, nan]
    orders = np.array([np.fmax.accumulate([default, *order]) for order in permutations(draws)])
    np.testing.assert_allclose(best_after(default, draws), orders.mean(0))


def test_best_after_ends_at_the_best_trial_and_never_falls(tuning: TuningTable) -> None:
    best = tuning.best
    for row, levels in LEVELS.items():
        values = best[best["row"] == row]["best"].to_numpy()
        assert values[[0, -1]] == pytest.approx([1.5 * levels[0], 1.5 * max(levels)])
        assert (np.diff(values) >= 0).all()


def test_with_a_failed_default_the_curve_is_unknown() -> None:
    assert np.isnan(best_after(nan, [1.0, 2.0])).all()


# the chosen settings ----------------------------------------------------------------------------------------------
def test_the_printed_rows_are_the_chosen_trials(tuning: TuningTable) -> None:
    rows = yaml.safe_load(tuning.yaml_rows or "")["rows"]
    tuned = Suite.model_validate({**CONFIG, "search": None, "rows": rows})
    assert [row.name for row in tuned.rows] == ["cps-tuned", "sage_grpo-tuned"]
    chosen = [SUITE.rows[2], SUITE.rows[4]]
    for own, trial in zip(tuned.rows, chosen, strict=True):
        assert own.lr == (trial.lr or SUITE.budget.lr), "all rows are open, that of trial 0 too"
        assert make_method(tuned, own) == make_method(SUITE, trial)


def test_two_rows_of_one_method_keep_their_names(tuning: TuningTable) -> None:
    table = tuning.table.assign(method="cps")
    assert [row["label"] for row in chosen_rows(tuning.suite, table)] == ["cps-fixed-tuned", "sage_grpo-dual-tuned"]


def test_the_tuned_suite_of_nano_has_the_rows_that_its_search_chose() -> None:
    search, tuned = load_suite("nano_search"), load_suite("nano_tuned")
    suite = load_records(ROOT / "results" / "reference" / "nano_search", rows_of(search), search.seeds)
    assert tuned.rows == [RowSpec.model_validate(row) for row in chosen_rows(suite, trial_table(suite))]


# texts ------------------------------------------------------------------------------------------------------------
def test_the_table_has_no_test_and_names_its_prompts(tuning: TuningTable) -> None:
    text = render_tuning(tuning)["tuning.md"]
    assert "p (Holm)" not in text.replace("No p-values", "")
    assert "mean over 2 validation prompts and the pilot seeds 100, 101; the base has -1.50." in text
    assert "trial 2 of 4 is chosen (lr 0.000646, eta 0.938, equalizer off), 3.00 above the default in Reward." in text
    assert "trial 0 of 4 is chosen (lr 0.0003, eta 0.5, equalizer derived), the default." in text
    assert "rows:\n  - {method: cps, kl: fixed, lr:" in text


def test_the_cost_counts_all_runs_and_the_screen_those_of_the_tuned_suite(folder: Path) -> None:
    tuning = table_of(folder)
    assert search_cost(tuning.suite) == {"cps-fixed": (8, 16.0), "sage_grpo-dual": (8, 16.0)}
    assert tuning.sections["Cost"][1][-1] == ["all trials", "16", "32.0"]
    assert "Final runs" not in tuning_screen(tuning)
    write(folder.parent / "toy_tuned", SUITE.rows[0], 100, 1.0, suite="toy_tuned")
    assert "Final runs (toy_tuned): 1, 2.0 minutes of one process." in tuning_screen(tuning)
    assert "toy_tuned" not in render_tuning(tuning)["tuning.md"], "the file follows from the records of the search"


def test_the_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    arguments = [str(tmp_path / "toy.yaml"), "--results", str(folder.parent)]
    assert main(["table", *arguments]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if len(line) > WIDTH and not line.startswith("  - {")] == []
    assert out.rstrip().endswith("label: sage_grpo-tuned}")
    assert main(["table", *arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [line["chosen"] for line in document["suites"]["toy_search"]][:4] == [False, False, True, False]
    assert main(["figures", *arguments]) == 0
    numbers = pd.read_csv(folder / "figures" / "tuning.csv")
    assert len(numbers) == 8
    assert (folder / "figures" / "tuning.png").stat().st_size > 10_000
    assert main(["report", *arguments]) == 2
    assert "toy_search is a search, which has no page" in capsys.readouterr().err


def test_a_search_without_an_end_has_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skip = {("cps-fixed.t1", 101): None, ("sage_grpo-dual.t1", 101): None}
    folder = write_search(tmp_path / "results" / "toy_search", skip)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    assert main(["figures", str(tmp_path / "toy.yaml"), "--results", str(folder.parent)]) == 2
    assert "no row of the search has run all of its trials: run the rest first." in capsys.readouterr().err


# rows with a learning rate of their own -----------------------------------------------------------------------------
def test_rows_match_only_with_the_same_learning_rate(tuning: TuningTable) -> None:
    """What `bench compare`, the stored reference and `bench verify` match rows by."""
    default, drawn = (row_settings(tuning.suite.rows[k].finished[0].record) for k in (0, 1))
    assert "lr" not in default, "as in older records"
    assert drawn["lr"] == SUITE.rows[1].lr


def test_published_numbers_are_not_about_a_row_with_settings_of_its_own() -> None:
    rows = [SUITE.rows[0], SUITE.rows[1].model_copy(update={"params": {}})]
    plain, drawn = rows_of(SUITE.model_copy(update={"rows": rows}))
    assert (plain.variant, drawn.variant) == (False, True)
