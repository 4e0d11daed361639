"""Input of `bench score`: video files, folders of them, and the prompts of a CSV or JSON Lines file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.core.limits import PROMPT_CHARACTERS
from bench.core.strict_json import parse_json
from bench.core.text import bad_character, read_list, shown

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
    """None: the list has no prompt for this video, or one that cannot be stored."""
    problem: str = "has no prompt: add it to the list given with --prompts"
    """Why there is no prompt, and how to fix it."""

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
        return _check_distinct(lines, prompts), 0
    by_name, by_file = _group(lines, _name), _group(lines, Path.resolve)
    items: list[VideoPrompt] = []
    used: set[int] = set()
    for path in {_name(path): path for path in _files(videos)}.values():
        rows = by_name.get(_name(path), [])
        own = [lines[row] for row in rows]
        if not rows:  # the list has another name of this file
            rows = by_file.get(path.resolve(), [])
            own = list({lines[row].prompt: lines[row] for row in rows}.values())
        used.update(rows)
        items += [replace(line, video=str(path)) for line in own or [VideoPrompt(str(path), None)]]
    return _check_distinct(items, prompts), len(lines) - len(used)


def _name(path: Path) -> Path:
    """The absolute path, with links left as they are: a file may have two names, and each is a video."""
    return Path(os.path.abspath(path))


def _group(lines: Sequence[VideoPrompt], key: Callable[[Path], Path]) -> dict[Path, list[int]]:
    """Indices of the lines by a key of their path."""
    groups: dict[Path, list[int]] = {}
    for i, line in enumerate(lines):
        groups.setdefault(key(line.path), []).append(i)
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


def _read_list(path: Path) -> list[VideoPrompt]:
    """Video (relative paths start at the list's folder) and prompt of each line; a blank prompt is None."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".jsonl", ".json", ".ndjson"):
        raise BenchError(f"prompt list {path} is neither .csv nor .jsonl: save it as one of them.")
    text = read_list(path, "prompt list", "name a CSV or JSON Lines file with --prompts")
    lines = _csv_lines(text, path) if suffix == ".csv" else _json_lines(text, path)
    return [replace(line, video=str(path.parent / line.video)) for line in lines]


def _csv_lines(text: str, path: Path) -> Iterator[VideoPrompt]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = list(reader.fieldnames or [])
        if columns.count("video") != 1 or columns.count("prompt") != 1:
            raise BenchError(
                f"prompt list {path} needs a first line with the columns video,prompt, not {shown(columns)}."
            )
        for row in reader:
            if None in row:
                raise BenchError(
                    f"prompt list {path}, line {reader.line_num}, has more values than columns: put the prompt in "
                    "double quotes if it holds a comma."
                )
            yield _parse(row, f"prompt list {path}, line {reader.line_num},")
    except csv.Error as error:  # its reader counts the line, the reader of mappings does not
        raise BenchError(
            f"prompt list {path}, line {reader.reader.line_num}, is not CSV ({error}): fix this line."
        ) from error


def _json_lines(text: str, path: Path) -> Iterator[VideoPrompt]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        position = f"prompt list {path}, line {number},"
        try:
            row = parse_json(line, position, LINE, any_text=True)
        except BenchError:
            _refuse_document(text, path)
            raise
        if not isinstance(row, dict) or "video" not in row:
            _refuse_document(text, path)
        if not isinstance(row, dict):
            raise BenchError(f"{position} is not a JSON object: {LINE}.")
        yield _parse(row, position)


LINE = 'write {"video": ..., "prompt": ...}'
"""What a line of a list in JSON is."""


def _refuse_document(text: str, path: Path) -> None:
    """Raise a `BenchError` if the text is one JSON array or object in place of one object per line."""
    try:
        value = parse_json(text, "", "", any_text=True)
    except BenchError:
        return
    kind = "an array" if isinstance(value, list) else "one object"
    raise BenchError(f"prompt list {path} is JSON with {kind}: {LINE} for each video, one per line.")


def _parse(row: dict[str, Any], position: str) -> VideoPrompt:
    """Video and prompt of one line; `position` is its file and number, for messages."""
    video, prompt = row.get("video"), row.get("prompt")
    if not isinstance(video, str) or not video.strip():
        raise BenchError(f"{position} does not name a video: set its path as 'video'.")
    if prompt is not None and not isinstance(prompt, str):
        raise BenchError(f"{position} has a prompt that is not text: put it in quotes.")
    if kind := bad_character(video):
        raise BenchError(f"{position} names a video with {kind}: write its path as text.")
    if prompt and (kind := bad_character(prompt)):
        return VideoPrompt(video, None, f"has a prompt that holds {kind}: write it as text in the list")
    if prompt and len(prompt) > PROMPT_CHARACTERS:
        raise BenchError(f"{position} has a prompt of more than {PROMPT_CHARACTERS:,} characters: shorten it.")
    return VideoPrompt(video, prompt if prompt and prompt.strip() else None)
