"""Published numbers stand beside the model and the reward that they belong to, and beside nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.core.errors import BenchError
from bench.report.data import published
from bench.report.data.selection import Row
from bench.report.tables.main import load_main_table, render_table
from tests.helpers.records import make_record, make_scores, noisy_value, write_run

PROMPTS = [f"prompt {p}" for p in range(4)]
CONFIG: dict[str, Any] = {
    "suite": "full",
    "backbone": {"name": "hunyuanvideo15", "checkpoint": "weights/HunyuanVideo-1.5"},
    "budget": {"updates": 2},
    "reward": {"videoalign": {"VQ": 0.5, "MQ": 0.5, "TA": 1.0}},
    "seeds": [0, 1],
    "rows": [{"method": "sage_grpo", "kl": "dual"}, {"method": "cps", "kl": "none"}],
}
LEDGER = {"nfe_rollout": 10, "nfe_train": 20, "reward_calls": {"videoalign": 8}}
EVALUATORS = published.about()["evaluators"]


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def write(folder: Path, evaluators: Any = EVALUATORS, **config: Any) -> Path:
    settings = {**CONFIG, **config}
    for row, seeds in (("base", [None]), ("sage_grpo-dual", [0, 1]), ("cps-none", [0, 1])):
        for seed in seeds:
            record = make_record(settings, row, seed, evaluators=evaluators, ledger={} if seed is None else LEDGER)
            write_run(folder, record, make_scores(PROMPTS, 1, noisy_value(row, seed, 0.0, len(PROMPTS))))
    return folder


def load(folder: Path, **options: Any) -> tuple[pd.DataFrame, str]:
    main = load_main_table(folder, reference=folder.parent / "nowhere", **options)
    return main.table.set_index("row"), render_table(main)["main.md"]


def test_full_size_runs_have_them_beside_and_gaps_are_absent(tmp_path: Path) -> None:
    table, text = load(write(tmp_path / "full"))
    assert table.loc["base", "published_overall"] == 0.0654
    assert table.loc["sage_grpo-dual", "published_overall"] == 0.8066
    assert table.loc["cps-none", "published_ta"] == 1.5669
    assert "published_pickscore" not in table, "no paper gives one"
    assert "## Beside the published numbers" in text
    assert "ours is 2.5 max(cosine, 0)" in text


def test_a_variant_of_a_method_has_none(tmp_path: Path) -> None:
    rows = [Row("sage_grpo-dual", "sage_grpo", "dual", variant=True), Row("cps-none", "cps", "none")]
    table, _ = load(write(tmp_path / "full"), rows=rows)
    assert np.isnan(table.loc["sage_grpo-dual", "published_overall"])
    assert table.loc["cps-none", "published_ta"] == 1.5669


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": {"name": "nano_wan:NanoWan", "checkpoint": "wan"}},
        {"reward": {"videoalign": {"VQ": 1.0, "MQ": 1.0, "TA": 1.0}}},
        {"shuffle_rewards": True},
        {"evaluators": {"videoalign": {"sha256:model.pth": "of another model"}}},
    ],
    ids=["another model", "another reward", "shuffled rewards", "another evaluator"],
)
def test_nothing_published_stands_beside_other_runs(tmp_path: Path, changes: dict[str, Any]) -> None:
    table, text = load(write(tmp_path / "full", **changes))
    assert not [name for name in table if name.startswith("published")]
    assert "published" not in text.lower().replace("unpublished", "")
    assert "0.8066" not in text


def test_nano_names_the_file_only(tmp_path: Path) -> None:
    table, text = load(write(tmp_path / "nano", backbone={"name": "hunyuanvideo15", "checkpoint": "nano"}))
    assert not [name for name in table if name.startswith("published")]
    assert f"Published numbers, which do not compare with nano, are in {published.FILE}." in text
    assert "0.8066" not in text
    assert "## Beside the published numbers" not in text


def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    with pytest.raises(BenchError, match="git checkout"):
        load(write(tmp_path / "full"))
