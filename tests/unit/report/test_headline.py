"""The headline: one sentence that changes with the tested numbers, and says nothing that is not tested."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.report.data.headline import headline
from bench.store.record import read_run
from tests.helpers.mean_records import CLEAR, CONFIG, Means, load, write
from tests.helpers.records import make_record, make_scores, write_run

ALIKE: Means = {"cps-fixed": [0.50, 0.52, 0.48], "sage_grpo-dual": [0.51, 0.50, 0.49]}


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def of(folder: Path, means: Means, gold: Means | None = None, **config: object) -> str:
    return headline(load(write(folder / "toy", means, gold=gold, **config)))


def test_the_best_row_leads_over_those_that_the_test_names(tmp_path: Path) -> None:
    text = of(tmp_path, CLEAR)
    assert text.startswith("SAGE-GRPO gains most in Overall over the base, 1.000 [")
    assert text.endswith("]; its lead over CPS and FlowGRPO is significant.")


def test_a_lead_that_is_not_significant_is_none(tmp_path: Path) -> None:
    text = of(tmp_path, ALIKE)
    assert "it cannot be told apart from " in text
    assert "significant" not in text


def test_rows_that_do_not_beat_the_base_are_named(tmp_path: Path) -> None:
    text = of(tmp_path, CLEAR | {"dance_grpo-none": [0.3, -0.3, 0.01]})
    assert "DanceGRPO is not shown to beat the base" in text
    text = of(tmp_path / "none", {"cps-fixed": [0.3, -0.1, 0.01]})
    assert "CPS gains most in Overall over the base, 0.0" in text
    assert text.endswith("(not significant); no row is shown to beat the base.")


def opened(folder: Path, *rows: str) -> Path:
    """The folder, whose runs of these rows are of the open division."""
    for path in (path.parent for row in rows for path in folder.glob(f"{row}/seed-*/run.json")):
        record, scores = read_run(path)
        write_run(folder, record.model_copy(update={"open_reasons": ["a learning rate of its own"]}), scores)
    return folder


def test_open_rows_are_ranked_only_where_all_are_open(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy", CLEAR)
    some = load(opened(folder, "sage_grpo-dual"))
    assert headline(some).startswith("FlowGRPO gains most in Overall")
    assert not any("**" in cell for row in some.sections["Scores"][1] if "sage" in row[0] for cell in row)
    every = load(opened(folder, *CLEAR))
    text = headline(every)
    assert text.startswith("Open division: SAGE-GRPO gains most in Overall over the base, 1.000 [")
    assert text.endswith("]; its lead over CPS and FlowGRPO is significant.")
    scores = {row[0]: row[2] for row in every.sections["Scores"][1]}
    assert [name for name, cell in scores.items() if "**" in cell] == ["sage_grpo-dual (open)"]
    assert "all rows, which are open, and the base" in every.leads["Scores"]


def test_a_loss_is_called_one(tmp_path: Path) -> None:
    assert "CPS loses least in Overall over the base, -0.3" in of(tmp_path, {"cps-fixed": [-0.31, -0.30, -0.32]})


def test_gold_follows_or_not(tmp_path: Path) -> None:
    one = {"cps-fixed": [0.50, 0.52, 0.48]}
    assert "its gold Overall rises too" in of(tmp_path / "rises", one, gold=one)
    assert "its gold Overall is not shown to rise" in of(tmp_path / "flat", one, gold={"cps-fixed": [0.2, -0.2, 0.0]})
    text = of(tmp_path / "falls", one, gold={"cps-fixed": [-0.51, -0.5, -0.52]})
    assert text.endswith("its gold Overall FALLS; exploitation is suspected in CPS.")


def test_two_rows_of_one_method_are_told_apart_by_their_policy(tmp_path: Path) -> None:
    text = of(tmp_path, {"cps-fixed": [0.50, 0.52, 0.48], "cps-none": [1.0, 1.02, 0.98]})
    assert text.startswith("CPS (no KL) gains most")
    assert text.endswith("its lead over CPS (fixed KL) is significant.")


def test_pairs_that_are_not_tested_are_not_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.data.differences.MOST_ROWS_FOR_PAIRS", 1)
    assert "its lead over other rows is not tested" in of(tmp_path, CLEAR)


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_test_nothing(tmp_path: Path, seeds: int) -> None:
    text = of(tmp_path, {row: values[:seeds] for row, values in CLEAR.items()})
    per_row = f"{seeds} seed{'s' * (seeds > 1)} per row"
    assert text == f"A demonstration, not a comparison: nothing can be tested with {per_row}, since a test needs 3."


def test_runs_without_a_base_or_all_failed_have_a_headline(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy", CLEAR)
    (folder / "base" / "run.json").unlink()
    assert headline(load(folder)) == "Nothing can be tested against the base: it has no finished run."
    settings = {**CONFIG, "seeds": [0], "rows": [{"method": "cps", "kl": "fixed"}]}
    record = make_record(settings, "cps-fixed", 0, status="failed", error="it broke")
    write_run(tmp_path / "failed", record, make_scores([], 1, max))
    assert headline(load(tmp_path / "failed")) == "No run has finished, so there is nothing to compare."
