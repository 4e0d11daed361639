"""Input of `bench score`: video files, folders of them, and the prompts of a CSV or JSON Lines file."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError

VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov")
"""Suffixes of the videos in a folder."""
IMAGES = (".png", ".jpg", ".jpeg")
"""Suffixes of the images in a folder; an image is a video of one frame."""


@dataclass(frozen=True)
class VideoPrompt:
    """One video with one prompt: the unit that is scored."""

    video: str
    """Path of --videos, or the list's folder joined with the path in the list."""
    prompt: str | None
    """None: the list has no prompt for this video."""

    @property
    def path(self) -> Path:
        return Path(self.video)


def read_items(videos: Sequence[Path], prompts: Path | None) -> tuple[list[VideoPrompt], int]:
    """Videos with their prompts, and the number of lines of the list that name a video not among `videos`.

    Without `videos` the list names them. A video with several prompts in the list gives several items.
    """
    if prompts is None:
        raise BenchError(
            "no prompts are given, and every score needs one: name a CSV with the columns video,prompt or JSON Lines "
            "file with --prompts."
        )
    lines = _read_list(prompts)
    if not videos:
        return _check_distinct([VideoPrompt(str(path), prompt) for path, prompt in lines], prompts), 0
    by_name, by_file = _group(lines, _name), _group(lines, Path.resolve)
    items: list[VideoPrompt] = []
    used: set[int] = set()
    for path in {_name(path): path for path in _files(videos)}.values():
        rows = by_name.get(_name(path), [])
        texts = [lines[row][1] for row in rows]
        if not rows:  # the list has another name of this file
            rows = by_file.get(path.resolve(), [])
            texts = list(dict.fromkeys(lines[row][1] for row in rows))
        used.update(rows)
        items += [VideoPrompt(str(path), prompt) for prompt in texts or [None]]
    return _check_distinct(items, prompts), len(lines) - len(used)


def _name(path: Path) -> Path:
    """The absolute path, with links left as they are: a file may have two names, and each is a video."""
    return Path(os.path.abspath(path))


def _group(lines: Sequence[tuple[Path, str | None]], key: Callable[[Path], Path]) -> dict[Path, list[int]]:
    """Indices of the lines by a key of their path."""
    groups: dict[Path, list[int]] = {}
    for i, (path, _) in enumerate(lines):
        groups.setdefault(key(path), []).append(i)
    return groups


def _check_distinct(items: list[VideoPrompt], prompts: Path) -> list[VideoPrompt]:
    seen: set[tuple[Path, str | None]] = set()
    for item in items:
        key = (_name(item.path), item.prompt)
        if key in seen:
            raise BenchError(f"list {prompts} gives video {item.video} one prompt twice: remove one of the lines.")
        seen.add(key)
    if not items:
        raise BenchError(f"list {prompts} does not name a video: add a line per video.")
    return items


def _files(videos: Sequence[Path]) -> Iterator[Path]:
    """Files as they are; of folders and their subfolders all videos and images, sorted.

    In folders, hidden files and folders are passed over: systems and notebooks keep copies there.
    """
    for path in videos:
        if path.is_dir():
            yield from _media(path)
        elif path.exists():
            yield path
        else:
            raise BenchError(f"video {path} does not exist: check the path given with --videos.")


def _media(folder: Path) -> list[Path]:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in (*VIDEOS, *IMAGES)
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )
    if not files:
        raise BenchError(f"folder {folder} does not hold a video ({', '.join((*VIDEOS, *IMAGES))}): check the path.")
    return files


def _read_list(path: Path) -> list[tuple[Path, str | None]]:
    """Video path (relative paths start at the list's folder) and prompt of each line; a blank prompt is None."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BenchError(
            f"prompt list {path} cannot be read ({error.strerror}): name a CSV or JSON Lines file with --prompts."
        ) from error
    except UnicodeDecodeError as error:
        raise BenchError(f"prompt list {path} is not UTF-8 text ({error.reason}): save it as UTF-8.") from error
    if path.suffix.lower() == ".csv":
        lines = _csv_lines(text, path)
    elif path.suffix.lower() in (".jsonl", ".json", ".ndjson"):
        lines = _json_lines(text, path)
    else:
        raise BenchError(f"prompt list {path} is neither .csv nor .jsonl: save it as one of them.")
    return [(path.parent / video, prompt) for video, prompt in lines]


def _csv_lines(text: str, path: Path) -> Iterator[tuple[str, str | None]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if not {"video", "prompt"} <= set(reader.fieldnames or []):
            raise BenchError(
                f"prompt list {path} needs a first line with the columns video,prompt, not {reader.fieldnames}."
            )
        for row in reader:
            if None in row:
                raise BenchError(
                    f"prompt list {path}, line {reader.line_num}, has more values than columns: put the prompt in "
                    "double quotes if it holds a comma."
                )
            yield _parse(row, f"prompt list {path}, line {reader.line_num},")
    except csv.Error as error:
        raise BenchError(
            f"prompt list {path}, line {reader.line_num}, is not CSV ({error}): fix this line."
        ) from error


def _json_lines(text: str, path: Path) -> Iterator[tuple[str, str | None]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        position = f"prompt list {path}, line {number},"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BenchError(f'{position} is not JSON ({error}): write {{"video": ..., "prompt": ...}}.') from error
        if not isinstance(row, dict):
            raise BenchError(f'{position} is not a JSON object: write {{"video": ..., "prompt": ...}}.')
        yield _parse(row, position)


def _parse(row: dict[str, Any], position: str) -> tuple[str, str | None]:
    """Video and prompt of one line; `position` is its file and number, for messages."""
    video, prompt = row.get("video"), row.get("prompt")
    if not isinstance(video, str) or not video.strip():
        raise BenchError(f"{position} does not name a video: set its path as 'video'.")
    if prompt is not None and not isinstance(prompt, str):
        raise BenchError(f"{position} has a prompt that is not text: put it in quotes.")
    return video, prompt if prompt and prompt.strip() else None
