"""Reads all frames of a video file, or raises an error.

VideoReward derives the number of sampled frames from the frame rate. A file that decodes short, or whose frames are
not evenly spaced, would give a plausible wrong score, so it is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from bench.api import BenchError

if TYPE_CHECKING:
    from av.video.stream import VideoStream


TIME_TOLERANCE = 0.05
"""Largest error of a time stamp on the even grid, in frame intervals, besides one tick of the container's clock."""

IMAGE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""PIL's names of the pixel formats with at most 8 bits per channel."""


@dataclass(frozen=True)
class Video:
    """A decoded video."""

    frames: UInt8[np.ndarray, "f h w 3"]
    """RGB, 0 to 255."""
    fps: float
    """The container's average frame rate, frames per second."""


def read_video(path: str | PathLike[str]) -> Video:
    """All frames of the first video stream as RGB (swscale's default conversion, as in decord and torchvision).

    Raises `BenchError` if the file is missing, unreadable, empty, cut short, or not of constant frame rate.
    """
    import av

    file = Path(path)
    if not file.is_file():
        raise BenchError(f"video {file} does not exist: check the path.")
    if file.stat().st_size == 0:
        raise BenchError(f"video {file} is empty (0 bytes): write it again.")
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise BenchError(f"video {file} has no video stream: pass a file with moving pictures.")
            stream = container.streams.video[0]
            frames: list[np.ndarray] = []
            stamps: list[int | None] = []
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise BenchError(f"video {file} is damaged at frame {len(frames)}: write or fetch it again.")
                frames.append(frame.to_ndarray(format="rgb24"))
                stamps.append(frame.pts)
            return _checked(file, stream, frames, stamps)
    except av.error.FFmpegError as error:
        raise BenchError(
            f"video {file} cannot be decoded ({error.strerror}): it is damaged or not a video, write it again."
        ) from None


def read_image(path: str | PathLike[str]) -> Video:
    """A picture (PNG or JPEG) as a video of one frame at 1 frame per second, decoded by PIL as in the original models.

    Transparency is dropped. Raises `BenchError` if the file is missing, unreadable, cut short, or animated.
    """
    from PIL import Image

    file = Path(path)
    if not file.is_file():
        raise BenchError(f"image {file} does not exist: check the path.")
    try:
        with Image.open(file) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise BenchError(f"image {file} is animated: write it as a video.")
            if image.mode not in IMAGE_MODES:
                raise BenchError(f"image {file} has the pixel format {image.mode}: write it with 8 bits per channel.")
            return Video(np.asarray(image.convert("RGB"))[None].copy(), 1.0)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's, for damaged files
        raise BenchError(
            f"image {file} cannot be decoded ({error}): it is damaged, or not a PNG or JPEG file: write it again."
        ) from None


def _checked(file: Path, stream: VideoStream, frames: list[np.ndarray], stamps: list[int | None]) -> Video:
    rate, tick = stream.average_rate, stream.time_base
    if not frames:
        raise BenchError(f"video {file} has no frames: write it again.")
    if stream.frames and stream.frames != len(frames):
        raise BenchError(
            f"video {file} lists {stream.frames} frames and {len(frames)} can be decoded: it is cut short or has an "
            "edit list, write it again."
        )
    if not rate or tick is None:
        raise BenchError(f"video {file} has no frame rate: write it again with a constant one.")
    if len({frame.shape for frame in frames}) > 1:
        raise BenchError(f"video {file} changes its frame size: write it again with one size.")
    _check_constant_rate(file, stamps, Fraction(rate), Fraction(tick))
    return Video(np.stack(frames), float(rate))


def _check_constant_rate(file: Path, stamps: list[int | None], rate: Fraction, tick: Fraction) -> None:
    if len(stamps) == 1:
        return
    known = [stamp for stamp in stamps if stamp is not None]
    if len(known) < len(stamps):
        raise BenchError(f"video {file} has frames without a time stamp: write it again with a constant frame rate.")
    slack = float(tick) + TIME_TOLERANCE / float(rate)
    times = (np.array(known, dtype=np.float64) - known[0]) * float(tick)
    drift = np.abs(times - np.arange(len(times)) / float(rate))
    if drift.max() > slack:
        raise BenchError(
            f"video {file} has no constant frame rate (frame {int(drift.argmax())} is {drift.max():.3f} s off the "
            f"grid of {float(rate):g} fps): write it again with a constant one."
        )
