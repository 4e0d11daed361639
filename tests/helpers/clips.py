"""Small video files for tests, with the properties that files of other programs have."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def picture(i: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frame `i` of a moving red square on a gradient, RGB."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 4 % 256, (y * 5 + i * 7) % 256, (x + y + i * 3) % 256], -1).astype(np.uint8)
    image[10:20, 2 * i : 2 * i + 10] = (255, 0, 0)
    return image


@dataclass(frozen=True)
class Clip:
    """What a file is to hold."""

    codec: str = "ffv1"
    pixels: str = "yuv420p"
    frames: int = 12
    fps: int = 8
    """Rate in the header."""
    stamps: Sequence[int] | None = None
    """Time stamps in ticks; None: one frame per 1 / fps seconds."""
    tick: Fraction | None = None
    """Clock of the stamps, in seconds; None: 1 / fps."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of the encoder."""
    container: dict[str, str] = field(default_factory=dict)
    """Options of the container."""
    set_stream: Callable[[Any], None] = lambda stream: None
    set_frame: Callable[[Any], None] = lambda frame: None
    draw: Callable[[int], np.ndarray] = picture

    def write(self, path: Path) -> Path:
        return write_streams(path, [self])

    def start(self, file: Any) -> Any:
        """Add a stream for the clip."""
        stream = file.add_stream(self.codec, rate=self.fps, options=self.options)
        stream.height, stream.width = self.draw(0).shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = self.pixels, self.tick or Fraction(1, self.fps)
        self.set_stream(stream)
        return stream

    def fill(self, file: Any, stream: Any) -> None:
        """Encode the frames."""
        stamps = range(self.frames) if self.stamps is None else self.stamps
        for i, stamp in enumerate(stamps):
            image = self.draw(i)
            layout = "rgba" if image.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(image, format=layout).reformat(format=self.pixels)
            frame.pts, frame.time_base = stamp, self.tick or Fraction(1, self.fps)
            self.set_frame(frame)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def write_streams(path: Path, clips: Sequence[Clip], **metadata: str) -> Path:
    """A file of one stream per clip."""
    policy = os.sched_getscheduler(0)
    with av.open(str(path), "w", options=clips[0].container) as file:
        file.metadata.update(metadata)
        streams = [clip.start(file) for clip in clips]
        for clip, stream in zip(clips, streams, strict=True):
            clip.fill(file, stream)
    if os.sched_getscheduler(0) != policy:  # SVT-AV1's encoder, run by root, makes the process one of real time
        os.sched_setscheduler(0, policy, os.sched_param(0))
    return path
