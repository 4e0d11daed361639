"""The gallery: which prompts it shows, what it says of each video, and that it can be read and ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bench.core.errors import BenchError
from bench.report.data.loading import load_records
from bench.report.figures.gallery import PLAYS, Gallery, build_gallery, chosen_prompts, load_gallery
from bench.store.record import run_folder
from bench.store.videos import keep_clip, write_index
from tests.helpers.toy_records import CONFIG, LIFTS, write_suite

PROMPTS = 36


def keep(run: Path, level: int) -> None:
    """One grey clip per prompt, of this level and the prompt's number, brighter by 40 in each frame."""
    frames = 40 * np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) + np.zeros((1, 8, 8, 3), np.uint8)
    clips = [
        keep_clip(run, (p, 0), frames + np.uint8(level + p), clips=PROMPTS, fps=8.0, write=True)
        for p in range(PROMPTS)
    ]
    write_index(run, clips, 8.0)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = write_suite(tmp_path / "toy")
    for number, (row, seed) in enumerate([("base", None), *((row, 1) for row in LIFTS)]):
        keep(run_folder(folder, row, seed), 50 * number)
    return folder


def gallery(folder: Path, prompts: int = 6) -> Gallery:
    return load_gallery(load_records(folder), 1, prompts)


def test_gains_medians_and_losses_are_shown_in_equal_parts() -> None:
    changes = pd.Series([0.1, -0.5, 0.3, 0.0, 0.9, -0.2, 0.4, 0.2, -0.1])
    # in order: 4 (.9), 6 (.4), 2 (.3), 7 (.2), 0 (.1), 3 (0), 8 (-.1), 5 (-.2), 1 (-.5)
    assert chosen_prompts(changes, 3) == {4: "largest gain", 0: "median", 1: "largest loss"}
    assert list(chosen_prompts(changes, 6)) == [4, 6, 7, 0, 5, 1]
    assert list(chosen_prompts(changes, 100)) == [4, 6, 2, 7, 0, 3, 8, 5, 1]


def test_a_row_that_gains_everywhere_has_no_loss_to_show() -> None:
    assert list(chosen_prompts(pd.Series([0.3, 0.1, 0.2]), 3).values()) == ["largest gain", "median", "smallest gain"]


def test_every_row_shows_its_own_video_of_the_prompt_with_its_change(suite: Path) -> None:
    shown = gallery(suite)
    assert list(shown.lines) == ["Base", "SAGE-GRPO, dual KL", "CPS, fixed KL"]
    records = load_records(suite)
    base = records.base
    assert base is not None
    best = next(runs for runs in records.rows if runs.row.label == "sage_grpo-dual")  # lifted by 0.5
    changes = sum(run.cells["overall"] for run in best.finished) / 3 - base.cells["overall"]
    prompts = list(chosen_prompts(changes, 6))
    own = {"SAGE-GRPO, dual KL": ("sage_grpo-dual", 50), "CPS, fixed KL": ("cps-fixed", 100)}
    for title, (label, level) in own.items():
        run = next(r for runs in records.rows if runs.row.label == label for r in runs.finished if r.record.seed == 1)
        for p, cell in zip(prompts, shown.lines[title], strict=True):
            assert cell.frames[:, 0, 0, 0].tolist() == [level + p, level + p + 40, level + p + 80]
            score, reference = (float(each.clips["overall"].loc[p].iloc[0]) for each in (run, base))
            assert cell.score == score
            assert cell.change == pytest.approx(score - reference)
    assert all(cell.change is None for cell in shown.lines["Base"])
    assert "SAGE-GRPO, dual KL, mean over 3 seed(s)" in shown.title
    assert shown.heads[0].startswith("largest gain, +")


def test_the_files_are_a_still_strip_and_an_animation_that_ends(suite: Path) -> None:
    written = build_gallery(suite, [runs.row for runs in load_records(suite).rows], CONFIG["seeds"], 1)
    assert [path.name for path in written] == ["gallery.png", "gallery.webp"]
    with Image.open(written[0]) as strip, Image.open(written[1]) as animation:
        assert getattr(strip, "n_frames", 1) == 1
        assert animation.n_frames == 3
        assert animation.info["loop"] == PLAYS == 3
        assert 600 < strip.width < 1400
    again = build_gallery(suite, [runs.row for runs in load_records(suite).rows], CONFIG["seeds"], 1)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written]


def test_a_suite_without_kept_videos_says_how_to_get_them(suite: Path) -> None:
    with pytest.raises(BenchError, match=r"seed-0 keeps no videos: set evaluation\.keep_videos, and run the suite\.$"):
        load_gallery(load_records(suite), 0, 6)


def test_a_seed_that_no_run_has_is_refused(suite: Path) -> None:
    with pytest.raises(BenchError, match="has no base, or no finished run of seed 7"):
        load_gallery(load_records(suite), 7, 6)
