"""The stored reference is found by settings: the same name first, then the stored suite with the most equal rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.report.data import stored as stored_runs
from bench.report.data.loading import load_records
from bench.report.data.stored import Reference, find_reference
from bench.report.figures.suite import render_figures
from bench.report.tables.main import load_main_table, render_table
from bench.store.record import RUN
from tests.helpers import toy_records
from tests.helpers.toy_records import CONFIG

CPS: dict[str, Any] = {"method": "cps", "kl": "fixed"}
LONGER = {"budget": {**CONFIG["budget"], "updates": 7}}


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the project's stored suites: `alpha` has both rows, `few` the same settings and one row."""
    folder = tmp_path / "stored"
    monkeypatch.setattr(stored_runs, "STORED", folder)
    toy_records.write_suite(folder / "alpha", {"suite": "alpha"})
    for row, seed in (("base", None), ("cps-fixed", 0), ("cps-fixed", 1)):
        toy_records.write(folder / "few", row, seed, {"suite": "few", "rows": [CPS], "seeds": [0, 1]})
    toy_records.write_suite(folder / "longer", {"suite": "longer", **LONGER})
    return folder


def found(results: Path, name: str, settings: dict[str, Any] | None = None) -> Reference:
    """The reference of both rows of the toy under this name."""
    toy_records.write_suite(results / name, {"suite": name, **(settings or {})})
    for path in (results / name).rglob(RUN):  # as long as it took elsewhere: not a copy of the stored run
        path.write_text(json.dumps({**json.loads(path.read_text()), "peak_memory_mb": 1.0}))
    return find_reference(load_records(results / name), results / name)


def test_a_suite_of_ones_own_name_is_shown_beside_the_runs_with_its_settings(stored: Path, tmp_path: Path) -> None:
    mine = found(tmp_path, "mine")
    assert (mine.folder, mine.note) == (stored / "alpha", None)
    assert mine.runs is not None
    assert [(runs.row.label, runs.seeds) for runs in mine.runs.rows] == [
        ("sage_grpo-dual", [0, 1, 2]),
        ("cps-fixed", [0, 1, 2]),
    ]
    text = render_table(load_main_table(tmp_path / "mine"))["main.md"]
    assert "## Beside the stored reference" in text
    assert "7 of 7 runs that are also in the reference (row and seed, or the base) have equal bits" in text


def test_the_same_name_comes_first(stored: Path, tmp_path: Path) -> None:
    assert found(tmp_path, "few").folder == stored / "few"
    assert found(tmp_path, "longer", LONGER).folder == stored / "longer"


def test_other_settings_under_a_stored_name_are_found_elsewhere(stored: Path, tmp_path: Path) -> None:
    assert found(tmp_path, "longer").folder == stored / "alpha"


def test_rows_are_matched_by_what_they_do(stored: Path, tmp_path: Path) -> None:
    rows = [{**CPS, "label": "mine"}, {"method": "cps", "kl": "none", "params": {"eta": 0.1}, "label": "sage_grpo-x"}]
    settings = {"suite": "mine", "rows": rows, "seeds": [0]}
    for row, seed in (("base", None), ("mine", 0), ("sage_grpo-x", 0)):
        toy_records.write(tmp_path / "mine", row, seed, settings)
    runs = find_reference(load_records(tmp_path / "mine"), tmp_path / "mine").runs
    assert runs is not None
    assert {each.row.label: len(each.finished) for each in runs.rows} == {"mine": 3, "sage_grpo-x": 0}
    table = load_main_table(tmp_path / "mine").table.set_index("row")
    assert table["reference_n_seeds"]["mine"] == 3
    assert table["reference_overall"].isna()["sage_grpo-x"]
    figures, captions = render_figures(tmp_path / "mine")
    assert "our stored reference runs (mine 3 seeds)" in captions["rollouts"]
    assert b"reference" in figures["rollouts.csv"]


def test_the_first_setting_that_differs_is_named(stored: Path, tmp_path: Path) -> None:
    other = {"budget": {**CONFIG["budget"], "lr": 1e-3}}
    reference_of = found(tmp_path, "mine", other)
    assert reference_of.runs is None
    note = "No stored reference has these settings: the nearest, alpha, differs: budget.lr "
    note += "is 0.0003 there and 0.001 here."
    assert reference_of.note == note
    assert note in render_table(load_main_table(tmp_path / "mine"))["main.md"]


def test_a_stored_suite_has_no_reference(stored: Path) -> None:
    assert find_reference(load_records(stored / "few"), stored / "few") == Reference(stored / "few")


def test_a_copy_of_a_stored_suite_has_the_same_table_wherever_it_lies(stored: Path, tmp_path: Path) -> None:
    control = {"suite": "alpha_control_gold", "reward": {"gold": {"gold_VQ": 1.0}}}
    toy_records.write_suite(stored / "alpha_control_gold", control)
    expected = render_table(load_main_table(stored / "alpha"))
    assert "Positive control alpha_control_gold (our stored runs)" in expected["main.md"]
    assert "Beside the stored reference" not in expected["main.md"]
    places = [tmp_path / "alone" / "renamed", tmp_path / "beside" / "alpha"]
    for place in places:
        shutil.copytree(stored / "alpha", place)
    shutil.copytree(stored / "alpha_control_gold", tmp_path / "beside" / "alpha_control_gold")
    for place in places:
        assert render_table(load_main_table(place)) == expected


def test_no_stored_runs_at_all(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_runs, "STORED", tmp_path / "nothing")
    assert found(tmp_path, "mine") == Reference(tmp_path / "nothing" / "mine")
