"""Frames of video files: the same as the original's reader gives, or an error."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from bench.api import BenchError
from evaluators.video_io import read_video
from tests.helpers.paths import FIXTURES_ROOT

FIXTURES = FIXTURES_ROOT / "videoalign"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))


def write(path: Path, frames: int = 12, fps: int = 12, stamps: list[int] | None = None, **options: str) -> Path:
    """A small clip; `stamps`: time stamps in ticks of 1 / (100 fps) s."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100 * fps)
        for i in range(frames):
            noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(noise, format="rgb24")
            frame.pts = 100 * i if stamps is None else stamps[i]
            frame.time_base = Fraction(1, 100 * fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("entry", EXPECTED["inputs"], ids=lambda entry: entry["video"])
@pytest.mark.hazard(7)
def test_frames_and_rate_are_those_of_the_original(entry):
    video = read_video(FIXTURES / "videos" / entry["video"])
    assert video.fps == entry["avg_fps"]
    assert video.frames.shape == (entry["total_frames"], *entry["frames_shape"][2:], 3)
    assert video.frames.dtype == np.uint8
    stored = np.load(FIXTURES / "sampled_frames.npz")
    name = entry["video"].replace(".", "_")
    if name in stored:
        np.testing.assert_array_equal(video.frames[entry["frame_indices"]].transpose(0, 3, 1, 2), stored[name])


def test_a_video_may_have_one_frame(tmp_path):
    assert len(read_video(write(tmp_path / "one.mp4", frames=1)).frames) == 1


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("flags", ["", "faststart"], ids=["index last", "index first"])
@pytest.mark.hazard(7)
def test_a_truncated_file_is_refused(tmp_path, share, flags):
    whole = write(tmp_path / "whole.mp4", frames=24, **({"movflags": flags} if flags else {}))
    assert len(read_video(whole).frames) == 24
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(BenchError, match=r"cut\.mp4"):
        read_video(cut)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b"no video at all" * 100, "cannot be decoded")], ids=["empty", "text"]
)
def test_a_file_that_is_no_video_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=message):
        read_video(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BenchError, match="does not exist"):
        read_video(tmp_path / "none.mp4")


def test_a_sound_file_is_refused(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BenchError, match="no video stream"):
        read_video(path)


@pytest.mark.parametrize(
    "stamps",
    [[0, 100, 200, 300, 500, 600, 700, 800], [0, 100, 200, 300, 350, 400, 450, 500]],
    ids=["one frame left out", "faster from the middle on"],
)
@pytest.mark.hazard(7)
def test_a_variable_frame_rate_is_refused(tmp_path, stamps):
    path = write(tmp_path / "uneven.mp4", frames=len(stamps), stamps=stamps)
    with pytest.raises(BenchError, match="constant frame rate"):
        read_video(path)
