"""The kept videos of a run: small ones in one lossless WebP picture, larger ones as one H.264 file each.

`videos/index.json` has every clip with the sha256 of its file. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.core.errors import BenchError
from bench.core.hashing import sha256_file
from bench.core.strict_json import read_json
from bench.core.text import shown
from bench.store.files import TEMPORARY, write_bytes, write_text

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

VIDEOS, INDEX, ATLAS = "videos", "index.json", "clips.webp"
"""The folder in that of the run, and its files: the list of the clips, and the picture of all small ones."""
SMALL = 64
"""Largest height and width, in pixels, of clips that are stored in one picture."""
WEBP_SIDE = 16383
"""Largest height and width of a WebP picture, in pixels."""
CRF = 18
"""x264's constant quality: differences to the frames are hardly visible."""
FILE = re.compile(r"clips\.webp|[0-9]+-[0-9]+\.mp4")
"""Names of the files with clips."""
FIX = "restore the run's folder, or delete it and run it again"


class ClipEntry(BaseModel):
    """Where one clip is."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt_index: int = Field(ge=0)
    """Index of its prompt in the list of scored prompts."""
    video: int = Field(ge=0)
    """Number of the video among those of its prompt."""
    file: str
    """Name of the file in the folder of the videos."""
    line: int | None = Field(ge=0)
    """Line of frames in the picture, from the top; None for a file of its own."""
    sha256: str
    """Of the file."""


class VideoIndex(BaseModel):
    """The content of `index.json`."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    fps: float = Field(gt=0)
    """Frames per second."""
    frames: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    """Size of every clip."""
    format: Literal["webp", "mp4"]
    clips: list[ClipEntry] = Field(min_length=1)
    """In the order of prompts and videos, each once."""


class Clip(NamedTuple):
    """One kept clip while its evaluation goes on: its frames, or the hash of the file that has them already."""

    prompt_index: int
    video: int
    shape: tuple[int, int, int]
    """Frames, height and width."""
    frames: UInt8[np.ndarray, "f h w 3"] | None
    sha256: str | None


def fits_atlas(shape: tuple[int, int, int], clips: int) -> bool:
    """Whether so many clips of this shape (frames, height, width) are stored in one picture."""
    frames, height, width = shape
    return max(height, width) <= SMALL and frames * width <= WEBP_SIDE and clips * height <= WEBP_SIDE


def keep_clip(
    run: Path, key: tuple[int, int], frames: UInt8[np.ndarray, "f h w 3"], *, clips: int, fps: float, write: bool
) -> Clip:
    """One clip for `write_index`; a large one is written to the folder of the run now, so that its frames can go.

    `key`: prompt index and video. `clips`: number of all clips. `write`: False on a process whose sample another
    process has too.
    """
    shape = (frames.shape[0], frames.shape[1], frames.shape[2])
    if fits_atlas(shape, clips):
        return Clip(*key, shape, frames, None)
    data = _mp4(frames, fps) if write else b""
    if write:
        write_bytes(run / VIDEOS / _mp4_name(*key), data)
    return Clip(*key, shape, None, hashlib.sha256(data).hexdigest())


def write_index(run: Path, clips: Sequence[Clip], fps: float) -> None:
    """Write the picture of small clips, then the index. `clips`: all clips of the run, at least one, in order."""
    frames, height, width = clips[0].shape
    atlas = b"" if clips[0].frames is None else _webp(clips)
    if atlas:
        write_bytes(run / VIDEOS / ATLAS, atlas)
    sha256 = hashlib.sha256(atlas).hexdigest()
    entries = [
        ClipEntry(
            prompt_index=clip.prompt_index,
            video=clip.video,
            file=ATLAS if atlas else _mp4_name(clip.prompt_index, clip.video),
            line=line if atlas else None,
            sha256=clip.sha256 or sha256,
        )
        for line, clip in enumerate(clips)
    ]
    kind: Literal["webp", "mp4"] = "webp" if atlas else "mp4"
    index = VideoIndex(fps=fps, frames=frames, height=height, width=width, format=kind, clips=entries)
    write_text(run / VIDEOS / INDEX, json.dumps(index.model_dump(), indent=1) + "\n")


def videos_digest(run: Path) -> str | None:
    """sha256 of the index; None where no videos are kept, as on other processes than the main one."""
    path = run / VIDEOS / INDEX
    return sha256_file(path) if path.is_file() else None


def video_files(run: Path) -> list[Path]:
    """The files of the kept videos of a run, the index last; [] where there are none."""
    files = sorted((run / VIDEOS).glob("*"))
    clips = [path for path in files if FILE.fullmatch(path.name)]
    return [*clips, *(path for path in files if path.name == INDEX)]


def remove_videos(run: Path) -> None:
    """Remove the kept videos of a run, the index first, and their folder if nothing else is in it."""
    half_written = [path for path in (run / VIDEOS).glob(".*") if TEMPORARY.fullmatch(path.name)]
    for path in [*reversed(video_files(run)), *half_written]:
        path.unlink()
    if (run / VIDEOS).is_dir() and not any((run / VIDEOS).iterdir()):
        (run / VIDEOS).rmdir()


def _mp4_name(prompt_index: int, video: int) -> str:
    return f"{prompt_index}-{video}.mp4"


def _webp(clips: Sequence[Clip]) -> bytes:
    """One clip per line, its frames from left to right."""
    import numpy as np
    from PIL import Image

    lines = [np.concatenate(list(clip.frames), axis=1) for clip in clips if clip.frames is not None]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(lines)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def _mp4(frames: UInt8[np.ndarray, "f h w 3"], fps: float) -> bytes:
    """H.264 in BT.709, which players assume; one thread, so that equal frames give equal bytes."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    file = io.BytesIO()
    even = frames.shape[1] % 2 == frames.shape[2] % 2 == 0
    options = {"crf": str(CRF), "threads": "1"}
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p" if even else "yuv444p"  # 420 halves both sides
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU709, ColorRange.MPEG
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture.reformat(format=stream.pix_fmt, dst_colorspace=Colorspace.ITU709)))
        container.mux(stream.encode())
    return file.getvalue()


@dataclass(frozen=True)
class KeptVideos:
    """The kept videos of one run."""

    folder: Path
    """`videos` in the folder of the run."""
    index: dict[str, Any]
    """The content of `index.json`, as `VideoIndex` describes it."""

    def path(self, prompt_index: int, video: int) -> Path:
        """The file with this clip; one that is not kept is a `BenchError`."""
        return self.folder / str(self._entry(prompt_index, video)["file"])

    def frames(self, prompt_index: int, video: int) -> UInt8[np.ndarray, "f h w 3"]:
        """The frames of a clip, RGB; a file that is missing or has another hash than the index is a `BenchError`."""
        entry = self._entry(prompt_index, video)
        path = self.folder / entry["file"]
        if entry["line"] is None:
            return _read_mp4(path, entry["sha256"])
        height, width = self.index["height"], self.index["width"]
        line = _read_webp(path, entry["sha256"])[entry["line"] * height : (entry["line"] + 1) * height]
        return line.reshape(height, self.index["frames"], width, 3).transpose(1, 0, 2, 3)

    def problems(self) -> list[str]:
        """What is wrong with the files: those that are missing or changed, and clips that they do not have."""
        problems = []
        for name, sha256 in {entry["file"]: entry["sha256"] for entry in self.index["clips"]}.items():
            path = self.folder / name
            if not path.is_file():
                problems.append(f"{VIDEOS}/{name} is missing")
            elif sha256_file(path) != sha256:
                problems.append(f"{VIDEOS}/{name} is not the file that {VIDEOS}/{INDEX} lists")
        return problems

    def _entry(self, prompt_index: int, video: int) -> dict[str, Any]:
        clips: list[dict[str, Any]] = self.index["clips"]
        for entry in clips:
            if (entry["prompt_index"], entry["video"]) == (prompt_index, video):
                return entry
        raise BenchError(
            f"{self.folder} has no video {video} of prompt {prompt_index}: run the suite with a larger "
            "evaluation.keep_videos."
        )


def read_videos(run: Path | str) -> KeptVideos | None:
    """The kept videos in the folder of a run; None where there are none. A damaged index is a `BenchError`."""
    folder = Path(run) / VIDEOS
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        index = VideoIndex.model_validate(read_json(path, "index", FIX))
    except ValidationError as error:
        first = error.errors()[0]
        key = shown(".".join(str(part) for part in first["loc"]))
        raise BenchError(f"index {path} is not valid at {key} ({first['msg']}): {FIX}.") from error
    if problem := _index_problem(index):
        raise BenchError(f"index {path} {problem}: {FIX}.")
    return KeptVideos(folder, index.model_dump())


def _index_problem(index: VideoIndex) -> str | None:
    """What is wrong with an index whose fields are valid."""
    keys = [(clip.prompt_index, clip.video) for clip in index.clips]
    if len(set(keys)) < len(keys):
        return "has a clip twice"
    for number, clip in enumerate(index.clips):
        own = (ATLAS, number) if index.format == "webp" else (_mp4_name(clip.prompt_index, clip.video), None)
        if (clip.file, clip.line) != own:
            return f"has the file {shown(clip.file, 60)!r} and line {clip.line} for clip {number}, which no run writes"
    return None


def _checked_bytes(path: Path, sha256: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BenchError(f"video {path} cannot be read ({error.strerror}): {FIX}.") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BenchError(f"video {path} is not the file that its index lists: {FIX}.")
    return data


def _read_webp(path: Path, sha256: str) -> UInt8[np.ndarray, "h w 3"]:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(_checked_bytes(path, sha256))).convert("RGB"))


def _read_mp4(path: Path, sha256: str) -> UInt8[np.ndarray, "f h w 3"]:
    import av
    import numpy as np

    with av.open(io.BytesIO(_checked_bytes(path, sha256)), "r") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
