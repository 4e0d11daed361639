"""Kept videos: a lossless picture of small clips, a file for each large one, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bench.core.errors import BenchError
from bench.store.record import remove_run
from bench.store.videos import (
    KeptVideos,
    fits_atlas,
    keep_clip,
    read_videos,
    remove_videos,
    video_files,
    videos_digest,
    write_index,
)


def noise(frames: int, height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def squares(frames: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A red field with a green square that moves."""
    clip = np.full((frames, height, width, 3), (200, 30, 60), dtype=np.uint8)
    for f in range(frames):
        clip[f, 8:24, 8 + 2 * f : 24 + 2 * f] = (20, 200, 40)
    return clip


def keep(run: Path, clips: dict[tuple[int, int], npt.NDArray[np.uint8]], fps: float = 8.0) -> KeptVideos:
    write_index(
        run, [keep_clip(run, key, clip, clips=len(clips), fps=fps, write=True) for key, clip in clips.items()], fps
    )
    kept = read_videos(run)
    assert kept is not None
    return kept


def test_small_clips_come_back_bit_for_bit_from_one_file(tmp_path: Path) -> None:
    clips = {(p, video): noise(5, 16, 12, 10 * p + video) for p in range(3) for video in range(2)}
    kept = keep(tmp_path, clips)
    assert [path.name for path in video_files(tmp_path)] == ["clips.webp", "index.json"]
    for key, clip in clips.items():
        assert np.array_equal(kept.frames(*key), clip)
        assert kept.path(*key) == tmp_path / "videos" / "clips.webp"
    assert {name: value for name, value in kept.index.items() if name != "clips"} == {
        **{"fps": 8.0, "frames": 5, "height": 16, "width": 12, "format": "webp"}
    }
    assert [clip["line"] for clip in kept.index["clips"]] == [0, 1, 2, 3, 4, 5]
    assert kept.problems() == []


@pytest.mark.parametrize("shape", [(9, 96, 128), (9, 65, 97)], ids=["even sides", "odd sides"])
def test_large_clips_are_files_of_their_own_that_keep_colours(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    kept = keep(tmp_path, {(0, 0): squares(*shape), (3, 1): squares(*shape)}, 24.0)
    assert [path.name for path in video_files(tmp_path)] == ["0-0.mp4", "3-1.mp4", "index.json"]
    assert kept.index["format"] == "mp4"
    frames = kept.frames(3, 1)
    assert frames.shape == (*shape, 3)
    apart = np.abs(frames.astype(int) - squares(*shape))
    # single pixels at the edges of the square share their colour with neighbours; the fields keep theirs
    assert apart.mean() < 3
    assert np.abs(frames[4, 40, 40].astype(int) - (200, 30, 60)).max() <= 4


def test_equal_frames_give_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        keep(tmp_path / name, {(0, 0): squares(9, 96, 128)})
    assert videos_digest(tmp_path / "one") == videos_digest(tmp_path / "two")


def test_a_picture_has_at_most_the_sides_that_webp_allows() -> None:
    assert fits_atlas((13, 64, 64), 255)
    assert not fits_atlas((13, 64, 64), 256)  # 16384 lines
    assert not fits_atlas((300, 16, 64), 1)
    assert not fits_atlas((13, 64, 65), 1)


def test_a_run_without_kept_videos_has_none(tmp_path: Path) -> None:
    assert read_videos(tmp_path) is None
    assert videos_digest(tmp_path) is None
    remove_videos(tmp_path)


def test_a_missing_clip_and_a_missing_or_changed_file_are_one_sentence(tmp_path: Path) -> None:
    kept = keep(tmp_path, {(0, 0): noise(2, 8, 8)})
    with pytest.raises(BenchError, match=r"has no video 1 of prompt 0: .* evaluation\.keep_videos\.$"):
        kept.frames(0, 1)
    path = kept.path(0, 0)
    path.write_bytes(path.read_bytes() + b"x")
    assert kept.problems() == ["videos/clips.webp is not the file that videos/index.json lists"]
    with pytest.raises(BenchError, match=r"clips\.webp is not the file that its index lists: restore"):
        kept.frames(0, 0)
    path.unlink()
    assert kept.problems() == ["videos/clips.webp is missing"]
    with pytest.raises(BenchError, match=r"clips\.webp cannot be read"):
        kept.frames(0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 0}, r"is not valid at fps"),
        ({"format": "gif"}, r"is not valid at format"),
        ({"more": 1}, r"is not valid at more"),
        ({"clips": []}, r"is not valid at clips"),
        ({"clips": [{"file": "/etc/passwd"}]}, r"has the file '/etc/passwd' and line 0 for clip 0"),
        ({"clips": [{"line": 1}]}, r"has the file 'clips\.webp' and line 1 for clip 0"),
        ({"clips": [{}, {}]}, r"has a clip twice"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    keep(tmp_path, {(0, 0): noise(2, 8, 8)})
    path = tmp_path / "videos" / "index.json"
    index = json.loads(path.read_text())
    if isinstance(change.get("clips"), list):
        change = {"clips": [{**index["clips"][0], **clip} for clip in change["clips"]]}
    path.write_text(json.dumps({**index, **change}))
    with pytest.raises(BenchError, match=message):
        read_videos(tmp_path)


def test_removing_a_run_removes_its_videos_and_no_other_file(tmp_path: Path) -> None:
    keep(tmp_path, {(0, 0): noise(2, 8, 8)})
    own = tmp_path / "videos" / "notes.txt"
    own.write_text("mine")
    (tmp_path / "videos" / ".clips.webp.0123456789ab.tmp").write_bytes(b"of a killed process")
    remove_run(tmp_path)
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["notes.txt"]
    own.unlink()
    remove_run(tmp_path)
    assert not (tmp_path / "videos").exists()
