"""A method of one short file outside the packages trains, with no change to the harness."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bench import store
from bench.checks.methods import CHECKS
from bench.cli import main
from bench.suite.load import load_suite
from tests.helpers.nano_suite import NANO, run, tiny
from tests.helpers.paths import PROJECT

FILE = PROJECT / "examples" / "window_grpo.py"
NAME = "examples.window_grpo:WindowGRPO"


def test_the_file_is_short_and_imports_the_interface_only() -> None:
    lines = FILE.read_text().splitlines()
    assert len(lines) <= 40
    imported = {line.split()[1] for line in lines if line.startswith(("from bench", "import bench"))}
    assert imported == {"bench.api", "bench.flow"}
    sources = [path for folder in ("bench", "methods") for path in (NANO.parents[2] / folder).rglob("*.py")]
    assert not any("window_grpo" in path.read_text() for path in sources)


def test_it_conforms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", NAME]) == 0
    assert f"{NAME}: {len(CHECKS) + 1} checks passed" in capsys.readouterr().out


def test_it_trains_from_a_yaml_that_names_it(tmp_path: Path) -> None:
    suite = tiny("budget.updates=3", "budget.steps=5")
    path = tmp_path / "window.yaml"
    row = {"method": NAME, "kl": "fixed", "params": {"eta": 0.5}, "label": "window"}
    path.write_text(yaml.safe_dump({**suite.model_dump(mode="json"), "rows": [row]}))
    record = run(load_suite(path), tmp_path / "run")
    assert (record.status, record.row, record.method) == ("finished", "window", NAME)
    assert record.method_params["eta"] == 0.5
    assert record.method_params["width"] == 2
    assert record.gates["ratio_audit"]["largest"] == 0.0
    lines = store.read_lines(tmp_path / "run" / store.TRAIN)
    assert [line["trained_steps"] for line in lines] == [[0, 1], [1, 2], [2, 3]]  # the window moves with the update
    assert all(line["grad_norm"][0] > 0 for line in lines)
    assert record.ledger["nfe_train"] == 3 * 3 * 4 * 2  # what every row spends


def test_it_cannot_train_more_steps_than_it_makes_noisy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [f"rows=[{{method: '{NAME}'}}]", "budget.train_steps=5", "--results", str(tmp_path), "--dry-run"]
    assert main(["run", str(NANO), *words]) == 2
    assert "WindowGRPO has 2 steps to train at update 0, but budget.train_steps is 5" in capsys.readouterr().err
