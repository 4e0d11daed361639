"""Held-out curves on records of two prompts and two videos, against numbers computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench import load_results, store
from bench.report.data.held_out import COLUMNS, held_out_curves, summarise_curves, videos_of_curve
from bench.report.data.loading import load_records
from bench.report.tables.main import load_main_table
from bench.store.curve import curve_digest, write_points
from tests.helpers.records import make_record, make_scores, write_lines, write_run

CONFIG = {
    "suite": "toy",
    "budget": {"updates": 3},
    "reward": {"videoalign": {"VQ": 0.5}},
    "evaluation": {"evaluators": ["videoalign"], "every": 1},
    "seeds": [0, 1, 2],
    "rows": [{"method": "cps", "kl": "fixed"}],
}
PROMPTS = ["a cat", "a dog"]
BASE = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 5.0, (1, 1): 7.0}
"""The base's VQ of (prompt, video); its mean is 4."""
Gain = Callable[[int, int], float]


def scores(gain: Gain, videos: int) -> pd.DataFrame:
    return make_scores(PROMPTS, videos, lambda p, k, metric: BASE[p, k] + gain(p, k), {"videoalign": ["VQ"]})


def write(folder: Path, seed: int, points: dict[int, Gain], last: Gain) -> Path:
    """A run with these points of its curve, on the first video of each prompt."""
    ledger = {"nfe_rollout": 30, "nfe_train": 1, "reward_calls": {"videoalign": 6}}
    record = make_record(CONFIG, "cps-fixed", seed, ledger=ledger)
    lines = [
        {
            "update": u,
            "ledger": {"nfe_rollout": 10 * (u + 1), "reward_calls": {"videoalign": 2 * (u + 1)}},
            "seconds": {"rollout": 60.0, "update": 30.0},
        }
        for u in range(3)
    ]
    path = store.run_folder(folder, "cps-fixed", seed)
    path.mkdir(parents=True)
    if points:
        write_points(path, pd.concat([scores(gain, 1).assign(update=update) for update, gain in points.items()]))
    record = record.model_copy(update={"curve_digest": curve_digest(path)})
    write_run(folder, record, scores(last, 2))
    write_lines(path, lines)
    return path


def by_prompt(first: float, second: float) -> Gain:
    """This gain for every video of the first and of the second prompt."""
    return lambda p, k: (first, second)[p]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Gains of three seeds at updates 1 and 2, on one video, and at the end, on two."""
    write_run(tmp_path, make_record(CONFIG, "base", None), scores(lambda p, k: 0.0, 2))
    for seed in (0, 1, 2):
        points = {1: by_prompt(1.0 + seed, 2.0), 2: by_prompt(-3.0, 1.0)}
        write(tmp_path, seed, points, lambda p, k: 2.0 * k + p)
    return tmp_path


def test_gains_are_paired_with_the_same_videos_of_the_base(folder: Path) -> None:
    curves = held_out_curves(load_records(folder))
    assert list(curves.columns) == COLUMNS
    vq = curves[(curves["score"] == "vq") & (curves["seed"] == 1)]
    # update 1: (2 + 2) / 2; update 2: (-3 + 1) / 2; end: 0 and 1 of the first videos, and not 2 and 3 of the second
    assert vq["update"].tolist() == [0, 1, 2, 3]
    assert vq["gain"].tolist() == pytest.approx([0.0, 2.0, -1.0, 0.5])
    assert vq["level"].tolist() == pytest.approx([4.0, 6.0, 3.0, 4.5])  # of the base's mean over all its videos
    assert vq["nfe_rollout"].tolist() == [0, 10, 20, 30]
    assert vq["reward_calls"].tolist() == [0, 2, 4, 6]
    assert vq["minutes"].tolist() == pytest.approx([0.0, 1.5, 3.0, 4.5])


def test_sums_are_scores_of_a_curve_too(folder: Path) -> None:
    curves = held_out_curves(load_records(folder))
    assert set(curves["score"]) == {"trained", "vq"}  # no overall without MQ and TA
    trained = curves[(curves["score"] == "trained") & (curves["seed"] == 0)]
    assert trained["gain"].tolist() == pytest.approx([0.0, 0.75, -0.5, 0.25])  # half of VQ


def test_a_policy_that_stands_still_has_a_flat_curve(tmp_path: Path) -> None:
    """Though its gain differs from video to video."""
    write_run(tmp_path, make_record(CONFIG, "base", None), scores(lambda p, k: 0.0, 2))

    def gain(p: int, k: int) -> float:
        return 1.0 + p + 4.0 * k

    write(tmp_path, 0, {1: gain, 2: gain}, gain)
    curves = held_out_curves(load_records(tmp_path))
    assert curves[curves["score"] == "vq"]["gain"].tolist() == pytest.approx([0.0, 1.5, 1.5, 1.5])
    table = load_main_table(tmp_path).table.set_index("row")["vq"]
    assert float(table["cps-fixed"]) - float(table["base"]) == pytest.approx(3.5), "the table has the other videos too"


def test_means_over_seeds_have_the_interval_of_student(folder: Path) -> None:
    means = summarise_curves(held_out_curves(load_records(folder)))
    line = means[(means["update"] == 1) & (means["score"] == "vq")].iloc[0]
    # gains 1.5, 2 and 2.5: mean 2, standard deviation 0.5, t of 2 degrees of freedom 4.302653
    half = 4.302653 * 0.5 / np.sqrt(3)
    assert (line["n"], line["gain"], line["level"]) == (3, pytest.approx(2.0), pytest.approx(6.0))
    assert line["gain_lo"] == pytest.approx(2.0 - half, rel=1e-6)
    assert line["level_hi"] == pytest.approx(6.0 + half, rel=1e-6)
    assert line["minutes"] == pytest.approx(1.5)


def test_fewer_than_three_seeds_have_no_interval(folder: Path) -> None:
    curves = held_out_curves(load_records(folder, seeds=[0, 1]))
    means = summarise_curves(curves)
    assert set(means["n"]) == {2}
    assert means[["gain_lo", "gain_hi", "level_lo", "level_hi"]].isna().all(axis=None)


def test_a_suite_without_curves_has_an_empty_frame(tmp_path: Path) -> None:
    write_run(tmp_path, make_record(CONFIG, "base", None), scores(lambda p, k: 0.0, 2))
    write(tmp_path, 0, {}, by_prompt(1.0, 1.0))
    curves = held_out_curves(load_records(tmp_path))
    assert (len(curves), list(curves.columns)) == (0, COLUMNS)
    assert summarise_curves(curves).empty


def test_results_have_the_curves_of_all_suites(folder: Path) -> None:
    frame = load_results(folder).held_out
    assert list(frame.columns) == ["suite", *COLUMNS]
    assert set(frame["suite"]) == {"toy"}
    assert len(frame) == 3 * 4 * 2  # seeds, updates, scores


def test_a_caption_says_which_videos_the_points_are_of() -> None:
    assert videos_of_curve({}) == ""
    assert videos_of_curve({"evaluation": {"curve_videos": 4, "videos_per_prompt": 4}}) == ""
    some = videos_of_curve({"evaluation": {"curve_videos": 2, "videos_per_prompt": 4}})
    assert some == " All points are of the first 2 videos of each prompt; the table has all 4."
