"""Metrics of evaluators of the user's own: their place, their direction, and suites that have no other ones."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.core.errors import BenchError
from bench.report.data.differences import best_rows
from bench.report.data.loading import load_records
from bench.report.data.metrics import column_names
from bench.report.data.selection import Selection
from bench.report.figures.suite import render_figures
from bench.report.page.page import render_page
from bench.report.tables.main import load_main_table, render_table
from bench.store.record import MetricEntry
from tests.helpers.records import make_record, make_scores, write_run
from tests.helpers.toy_records import SCHEDULE

OWN = "smooth:Smooth"
PROMPTS = [f"prompt {p}" for p in range(6)]
LEDGER = {"nfe_rollout": 10, "nfe_train": 20, "reward_calls": {OWN: 8}}
CONFIG: dict[str, Any] = {
    "suite": "mine",
    "backbone": {"name": "toy", "checkpoint": "full"},
    "budget": {"updates": 1},
    "reward": {OWN: {"calm": 1.0}},
    "evaluation": {"evaluators": [OWN]},
    "seeds": [0, 1, 2],
    "rows": [{"method": "cps", "kl": "fixed"}, {"method": "sage_grpo", "kl": "dual"}],
}
DECLARED = {
    "calm": MetricEntry(evaluator=OWN, higher_is_better=True, unit="share"),
    "jerk": MetricEntry(evaluator=OWN, higher_is_better=False, unit="px / s^3"),
}
LIFTS = {"base": 0.0, "cps-fixed": 0.3, "sage_grpo-dual": 0.6}


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def write(folder: Path, declared: dict[str, MetricEntry] | None = None, **config: Any) -> Path:
    """Rows that raise `calm` and lower `jerk` by the same amount."""
    settings = {**CONFIG, **config}
    for number, (row, lift) in enumerate(LIFTS.items()):
        for seed in [None] if row == "base" else [0, 1, 2]:
            rng = np.random.default_rng([number, seed or 0])

            def score(p: int, k: int, metric: str, rng: Any = rng, lift: float = lift) -> float:
                return float(rng.normal(0, 0.02) + (lift if metric == "calm" else 1.0 - lift))

            changes = {
                "metrics": DECLARED if declared is None else declared,
                "evaluators": {OWN: {"code": "1"}},
                "ledger": {} if seed is None else LEDGER,
                "extra": {} if seed is None else {"schedule": SCHEDULE},
            }
            line = {
                **{"update": 0, "reward": lift, "rewards": {"calm": lift}, "monitor": {}},
                **{"ledger": LEDGER, "grad_norm_of_step": {"0": 0.5, "1": 1.0}},
            }
            scores = make_scores(PROMPTS, 1, score, {OWN: ["calm", "jerk"]})
            write_run(folder, make_record(settings, row, seed, **changes), scores, None if seed is None else [line])
    return folder


def texts(folder: Path) -> dict[str, str]:
    return render_table(load_main_table(folder, reference=folder.parent / "nowhere"))


def test_a_metric_has_its_value_its_difference_and_its_interval(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine")
    main = load_main_table(folder, reference=tmp_path / "nowhere")
    assert main.sections["Scores"][0] == ["Row", "seeds", "calm ↑", "jerk ↓"]
    heads, lines = main.sections["Differences"]
    assert heads[:5] == ["Row", "Reward - base ↑", "p (Holm)", "calm - base ↑", "jerk - base ↓"]
    by_row = {line[0]: line for line in lines}
    assert by_row["cps-fixed"][1].endswith("] *"), "the primary score is tested"
    assert re.fullmatch(r"(\*\*)?-0\.\d+ \[-0\.\d+, -0\.\d+\](\*\*)?", by_row["cps-fixed"][4]), (
        "another score has its interval only"
    )
    assert "Reward: sage_grpo-dual is better than cps-fixed" in " ".join(main.verdict.sentences)


def test_columns_that_no_record_has_are_absent(tmp_path: Path) -> None:
    rendered = texts(write(tmp_path / "mine"))
    first = rendered["main.csv"].splitlines()[0].split(",")
    assert not [name for name in first if re.match(r"overall|vq|gold|published|clipscore", name)]
    assert {"trained_delta_p_holm", "trained_iqm", "jerk", "jerk_delta_hi"} <= set(first)
    table = rendered["main.md"].partition("## Scores")[2].partition("## Notes")[0]
    for word in ("Overall", "VQ", "CLIPScore", "PickScore", "gold", "0.8066"):
        assert word not in table
    assert "jerk ↓" in rendered["main.md"]
    assert r"$\downarrow$" in rendered["main.tex"]
    assert "less is better, so a negative difference is an improvement" in rendered["main.md"]
    assert "**jerk**: Metric of smooth:Smooth, unit px / s^3; lower is better." in rendered["main.md"]


def test_figures_and_report_of_a_suite_without_videoalign(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.report.figures.plots.figure_files", lambda *args: {})  # drawn, but not saved
        _, captions = render_figures(folder)
    assert list(captions) == ["forest", "rollouts", "noise", "gradients"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.report.page.content.is_installed", lambda: False)
        patch.setattr("bench.report.page.pictures.render_figures", lambda *args: ({}, {}))
        patch.setattr("bench.report.page.content.levels_of", lambda suites: [])
        selection = Selection([runs.row for runs in load_records(folder).rows], [0, 1, 2])
        page = render_page(folder, {"": (folder, selection)})
    assert "Reward - base" in page
    assert "jerk ↓" in page


def test_where_less_is_better_the_best_row_is_the_lowest(tmp_path: Path) -> None:
    """Without a recorded reward the first metric decides; here it is one of which less is better."""
    only = {"calm": MetricEntry(evaluator=OWN, higher_is_better=False, unit="share"), "jerk": DECLARED["jerk"]}
    main = load_main_table(write(tmp_path / "mine", only, reward={}), reference=tmp_path / "nowhere")
    table = main.table.set_index("row")
    assert main.suite.primary == "calm"
    assert "sage_grpo-dual" not in best_rows(main.suite, main.table, main.tests, "calm")
    assert table.loc["sage_grpo-dual", "improvement"] == 0.0
    sentences = " ".join(main.verdict.sentences)
    assert "calm: cps-fixed and sage_grpo-dual are worse than the base" in sentences
    assert "calm: cps-fixed is better than sage_grpo-dual" in sentences


def test_records_without_declarations_count_as_higher_is_better_and_say_so_once(tmp_path: Path) -> None:
    text = texts(write(tmp_path / "mine", {}))["main.md"]
    assert text.count("do not declare the direction of their metrics: higher counts as better") == 1
    assert "↓" not in text


def test_opposite_declarations_of_two_runs_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine")
    record = make_record(CONFIG, "cps-fixed", 1, evaluators={OWN: {"code": "1"}}, ledger=LEDGER)
    changed = {**DECLARED, "jerk": DECLARED["jerk"].model_copy(update={"higher_is_better": True})}
    scores = make_scores(PROMPTS, 1, lambda p, k, metric: 0.0, {OWN: ["calm", "jerk"]})
    write_run(folder, record.model_copy(update={"metrics": changed}), scores)
    with pytest.raises(BenchError, match="opposite directions of metric jerk"):
        texts(folder)


def test_a_metric_may_have_the_name_of_a_column() -> None:
    frame = pd.DataFrame({"metric": ["VQ", "row", "Overall", "vq"], "evaluator": ["videoalign", "a:B", "a:B", "a:B"]})
    assert column_names(frame) == {
        **{"VQ": "videoalign_VQ", "vq": "a_B_vq"},
        **{"row": "a_B_row", "Overall": "a_B_Overall"},
    }
