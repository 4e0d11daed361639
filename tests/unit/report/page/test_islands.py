"""Data in the page: complete, with the numbers of the table, and unable to end the element that holds it."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from bench.core.errors import BenchError
from bench.report.page.clips import NANO_BYTES, load_clips
from bench.report.page.curves import curves_chart, curves_island
from bench.report.page.islands import as_json, cells_island, runs_island, suite_island
from bench.report.page.page import held_out
from bench.report.page.strips import prompt_strips
from bench.report.page.subject import Subject
from bench.report.tables.main import load_main_table
from bench.store.record import read_record
from bench.store.videos import keep_clip, write_index
from tests.helpers.toy_records import write_suite

ENDS = 5e-4
"""Half a unit of the fourth significant digit, relative to the number."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of which the base and one seed of each row kept the first video of each prompt."""
    folder = tmp_path_factory.mktemp("islands") / "toy"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        write_suite(folder)
        for number, run in enumerate((folder / "base", folder / "cps-fixed/seed-0", folder / "sage_grpo-dual/seed-0")):
            frames = np.full((36, 3, 4, 4, 3), 40 * number, dtype=np.uint8)
            frames[:, :, 0, 0, 0] = np.arange(36)[:, None]
            clips = [keep_clip(run, (p, 0), frames[p], clips=36, fps=8.0, write=True) for p in range(36)]
            write_index(run, clips, 8.0)
    return folder


@pytest.fixture
def subject(folder: Path) -> Subject:
    return Subject("toy", folder, {"": load_main_table(folder)})


def test_the_means_of_the_cells_are_the_numbers_of_the_csv(subject: Subject) -> None:
    table = subject.tables[""].table.set_index("row")
    cells = cells_island(subject, 0)
    assert cells["metrics"] == list(subject.metrics)
    assert set(cells["rows"]) == {"base", "sage_grpo-dual", "cps-fixed"}
    for row, seeds in cells["rows"].items():
        assert list(seeds) == ([""] if row == "base" else ["0", "1", "2"])
        for metric in cells["metrics"]:
            values = np.array([each[metric] for each in seeds.values()])
            bound = ENDS * float(np.abs(values).max())
            assert values.mean() == pytest.approx(table.loc[row, metric], abs=bound)


def test_the_suite_names_rows_metrics_and_prompts(subject: Subject) -> None:
    island = suite_island(subject)
    assert [row["label"] for row in island["rows"]] == ["base", "sage_grpo-dual", "cps-fixed"]
    assert [row["base"] for row in island["rows"]] == [True, False, False]
    assert island["rows"][1]["title"] == "SAGE-GRPO, dual KL"
    assert (island["primary"], island["nano"], island["seeds"]) == ("overall", True, [0, 1, 2])
    assert [metric["name"] for metric in island["metrics"]] == list(subject.metrics)
    assert island["prompts"][0] == {
        "text": "a red circle moving left slowly",
        "tags": ["red", "circle", "left", "slowly"],
    }
    assert len(island["digest"]) == 16


def test_every_record_is_in_the_page(subject: Subject, folder: Path) -> None:
    runs = runs_island(subject)
    assert len(runs) == 7
    assert runs[0] == json.loads((folder / "base" / "run.json").read_text(encoding="utf-8"))
    assert {run["digest"] for run in runs} == {run.record.digest for run in subject.runs}


def test_json_cannot_end_its_element() -> None:
    evil = "</script><!-- \u2028 \u2029 & \"quotes\" 'single'"
    text = as_json({"a": evil})
    assert json.loads(text) == {"a": evil}
    assert not set(text) & set("<>&\u2028\u2029")


def test_a_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json({"a": math.inf})


def test_kept_videos_are_embedded_with_their_lines_and_hashes(subject: Subject, folder: Path) -> None:
    clips = load_clips(subject)
    island = clips.island
    assert {key: island[key] for key in ("kind", "fps", "frames", "height", "width", "videos")} == {
        **{"kind": "atlas", "fps": 8.0, "frames": 3, "height": 4, "width": 4, "videos": 1}
    }
    assert {row: list(seeds) for row, seeds in island["sets"].items()} == {
        **{"base": [""], "sage_grpo-dual": ["0"], "cps-fixed": ["0"]}
    }
    one = island["sets"]["cps-fixed"]["0"]
    assert one["src"].startswith("data:image/webp;base64,UklGR")
    assert one["lines"] == {f"{p}-0": p for p in range(36)}
    index = json.loads((folder / "cps-fixed/seed-0/videos/index.json").read_text(encoding="utf-8"))
    assert one["sha256"] == index["clips"][0]["sha256"]
    scores = cells_island(subject, clips.videos)["clips"]["cps-fixed"]["0"]["vq"]
    run = next(run for run in subject.runs if run.record.row == "cps-fixed")
    assert scores[5] == [pytest.approx(run.clips["vq"].xs((5, 0), level=("prompt_index", "video")).iloc[0], rel=ENDS)]


def test_videos_beyond_the_budget_stay_out(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.page.clips.NANO_BYTES", 100)
    assert load_clips(subject).island["sets"] == {}
    assert NANO_BYTES > 100


def test_a_missing_video_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "toy")
    (copy / "cps-fixed/seed-0/videos/clips.webp").unlink()
    subject = Subject("toy", copy, {"": load_main_table(copy)})
    with pytest.raises(BenchError, match=r"videos of .*seed-0 are damaged: videos/clips\.webp is missing"):
        load_clips(subject)


def test_strips_show_the_largest_gain_the_median_and_the_largest_loss(subject: Subject) -> None:
    found = prompt_strips(subject, load_clips(subject))
    assert [each.why for each in found] in (
        ["largest gain", "median gain", "smallest gain"],
        ["largest gain", "median gain", "largest loss"],
    )
    for each in found:
        assert [strip.row for strip in each.strips] == ["Base", "SAGE-GRPO, dual KL, seed 0", "CPS, fixed KL, seed 0"]
        assert len({strip.src for strip in each.strips}) == 3
        assert each.strips[0].change == ""
        assert each.strips[1].change[0] in "+-"


def test_without_videos_the_island_says_so(folder: Path, tmp_path: Path) -> None:
    write_suite(tmp_path / "toy")
    subject = Subject("toy", tmp_path / "toy", {"": load_main_table(tmp_path / "toy")})
    clips = load_clips(subject)
    assert clips.island["kind"] is None
    assert cells_island(subject, clips.videos)["clips"] == {}
    assert prompt_strips(subject, clips) == []


def test_the_digest_changes_with_a_run(subject: Subject, tmp_path: Path) -> None:
    write_suite(tmp_path / "toy", seeds=(0, 1))
    other = Subject("toy", tmp_path / "toy", {"": load_main_table(tmp_path / "toy")})
    assert other.digest != subject.digest
    assert read_record(tmp_path / "toy" / "base").digest == subject.runs[0].record.digest


def test_a_suite_without_curves_has_none(subject: Subject) -> None:
    frame = held_out(subject)
    assert frame.empty
    assert curves_island(subject, frame) == {"x": {"update": [], "nfe_rollout": [], "reward_calls": []}, "series": []}
    assert curves_chart(subject, frame) is None
