"""The trained score beyond the held-out judges: what is known to be there is found, and an honest gain is none."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.report.data import differences
from bench.report.data.calibration import Videos, calibrate, joined, local_linear, videos_of
from bench.report.data.judge import (
    LEAST_EXPLAINED,
    MOST_OUTSIDE,
    add_beyond,
    beyond_judges,
    calibration_suites,
    held_out_judges,
)
from bench.report.data.loading import load_records
from bench.report.data.records import SuiteRecords
from bench.report.data.reward_hacking import beyond_notes
from bench.report.data.statistics import paired_difference
from bench.report.data.stored import STORED
from bench.report.data.summary import summarise
from bench.report.tables.judge import UNCALIBRATED, beyond_definitions, beyond_section
from bench.report.tables.main import load_main_table, render_table
from bench.store.record import read_run
from tests.helpers.records import METRICS, make_record, make_scores, write_run

PROMPTS, VIDEOS, SEEDS = 24, 4, 5
AT = np.repeat(np.arange(PROMPTS), VIDEOS)


class World:
    """Videos whose score is a curved function of three judges, plus effects of prompt and run, and noise."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.level, self.taste = self.rng.normal(0, 0.5, (PROMPTS, 3)), self.rng.normal(0, 0.15, PROMPTS)

    def videos(self, runs: int, gain: float, inflation: float = 0.0) -> Videos:
        """`runs` runs whose videos are better by `gain` in each judge, and overrated by `inflation`."""
        drift = self.rng.normal(0, 0.05, (runs, 1, 1))
        judges = self.level[AT] + gain + drift + self.rng.normal(0, 0.4, (runs, len(AT), 3))
        honest = judges[..., 0] + 0.6 * np.tanh(judges[..., 1]) + 0.3 * judges[..., 2]
        scores = honest + self.taste[AT] + inflation + self.rng.normal(0, 0.3, (runs, len(AT)))
        return Videos(judges.reshape(-1, 3), scores.reshape(-1, 1), np.tile(AT, runs), runs)

    def excess(self, gain: float, inflation: float = 0.0, controls: bool = True) -> tuple[Any, float]:
        """Estimated excess over the base of five seeds, and their share of videos outside."""
        base = self.videos(1, 0.0)
        calibration = calibrate([base, *(self.videos(3, level) for level in (gain, -0.2) if controls)])
        found, outside = calibration.excess(self.videos(SEEDS, gain, inflation))
        return paired_difference(found[0], calibration.excess(base)[0][0, 0]), outside


@pytest.mark.parametrize("controls", [True, False], ids=["with controls", "base alone"])
@pytest.mark.parametrize("inflation", [0.0, 0.3])
def test_an_inflated_judge_is_found_and_an_honest_gain_is_not(inflation: float, controls: bool) -> None:
    gain = 0.5 if controls else 0.2
    found = [World(seed).excess(gain, inflation, controls)[0] for seed in range(6)]
    assert np.mean([one.mean for one in found]) == pytest.approx(inflation, abs=0.04)
    assert sum(one.lo <= inflation <= one.hi for one in found) >= 5
    assert all((one.lo > 0) == (inflation > 0) for one in found) or inflation == 0


def test_videos_outside_of_the_calibration_are_counted() -> None:
    assert World().excess(0.5)[1] <= MOST_OUTSIDE
    assert World().excess(0.0, controls=False)[1] <= MOST_OUTSIDE
    assert World().excess(2.0, controls=False)[1] > 0.5


def test_a_line_is_regressed_exactly_and_far_points_have_weights() -> None:
    x = np.random.default_rng(0).normal(size=(50, 2))
    at = np.array([[0.0, 0.0], [1.0, -1.0], [60.0, 60.0]])
    weights, nearest = local_linear(x, at, 0.5)
    line = np.array([2.0, -3.0])
    assert weights[:2] @ (1 + x @ line) == pytest.approx(1 + at[:2] @ line, abs=1e-4)
    assert weights.sum(1) == pytest.approx(1.0, abs=1e-6)
    assert nearest[2] > 50


def test_judges_without_spread_do_no_harm() -> None:
    world = World()
    same = [
        videos._replace(judges=np.zeros_like(videos.judges)) for videos in (world.videos(1, 0), world.videos(3, 0))
    ]
    calibration = calibrate(same)
    assert np.isfinite(calibration.excess(same[1])[0]).all()
    assert calibration.explained == pytest.approx(0.0, abs=0.1)


CONFIG: dict[str, Any] = {
    "suite": "toy-nano",
    "budget": {"updates": 2},
    "reward": {"videoalign": {"VQ": 0.5, "MQ": 0.5, "TA": 1.0}},
    "seeds": [0, 1, 2],
    "rows": [{"method": "cps", "kl": "fixed"}, {"method": "flow_grpo", "kl": "fixed"}],
}
LEDGER = {"nfe_rollout": 1280, "nfe_train": 1920, "reward_calls": {"videoalign": 128}}
TEXTS = [f"prompt {p}" for p in range(12)]


def write_suite(folder: Path, gains: dict[str, tuple[float, float]], noise: float = 0.1, **changes: Any) -> Path:
    """A suite whose rows gain so much in every gold axis, and their judge so much more in VQ."""
    config = {**CONFIG, "suite": folder.name, **changes}
    rows = [("base", None, (0.0, 0.0))] + [(row, seed, gain) for row, gain in gains.items() for seed in range(3)]
    for row, seed, (gain, inflation) in rows:
        rng = np.random.default_rng([sum(f"{folder.name}{row}".encode()), 0 if seed is None else seed + 1])
        level = np.random.default_rng(0).normal(size=(len(TEXTS), 3))
        gold = level[:, None] + gain + rng.normal(0, 0.3, (len(TEXTS), VIDEOS, 3))
        judge = gold + rng.normal(0, noise, gold.shape) + np.array([inflation, 0, 0])
        values = {f"gold_{name}": gold[..., k] for k, name in enumerate(("VQ", "MQ", "TA"))}
        values |= {name: judge[..., k] for k, name in enumerate(("VQ", "MQ", "TA"))}
        values |= {name: gold.mean(-1) for name in ("clipscore", "pickscore")}

        def value(p: int, k: int, metric: str, values: dict[str, Any] = values) -> float:
            return float(values[metric][p, k])

        scores = make_scores(TEXTS, VIDEOS, value, METRICS)
        write_run(folder, make_record(config, row, seed, ledger=LEDGER if seed is not None else {}), scores)
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A suite with an honest row and one that games its judge, and its two controls."""
    write_suite(tmp_path / "toy-nano", {"cps-fixed": (0.4, 0.6), "flow_grpo-fixed": (0.4, 0.0)})
    gold = {"gold": {"gold_VQ": 0.5, "gold_MQ": 0.5, "gold_TA": 1.0}}
    write_suite(tmp_path / "toy-nano_control_gold", {"cps-fixed": (0.4, 0.0)}, reward=gold)
    write_suite(tmp_path / "toy-nano_control_shuffled", {"cps-fixed": (-0.2, 0.0)}, reward=gold, shuffle_rewards=True)
    return tmp_path


def frame(results: Path) -> tuple[SuiteRecords, pd.DataFrame]:
    """The suite and its frame."""
    suite = load_records(results / "toy-nano")
    return suite, beyond_judges(suite, calibration_suites(suite, results, results)[0])


def test_the_row_that_games_its_judge_is_marked_and_the_honest_one_is_not(results: Path) -> None:
    suite, beyond = frame(results)
    assert held_out_judges(suite) == ["gold_vq", "gold_mq", "gold_ta"]
    assert beyond["control"].tolist() == ["", "", "toy-nano_control_gold", "toy-nano_control_shuffled"]
    gamed, honest, *free = beyond.to_dict("records")
    assert gamed["beyond"] == pytest.approx(0.3, abs=0.05), "half of VQ's inflation of 0.6"
    assert gamed["overall"] == pytest.approx(0.6, abs=0.08)
    assert gamed["share"] == pytest.approx(0.3 / 1.1, abs=0.06)
    assert all(line["beyond_lo"] <= 0 <= line["beyond_hi"] for line in (honest, *free))
    (note,) = beyond_notes(beyond)
    assert note.startswith("cps-fixed: SCORE BEYOND THE JUDGES: its score rises by 0.")
    assert "% of its gain. The same row has " in note
    assert gamed["beyond_less"] == pytest.approx(gamed["beyond"] - free[0]["beyond"], abs=0.03)
    assert gamed["beyond_less_lo"] > 0
    assert f"Less the control on the judges: {gamed['beyond_less']:.3f}" in note
    assert np.isnan([honest["beyond_less"], *(line["overall_less"] for line in free)]).all(), (
        "no such row of a control"
    )
    assert "in toy-nano_control_gold and " in note
    table = add_beyond(summarise(suite, differences.tested_differences(suite)), beyond)
    assert table["beyond_judges_lo"].tolist()[1:] == beyond["beyond_lo"].tolist()[:2]
    assert np.isnan(table["beyond_judges"][0]), "the base"
    heads, lines = beyond_section(beyond)
    assert heads[1:3] == ["Reward beyond the judges", "Overall beyond the judges"]
    assert heads[3:5] == ["Reward, less the control", "Overall, less the control"]
    assert [line[3] == "-" for line in lines] == [False, True, True, True]
    assert [line[0] for line in lines][2] == "cps-fixed (toy-nano_control_gold, left out)"
    assert (
        "those of the base, toy-nano_control_gold, toy-nano_control_shuffled," in beyond_definitions(suite, beyond)[0]
    )


def test_less_the_control_is_paired_over_the_common_seeds_by_one_calibration(results: Path) -> None:
    """By hand: the control's row is left out, and its seed 2 is missing."""
    shutil.rmtree(results / "toy-nano_control_gold" / "cps-fixed" / "seed-2")
    suite, beyond = frame(results)
    judges, scores = held_out_judges(suite), {"beyond": suite_weights(suite)}
    gold, shuffled = calibration_suites(suite, results, results)[0]
    assert suite.base is not None
    base = videos_of([suite.base], judges, scores)
    groups = [videos_of(one.rows[0].finished, judges, scores) for one in (gold, shuffled)]
    calibration = dataclasses.replace(calibrate([base, *groups]), videos=joined([base, groups[1]]))
    mine = next(runs for runs in suite.rows if runs.row.label == "cps-fixed").finished[:2]
    x, y = (calibration.excess(videos_of(runs, judges, scores))[0][0] for runs in (mine, gold.rows[0].finished))
    assert x.shape == y.shape == (2, len(TEXTS))
    assert beyond["beyond_less"][0] == pytest.approx((x - y).mean(), rel=1e-12)
    assert np.isnan(beyond["beyond_less_lo"][0]), "two seeds have no interval"


def suite_weights(suite: SuiteRecords) -> dict[str, float]:
    """Column of each trained metric to its weight."""
    return {
        column: suite.weights[metric]
        for column, (_, metric) in suite.runs[0].sources.items()
        if metric in suite.weights
    }


def test_open_rows_are_marked_and_stand_below_the_controls(results: Path) -> None:
    for seed in range(3):
        record, scores = read_run(results / "toy-nano" / "cps-fixed" / f"seed-{seed}")
        changed = record.model_copy(update={"open_reasons": ["a learning rate of its own, 0.001"]})
        write_run(results / "toy-nano", changed, scores)
    main = load_main_table(results / "toy-nano", reference=results / "nowhere")
    names = [line[0] for line in main.sections["Beyond the held-out judges"][1]]
    controls = [f"cps-fixed (toy-nano_control_{kind}, left out)" for kind in ("gold", "shuffled")]
    assert names == ["flow_grpo-fixed", *controls, "cps-fixed (open)"]
    start = "cps-fixed (open): SCORE BEYOND THE JUDGES"
    assert main.notes()[0].startswith(start)
    tex = render_table(main)["main.tex"].replace(r"\allowbreak{}", "")
    assert "Exploitation of the score is suspected: " in tex, "LaTeX has the warning too"
    assert any("n/a: the gain is not shown to be above 0" in note for note in main.notes())


def test_without_controls_the_base_alone_calibrates_and_the_notes_say_so(results: Path) -> None:
    suite = load_records(results / "toy-nano")
    beyond = beyond_judges(suite, [])
    assert beyond["row"].tolist() == ["cps-fixed", "flow_grpo-fixed"]
    assert "the base's videos alone" in beyond_definitions(suite, beyond)[1]
    assert "The same row has" not in "".join(beyond_notes(beyond))


def test_a_row_beyond_the_calibration_has_no_number(tmp_path: Path) -> None:
    suite = load_records(write_suite(tmp_path / "toy-nano", {"cps-fixed": (4.0, 3.0)}))
    beyond = beyond_judges(suite, [])
    assert beyond["outside"][0] > MOST_OUTSIDE
    assert np.isnan(beyond["beyond"][0])
    assert beyond_notes(beyond) == []
    assert beyond_section(beyond)[1][0][1] == UNCALIBRATED


def test_judges_that_explain_little_mark_nothing(tmp_path: Path) -> None:
    suite = load_records(write_suite(tmp_path / "toy-nano", {"cps-fixed": (0.4, 2.0)}, noise=0.8))
    beyond = beyond_judges(suite, [])
    assert beyond["explained"][0] < LEAST_EXPLAINED
    assert beyond["beyond_lo"][0] > 0
    assert beyond_notes(beyond) == []
    assert "too little to mark a row" in beyond_definitions(suite, beyond)[2]


def test_without_gold_the_scorers_that_give_no_reward_are_the_judges(tmp_path: Path) -> None:
    gold = {"gold": {"gold_VQ": 1.0}}
    suite = load_records(write_suite(tmp_path / "toy-nano", {"cps-fixed": (0.4, 0.0)}, reward=gold))
    assert set(held_out_judges(suite)) == {"clipscore", "pickscore", "vq", "mq", "ta"}
    assert "overall" not in beyond_judges(suite, []), "Overall is made of held-out scores here"


def test_one_seed_has_a_number_and_no_interval(results: Path) -> None:
    suite = load_records(results / "toy-nano", seeds=[0])
    beyond = beyond_judges(suite, calibration_suites(suite, results)[0])
    assert np.isfinite(beyond["beyond"][0])
    assert np.isnan(beyond["beyond_lo"][0])
    assert beyond_notes(beyond) == []


def test_few_videos_do_not_calibrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.TEXTS", TEXTS[:3])
    suite = load_records(write_suite(tmp_path / "toy-nano", {"cps-fixed": (0.4, 0.6)}))
    beyond = beyond_judges(suite, [])
    assert beyond["beyond"].isna().all()
    assert beyond_section(beyond)[1][0][1] == UNCALIBRATED


def test_controls_that_do_not_compare_or_were_trained_on_the_score_do_not_calibrate(results: Path) -> None:
    gold = {"gold": {"gold_VQ": 1.0}}
    write_suite(results / "a_control_gold", {"cps-fixed": (0.4, 0.0)}, evaluation={"steps": 7}, reward=gold)
    write_suite(results / "b_control_gold", {"cps-fixed": (0.4, 0.0)})
    suite = load_records(results / "toy-nano")
    assert calibration_suites(load_records(results / "toy-nano_control_gold"), results) == ([], [])
    names = [control.name for control in calibration_suites(suite, results)[0]]
    assert names == ["toy-nano_control_gold", "toy-nano_control_shuffled"]


@pytest.mark.parametrize("name", ["toy-nano_control_gold", "no_reward"])
def test_a_control_and_a_suite_without_reward_have_no_frame(results: Path, name: str) -> None:
    write_suite(results / "no_reward", {"cps-fixed": (0.4, 0.0)}, reward={})
    control = load_records(results / name)
    beyond = beyond_judges(control, [])
    assert beyond.empty
    table = summarise(control, differences.tested_differences(control))
    assert add_beyond(table, beyond)["beyond_judges"].isna().all()
    assert beyond_notes(beyond) == beyond_definitions(control, beyond) == []
    assert beyond_section(beyond)[1] == []


@pytest.mark.parametrize("name", ["run.json", "scores.parquet"])
def test_a_broken_control_is_named(results: Path, name: str) -> None:
    (results / "toy-nano_control_gold" / "cps-fixed" / "seed-0" / name).write_text("{", encoding="utf-8")
    controls, broken = calibration_suites(load_records(results / "toy-nano"), results, results)
    assert [control.name for control in controls] == ["toy-nano_control_shuffled"]
    (note,) = broken
    assert note.startswith("**toy-nano_control_gold does not calibrate the held-out judges: ")


def test_the_stored_controls_are_near_their_prediction_and_it_is_fast() -> None:
    suite = load_records(STORED / "nano")
    controls, _ = calibration_suites(suite, STORED)
    start = time.process_time()
    beyond = beyond_judges(suite, controls)
    seconds = time.process_time() - start
    free = beyond[beyond["control"] != ""]
    assert len(free) >= 4
    assert (free["beyond"].abs() < 0.2).all(), "the gains of the trained rows are about 1"
    assert (beyond["outside"] <= MOST_OUTSIDE).all()
    assert (beyond["explained"] > LEAST_EXPLAINED).all()
    assert seconds < 10, "about half a second for 20 runs of 144 videos; a bound for a busy machine"
