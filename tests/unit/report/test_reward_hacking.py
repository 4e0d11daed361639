"""The reward hacking gate: rows are marked if the reward rises and a held-out score falls, and only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.report.data import differences
from bench.report.data.loading import load_records
from bench.report.data.reward_hacking import hack_notes
from bench.report.data.summary import summarise
from bench.report.tables.main import build_table
from tests.helpers.records import METRICS, make_record, make_scores, noisy_value, write_run

DETECTORS = {"dark_fraction": 0.1, "edge_density": 0.2, "colour_entropy": 4.0, "motion_energy": 1.0}
CONFIG: dict[str, Any] = {
    "suite": "toy-nano",
    "budget": {"updates": 2},
    "reward": {"videoalign": {"VQ": 0.5, "MQ": 0.5, "TA": 1.0}},
    "seeds": [0, 1, 2],
    "rows": [{"method": "cps", "kl": "fixed"}],
}
LEDGER = {"nfe_rollout": 1280, "nfe_train": 1920, "reward_calls": {"videoalign": 128}}
PROMPTS = [f"prompt {p}" for p in range(12)]


def lifted(frame: pd.DataFrame, lifts: dict[str, float]) -> pd.DataFrame:
    """Scores with some metrics moved, and detectors that are the same for every video but for a little."""
    extra = frame[frame["metric"] == "VQ"]
    parts = [
        extra.assign(evaluator="detectors", metric=name, value=value * (1 + 1e-3 * extra["value"]))
        for name, value in DETECTORS.items()
    ]
    whole = pd.concat([frame, *parts], ignore_index=True)
    return whole.assign(value=whole["value"] + whole["metric"].map(lifts).fillna(0.0))


def notes(folder: Path, lifts: dict[str, float], **changes: Any) -> list[str]:
    """The notes on one row of three seeds whose metrics moved by `lifts` against the base; `changes` of the suite."""
    config = {**CONFIG, **changes}
    evaluators = {name: {"weights": "1"} for name in (*METRICS, "detectors")}
    for row, seed in (("base", None), *(("cps-fixed", seed) for seed in range(3))):
        ledger = LEDGER if seed is not None else {}
        scores = make_scores(PROMPTS, 2, noisy_value(row, seed, 0.0, len(PROMPTS)))
        moved = lifted(scores, {} if seed is None else lifts)
        write_run(folder, make_record(config, row, seed, evaluators=evaluators, ledger=ledger), moved)
    suite = load_records(folder)
    marked = hack_notes(suite, summarise(suite, differences.tested_differences(suite)))
    text = build_table(folder)["main.md"].read_text(encoding="utf-8")
    assert ("REWARD HACKING" in text) == bool(marked)
    return marked


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
def test_a_row_that_games_its_reward_is_marked(tmp_path: Path, lifts: dict[str, Any], says: str) -> None:
    (note,) = notes(tmp_path, lifts)
    assert note.startswith("cps-fixed: REWARD HACKING SUSPECTED: the held-out reward rises by 2.0")
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
def test_other_rows_are_not(tmp_path: Path, lifts: dict[str, Any]) -> None:
    assert notes(tmp_path, lifts) == []


def test_what_was_the_reward_is_not_held_out(tmp_path: Path) -> None:
    assert notes(tmp_path, {"pickscore": -0.5}, reward={"pickscore": {"pickscore": -1.0}}) == []
