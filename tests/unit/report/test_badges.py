"""The badges: each check is passed, missing or failed, as the records say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bench.report.data.badges import Badge, badges
from bench.store.record import read_run
from bench.store.replay import ReplayRecord, write_replay
from tests.helpers import toy_records
from tests.helpers.mean_records import load, write


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two rows, three seeds; no golden scores, no controls, no replays."""
    return toy_records.write_suite(tmp_path / "toy")


def found(folder: Path) -> dict[str, Badge]:
    return {badge.name: badge for badge in badges(load(folder))}


def replay(run: Path, equal: bool) -> None:
    record = read_run(run)[0]
    values = {"digest": record.digest, "scores_digest": record.scores_digest, "date": "2026-01-01", "hardware": {}}
    gaps = {"training_gaps": 0 if equal else 3, "first_gap": None, "floors": {}, "other": []}
    write_replay(run, ReplayRecord.model_validate({**values, **gaps, "equal": equal}))


def test_what_nobody_looked_at_is_missing_and_not_passed(folder: Path) -> None:
    states = {name: badge.state for name, badge in found(folder).items()}
    assert states == {
        **{"seeds done": "passed", "equal budget": "passed", "ratio_audit": "passed"},
        **{"positive control": "missing", "negative control": "missing", "golden_scores": "missing"},
        **{"replay": "missing", "smallest detectable effect": "passed"},
    }
    assert found(folder)["golden_scores"].text == "passed in 0 of 7 runs"
    assert found(folder)["ratio_audit"].text == "passed in 6 of 6 runs"


def test_a_gate_that_one_run_fails_has_failed(folder: Path) -> None:
    gates = {"golden_scores": {"passed": True}, "ratio_audit": {"passed": False}}
    toy_records.write(folder, "cps-fixed", 1, {"seeds": [0, 1, 2]}, gates=gates)
    assert found(folder)["ratio_audit"] == ("ratio_audit", "failed", "passed in 5 of 6 runs, failed in 1")
    assert found(folder)["golden_scores"] == ("golden_scores", "missing", "passed in 1 of 7 runs")


def test_a_forward_method_needs_no_audit_of_ratios(folder: Path) -> None:
    toy_records.write(folder, "cps-fixed", 1, {"seeds": [0, 1, 2]}, gates={}, extra={"family": "forward"})
    assert found(folder)["ratio_audit"] == ("ratio_audit", "passed", "passed in 5 of 5 runs")


def test_a_gate_that_was_not_available_is_missing(folder: Path) -> None:
    gates = {"ratio_audit": {"passed": True}, "golden_scores": {"passed": None}}
    toy_records.write(folder, "cps-fixed", 1, {"seeds": [0, 1, 2]}, gates=gates)
    assert found(folder)["golden_scores"].text == "passed in 0 of 7 runs"


def test_runs_that_are_missing_or_failed_are_counted(folder: Path) -> None:
    run = folder / "cps-fixed" / "seed-1"
    (run / "run.json").unlink()
    assert found(folder)["seeds done"] == ("seeds done", "missing", "5 of 6 runs finished")
    toy_records.write(folder, "cps-fixed", 1, {"seeds": [0, 1, 2]}, status="failed", error="it broke")
    assert found(folder)["seeds done"] == ("seeds done", "failed", "5 of 6 runs finished, 1 failed")


def test_a_replay_passes_with_equal_bits_only(folder: Path) -> None:
    replay(folder / "cps-fixed" / "seed-0", equal=True)
    assert found(folder)["replay"] == ("replay", "passed", "1 of 7 runs repeated, 1 with equal bits")
    replay(folder / "cps-fixed" / "seed-1", equal=False)
    assert found(folder)["replay"] == ("replay", "failed", "2 of 7 runs repeated, 1 with equal bits")


def test_a_control_that_fails_is_failed(folder: Path) -> None:
    settings: dict[str, Any] = {"suite": "toy_control_gold", "reward": {"gold": {"gold_VQ": 1.0}}}
    control = folder.parent / "toy_control_gold"
    settings |= {"rows": [{"method": "cps", "kl": "fixed"}]}
    toy_records.write(control, "base", None, settings)
    for seed in range(3):
        toy_records.write(control, "cps-fixed", seed, settings, -0.5)
    badge = found(folder)["positive control"]
    assert badge.state == "failed"
    assert badge.text.startswith("It FAILS: no interval lies above 0")
    assert [name for name in found(control) if "control" in name] == ["positive control"]


def test_seeds_that_can_show_too_little_decide_nothing(tmp_path: Path) -> None:
    rows = {"cps-fixed": [0.3, 0.8, 0.1], "sage_grpo-dual": [0.9, 0.2, 0.4]}
    badge = found(write(tmp_path / "wide", rows))["smallest detectable effect"]
    assert badge.state == "missing"
    assert "the best gain over the base is 0.50" in badge.text
    two = {row: values[:2] for row, values in rows.items()}
    assert found(write(tmp_path / "two", two))["smallest detectable effect"].state == "missing"
