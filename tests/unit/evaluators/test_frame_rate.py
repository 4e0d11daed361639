"""The frame rate: time stamps rounded by a clock are even, and a rate that really varies is refused."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import pytest

from bench.api import BenchError
from evaluators.frame_rate import constant_rate
from evaluators.video_io import read_video
from tests.helpers.clips import Clip

MS = Fraction(1, 1000)


def rounded(fps: float, count: int, tick: Fraction, how: str = "round") -> list[int]:
    """Time stamps of a constant rate in ticks."""
    cut = {"round": round, "floor": math.floor}[how]
    return [cut(Fraction(i) / Fraction(fps).limit_denominator(1001) / tick) for i in range(count)]


@pytest.mark.parametrize("fps", [8, 15, 23.976, 24, 29.97, 30, 50, 59.94, 60, 120])
@pytest.mark.parametrize("how", ["round", "floor"])
@pytest.mark.parametrize("tick", [MS, Fraction(1, 90000), Fraction(1, 600), Fraction(1, 1_000_000)])
def test_rounded_stamps_are_a_constant_rate(fps: float, how: str, tick: Fraction) -> None:
    stamps = rounded(fps, 81, tick, how)
    stated = Fraction(fps).limit_denominator(1001)
    assert constant_rate(stamps, tick, stated, "a") == float(stated)
    for header in (None, Fraction(1000), Fraction(7)):
        assert constant_rate(stamps, tick, header, "a") == pytest.approx(fps, rel=2e-3)


def test_stamps_rounded_by_a_coarser_clock_before() -> None:
    """Milliseconds moved into the clock of an MP4 file."""
    stamps = [round(stamp * 15.36) for stamp in rounded(30, 60, MS)]
    assert constant_rate(stamps, Fraction(1, 15360), Fraction(30), "a") == 30.0


def test_a_header_that_contradicts_the_stamps_gives_way() -> None:
    assert constant_rate([33 * i for i in range(24)], MS, Fraction(1000), "a") == pytest.approx(1000 / 33, rel=1e-12)
    assert constant_rate(list(range(24)), MS, Fraction(1000), "a") == 1000.0  # a true 1000 frames per second


@pytest.mark.parametrize("tick", [MS, Fraction(1, 90000), Fraction(1, 8)])
@pytest.mark.parametrize(
    ("times", "frame"),
    [
        ([0, 1, 2, 3, 5, 6, 7, 8], 4),
        ([0, 1, 2, 3, 4, 4, 5, 6], 4),
        ([i if i < 12 else 2 * i - 12 for i in range(24)], 12),
        ([0, 0, 0, 0], 0),
    ],
    ids=["a frame left out", "a frame twice", "slower in the middle", "no time passes"],
)
def test_a_variable_rate_is_refused(tick: Fraction, times: list[int], frame: int) -> None:
    stamps = [round(Fraction(time, 8) / tick) for time in times]
    with pytest.raises(BenchError, match=r"video a has no constant frame rate \(frame \d+ is \d\.\d+ s off") as error:
        constant_rate(stamps, tick, Fraction(8), "a")
    assert f"frame {frame} " in str(error.value)


def test_a_frame_without_a_stamp_is_refused() -> None:
    with pytest.raises(BenchError, match="frames without a time stamp"):
        constant_rate([0, None, 2], MS, Fraction(8), "a")


@pytest.mark.parametrize("name", ["a.webm", "a.mkv", "a.mp4", "a.avi"])
@pytest.mark.hazard(7)
def test_files_of_a_clock_of_milliseconds(tmp_path: Path, name: str) -> None:
    codec = {"webm": "libvpx-vp9", "mkv": "ffv1", "mp4": "libx264", "avi": "libx264"}[name[2:]]
    if name == "a.avi":  # numbers the frames in the order of decoding
        path = Clip(codec, frames=24, fps=30, options={"bf": "2"}).write(tmp_path / name)
    else:
        stamps = rounded(30, 24, MS)
        path = Clip(codec, fps=30, stamps=stamps, tick=MS).write(tmp_path / name)
    assert read_video(path).fps == pytest.approx(30, rel=2e-3)


def test_a_header_of_1000_frames_per_second(tmp_path: Path) -> None:
    path = Clip("libvpx-vp9", fps=1000, stamps=[33 * i for i in range(24)], tick=MS).write(tmp_path / "a.webm")
    video = read_video(path)
    assert (len(video.frames), video.fps) == (24, pytest.approx(30.303, abs=0.002))
