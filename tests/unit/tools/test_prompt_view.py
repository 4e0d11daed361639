"""results/reference/nano/prompts.md is what tools.prompt_view writes, and the hues in it are those of the clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.core.errors import BenchError
from bench.nano.world import BACKGROUND, COLOURS
from bench.store.videos import Clip, read_videos, write_index
from tools.prompt_view import FOLDER, PAGE, page, shape_hues


def test_the_stored_page_is_that_of_the_records() -> None:
    assert (FOLDER / PAGE).read_text(encoding="utf-8") == page(FOLDER), "run `python -m tools.prompt_view`"


def test_the_hue_is_that_of_the_shape_and_not_of_the_background(tmp_path: Path) -> None:
    clips = []
    for prompt, rgb in enumerate(COLOURS.values()):
        frames = np.full((2, 8, 8, 3), round(255 * BACKGROUND), dtype=np.uint8)
        frames[:, 2 : 4 + prompt % 2, 2:5] = np.round(255 * np.array(rgb))
        clips.append(Clip(prompt, 0, (2, 8, 8), frames, None))
    dark = np.full((2, 8, 8, 3), 20, dtype=np.uint8)
    write_index(tmp_path, [*clips, Clip(len(clips), 0, (2, 8, 8), dark, None)], fps=8.0)
    kept = read_videos(tmp_path)
    assert kept is not None
    hues = shape_hues(kept)
    assert hues[:-1] == pytest.approx([2, 127, 231, 55, 300, 185], abs=0.6), "red is 0, green 120, blue 240 degrees"
    assert np.isnan(hues[-1]), "nothing bright, no hue"


def test_records_without_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no records"):
        page(tmp_path)
