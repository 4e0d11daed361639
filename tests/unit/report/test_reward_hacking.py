"""Gate 7: rows are marked where the reward rises and something held out goes wrong, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.report.data.records import load_suite
from bench.report.data.reward_hacking import hack_notes
from bench.report.data.summary import summarise
from bench.report.tables.main import build_table
from tests.unit.report import test_tables
from tests.unit.report.test_tables import scores

DETECTORS = {"dark_fraction": 0.1, "edge_density": 0.2, "colour_entropy": 4.0, "motion_energy": 1.0}


def lifted(frame: pd.DataFrame, lifts: dict[str, float]) -> pd.DataFrame:
    """Scores with some metrics moved, and detectors that are the same for every video but for a little."""
    extra = frame[frame["metric"] == "VQ"]
    parts = [
        extra.assign(evaluator="detectors", metric=name, value=value * (1 + 1e-3 * extra["value"]))
        for name, value in DETECTORS.items()
    ]
    whole = pd.concat([frame, *parts], ignore_index=True)
    return whole.assign(value=whole["value"] + whole["metric"].map(lifts).fillna(0.0))


def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lifts: dict[str, float]) -> list[str]:
    """What is said of one row of three seeds whose metrics moved by `lifts` against the base."""
    folder = tmp_path / "toy-nano"

    def moved(row: str, seed: int | None, lift: float) -> pd.DataFrame:
        return lifted(scores(row, seed, lift), {} if seed is None else lifts)

    monkeypatch.setattr(test_tables, "scores", moved)
    evaluators = {name: {"weights": "1"} for name in (*test_tables.METRICS, "detectors")}
    for row, seed in (("base", None), *(("cps-fixed", seed) for seed in range(3))):
        test_tables.write(folder, row, seed, evaluators=evaluators)
    suite = load_suite(folder)
    found = hack_notes(suite, summarise(suite))
    text = build_table(folder)["main.md"].read_text(encoding="utf-8")
    assert ("REWARD HACKING" in text) == bool(found)
    return found


UP = {"VQ": 1.0, "MQ": 1.0, "TA": 1.0}


@pytest.mark.parametrize(
    ("lifts", "says"),
    [
        ({**UP, "pickscore": -0.5}, "but PickScore falls (-0."),
        ({**UP, "gold_VQ": -0.6}, "but gold Overall falls (-0."),
        ({**UP, "dark_fraction": 0.3}, "dark_fraction goes from 0.100 to 0.400"),
        ({**UP, "motion_energy": -0.7}, "motion_energy goes from 1.000 to 0.300"),
        ({**UP, "edge_density": 0.3, "clipscore": -1.0}, "but CLIPScore falls (-"),
    ],
)
def test_a_row_that_games_its_reward_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lifts: dict[str, Any], says: str
) -> None:
    (note,) = notes(tmp_path, monkeypatch, lifts)
    assert note.startswith("cps-fixed: REWARD HACKING SUSPECTED (gate 7): the trained score rises by 2.0")
    assert says in note
    assert ("edge_density goes from 0.200 to 0.500" in note) == ("edge_density" in lifts)


@pytest.mark.parametrize(
    "lifts",
    [
        UP,
        {**UP, "pickscore": 0.5, "gold_TA": 0.5},
        {**UP, "pickscore": -0.001},
        {**UP, "dark_fraction": -0.05, "motion_energy": 0.5},
        {"pickscore": -0.5, "dark_fraction": 0.5},
    ],
    ids=["reward alone", "all rise", "within noise", "detectors move little", "the reward does not rise"],
)
def test_other_rows_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lifts: dict[str, Any]) -> None:
    assert notes(tmp_path, monkeypatch, lifts) == []


def test_what_was_the_reward_is_not_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewarded = {**test_tables.CONFIG, "reward": {"pickscore": {"pickscore": -1.0}}}
    monkeypatch.setattr(test_tables, "CONFIG", rewarded)
    assert notes(tmp_path, monkeypatch, {"pickscore": -0.5}) == []
