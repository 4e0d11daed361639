"""Reads all frames of a video file, or raises an error.

VideoReward derives the number of sampled frames from the frame rate. A file that decodes short, or whose frames are
not evenly spaced, would give a plausible wrong score, so it is an error. Frames are those a player shows: turned and
stretched as the file states, and without those that its edit list hides.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import UInt8

from bench.api import BenchError
from evaluators.frame_rate import constant_rate

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.sidedata.sidedata import SideData
    from av.video.stream import VideoStream


IMAGE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""PIL's names of the pixel formats with at most 8 bits per channel."""

STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}
"""FFmpeg's option to check what it can and to report an error in place of a guessed picture."""

HDR = {16: "PQ", 18: "HLG"}
"""FFmpeg's numbers of the transfer functions of high dynamic range (ITU-T H.273)."""

UNIT = 1 << 16
"""1 in the fixed-point numbers of a display matrix."""


@dataclass(frozen=True)
class Video:
    """A decoded video."""

    frames: UInt8[np.ndarray, "f h w 3"]
    """RGB, 0 to 255."""
    fps: float
    """Frames per second: the rate that the file states, or that of its time stamps where they differ."""
    notes: tuple[str, ...] = ()
    """What a viewer of the scores should know of the file, one phrase each."""


def read_video(path: str | PathLike[str]) -> Video:
    """All frames of the main video stream as RGB (swscale's default conversion, as in decord and torchvision).

    Raises `BenchError` if the file is missing, unreadable, empty, cut short, damaged, or not of constant frame rate.
    """
    import av

    file = _existing(path, "video")
    try:
        with _ffmpeg_messages() as messages, av.open(str(file), metadata_errors="replace") as container:
            return _read_container(container, file, messages)
    except av.error.FFmpegError as error:
        with file.open("rb") as stream:
            head = stream.read(64)
        if head[8:12] == b"WEBP" and b"ANIM" in head:
            raise BenchError(f"video {file} is an animated WebP, which cannot be read: write it as MP4.") from None
        raise BenchError(
            f"video {file} cannot be decoded ({error.strerror}): it is damaged or not a video, write it again."
        ) from None


def _existing(path: str | PathLike[str], kind: str) -> Path:
    file = Path(path)
    if not file.is_file():
        raise BenchError(f"{kind} {file} does not exist: check the path.")
    if file.stat().st_size == 0:
        raise BenchError(f"{kind} {file} is empty (0 bytes): write it again.")
    return file


@contextmanager
def _ffmpeg_messages() -> Iterator[list[Any]]:
    """FFmpeg's error messages while the context is open: many decoders report damage there alone."""
    from av import logging

    level, skip = logging.get_level(), logging.get_skip_repeated()
    logging.set_level(logging.ERROR)
    logging.set_skip_repeated(False)
    try:
        with logging.Capture(local=False) as messages:
            yield messages
    finally:
        logging.set_level(level)
        logging.set_skip_repeated(skip)


def _read_container(container: InputContainer, file: Path, messages: list[Any]) -> Video:
    stream, notes = _main_stream(container, file)
    frames: list[np.ndarray] = []
    stamps: list[int | None] = []
    sizes: set[tuple[int, int]] = set()
    width, height = _display_size(stream, file)
    if width != stream.width:
        notes.append(f"pixels are not square ({stream.sample_aspect_ratio}): its width is stretched to {width}")
    for frame in _decoded(container, stream, file, messages):
        if not frames:
            notes += _frame_notes(stream, frame)
        picture = _picture(frame, (width, height) if width != stream.width else None)
        frames.append(_turned(picture, frame, file))
        stamps.append(frame.pts)
        sizes.add((frame.width, frame.height))
    notes += _edit_notes(stream, file, len(frames))
    if not frames:
        raise BenchError(f"video {file} has no frames: write it again.")
    if len(sizes) > 1:
        raise BenchError(f"video {file} changes its frame size: write it again with one size.")
    return Video(_stacked(frames), _rate(stream, file, stamps), tuple(notes))


def _stacked(frames: list[np.ndarray]) -> UInt8[np.ndarray, "f h w 3"]:
    """`np.stack` of the frames, which are freed one by one: a long video is not in memory twice."""
    whole = np.empty((len(frames), *frames[0].shape), np.uint8)
    frames.reverse()
    for row in whole:
        row[:] = frames.pop()
    return whole


def _main_stream(container: InputContainer, file: Path) -> tuple[VideoStream, list[str]]:
    """The stream that ffmpeg shows: no cover picture; of several, the default one, else the largest."""
    from av.stream import Disposition

    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise BenchError(f"video {file} has no video stream: pass a file with moving pictures.")
    if any(stream.codec_context is None for stream in streams):
        raise BenchError(f"video {file} has a codec that FFmpeg cannot decode: write it again, for example as H.264.")
    main = max(
        streams, key=lambda stream: (bool(stream.disposition & Disposition.default), stream.width * stream.height)
    )
    several = [f"holds {len(streams)} video streams: number {main.index} is scored"] if len(streams) > 1 else []
    return main, several


def _display_size(stream: VideoStream, file: Path) -> tuple[int, int]:
    """Width and height at which square pixels show the picture in its proportions; the height is that of the file."""
    from PIL import Image

    aspect = stream.sample_aspect_ratio or Fraction(1)
    width, height = max(1, round(stream.width * aspect)), stream.height
    if width != stream.width and Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise BenchError(f"video {file} states pixels of {aspect}, so {height} x {width} in all: correct this ratio.")
    return width, height


def _decoded(container: InputContainer, stream: VideoStream, file: Path, messages: list[Any]) -> Iterator[VideoFrame]:
    """The frames, up to the first sign of damage, which raises."""
    import av

    context = stream.codec_context
    context.thread_count, context.options = 1, dict(STRICT)  # one thread: messages belong to the packet just read
    senders = {container.format.name, context.name}  # a damaged sound track does not matter
    count, packets = 0, 0
    try:
        for packet in container.demux(stream):
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise BenchError(f"video {file} is damaged at frame {count}: write or fetch it again.")
                yield frame
                count += 1
            reports = [text for _, sender, text in messages if sender in senders]
            if reports:
                reason = " ".join(reports[0].split())
                raise BenchError(f"video {file} is damaged at frame {packets} ({reason}): write or fetch it again.")
            packets += packet.size > 0
    except av.error.FFmpegError as error:
        if not packets and not count:
            raise
        raise BenchError(
            f"video {file} is damaged at frame {packets} ({error.strerror}): write or fetch it again."
        ) from None


def _picture(frame: VideoFrame, size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a frame, stretched to `size`, width and height, if given (bicubic, as ffmpeg's scale filter)."""
    if size is None:
        return frame.to_ndarray(format="rgb24")
    return frame.to_ndarray(format="rgb24", width=size[0], height=size[1], interpolation="BICUBIC")


def _turned(picture: np.ndarray, frame: VideoFrame, file: Path) -> np.ndarray:
    """The picture turned by right angles and mirrored as the file's display matrix says."""
    a, b, c, d = _display_matrix(frame)
    if (b, c) == (0, 0) and {abs(a), abs(d)} == {1}:
        across, down = a, d
    elif (a, d) == (0, 0) and {abs(b), abs(c)} == {1}:
        picture, across, down = picture.transpose(1, 0, 2), c, b
    else:
        raise BenchError(f"video {file} is to be turned by other than right angles: write it again as it is shown.")
    return np.ascontiguousarray(picture[:: int(down), :: int(across)])


def _display_matrix(frame: VideoFrame) -> tuple[float, float, float, float]:
    """a, b, c, d of x' = a x + c y, y' = b x + d y: where a pixel is shown (y counts downwards)."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV cannot list a frame's side data if one is of a kind that is new in FFmpeg
        turn = math.radians(frame.rotation)
        cos, sin = round(math.cos(turn), 6), round(math.sin(turn), 6)
        return cos, -sin, sin, cos
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = (value / UNIT for value in struct.unpack("=9i", bytes(cast("SideData", data))))
    return a, b, c, d


def _frame_notes(stream: VideoStream, frame: VideoFrame) -> list[str]:
    """Properties of the first frame that change what is scored."""
    notes = []
    has_alpha = any(component.is_alpha for component in frame.format.components)
    if stream.metadata.get("alpha_mode") == "1" or (has_alpha and frame.to_ndarray(format="rgba")[..., 3].min() < 255):
        notes.append("transparency is dropped: the colours below it are scored")
    if frame.interlaced_frame:
        notes.append("interlaced: both fields are scored as one picture")
    transfer = stream.codec_context.color_trc
    if transfer in HDR:
        notes.append(f"high dynamic range ({HDR[transfer]}): scored without tone mapping")
    return notes


def _edit_notes(stream: VideoStream, file: Path, count: int) -> list[str]:
    """A note if the edit list of a complete file hides frames; a file without all its frames is an error."""
    import av

    if not stream.frames or stream.frames == count:
        return []
    with av.open(str(file), metadata_errors="replace", options={"ignore_editlist": "1"}) as container:
        stored = sum(packet.size > 0 for packet in container.demux(container.streams[stream.index]))
    if stored != stream.frames or count > stored:
        raise BenchError(
            f"video {file} lists {stream.frames} frames and {count} can be decoded: it is cut short, write it again."
        )
    return [f"its edit list hides {stored - count} of {stored} frames: they are not scored"]


def _rate(stream: VideoStream, file: Path, stamps: list[int | None]) -> float:
    stated, tick = stream.average_rate, stream.time_base
    if len(stamps) == 1:
        return float(stated) if stated else 1.0  # a picture, see read_image
    if tick is None:
        raise BenchError(f"video {file} has no clock for its frames: write it again with a constant frame rate.")
    return constant_rate(stamps, tick, stated, str(file))


def read_image(path: str | PathLike[str]) -> Video:
    """A picture (PNG or JPEG) as a video of one frame at 1 frame per second, decoded by PIL as in the original models.

    It is turned as its Exif data say. Of a JPEG with several pictures (MPO, by phones) it is the first. Transparency
    is dropped. Raises `BenchError` if the file is missing, unreadable, cut short, or animated.
    """
    from PIL import Image, ImageOps

    file = _existing(path, "image")
    try:
        with Image.open(file) as image:
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise BenchError(f"image {file} is animated: write it as a video.")
            if image.mode not in IMAGE_MODES:
                raise BenchError(f"image {file} has the pixel format {image.mode}: write it with 8 bits per channel.")
            transparent = image.has_transparency_data and bool((np.asarray(image.convert("RGBA"))[..., 3] < 255).any())
            frames = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[None].copy()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's, for damaged files
        raise BenchError(
            f"image {file} cannot be decoded ({error}): it is damaged, or not a PNG or JPEG file: write it again."
        ) from None
    notes = ("transparency is dropped: the colours below it are scored",) if transparent else ()
    return Video(frames, 1.0, notes)
