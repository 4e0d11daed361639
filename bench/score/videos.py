"""What is scored: video files, folders of them, and the prompts of a CSV or JSON Lines file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError

VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov")
IMAGES = (".png", ".jpg", ".jpeg")
"""Suffixes that a folder is searched for; an image is a video of one frame."""


@dataclass(frozen=True)
class Pair:
    """One video with one prompt: the unit that is scored."""

    video: str
    """Path as the user gave it, or the list's folder joined with the path in the list."""
    prompt: str | None
    """None: no prompt was given for this video."""

    @property
    def path(self) -> Path:
        return Path(self.video)


def pairs(videos: Sequence[Path], prompts: Path | None) -> tuple[list[Pair], int]:
    """Videos with their prompts, and how many lines of the list name a video that is not among `videos`.

    Without `videos` the list names them. A video that the list gives several prompts makes several pairs.
    """
    if prompts is None:
        raise BenchError(
            "no prompts are given, and every score needs one: name a CSV with the columns video,prompt or JSON Lines "
            "file with --prompts."
        )
    listed = _read_list(prompts)
    if not videos:
        return _distinct([Pair(str(path), prompt) for path, prompt in listed], prompts), 0
    texts: dict[Path, list[str | None]] = {}
    for path, prompt in listed:
        texts.setdefault(path.resolve(), []).append(prompt)
    files = {path.resolve(): path for path in _files(videos)}
    found = [Pair(str(path), prompt) for key, path in files.items() for prompt in texts.get(key, [None])]
    return _distinct(found, prompts), sum(len(some) for key, some in texts.items() if key not in files)


def _distinct(found: list[Pair], prompts: Path) -> list[Pair]:
    seen: set[tuple[Path, str | None]] = set()
    for pair in found:
        key = (pair.path.resolve(), pair.prompt)
        if key in seen:
            raise BenchError(f"list {prompts} gives video {pair.video} one prompt twice: remove one of the lines.")
        seen.add(key)
    if not found:
        raise BenchError(f"list {prompts} names no video: add a line per video.")
    return found


def _files(videos: Sequence[Path]) -> Iterator[Path]:
    """Files as they are, folders with all their videos and images, sorted, those of subfolders too."""
    for path in videos:
        if path.is_dir():
            inside = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in (*VIDEOS, *IMAGES) and file.is_file()
            )
            if not inside:
                raise BenchError(f"folder {path} holds no video ({', '.join((*VIDEOS, *IMAGES))}): check the path.")
            yield from inside
        elif path.exists():
            yield path
        else:
            raise BenchError(f"video {path} does not exist: check the path given with --videos.")


# prompt lists -------------------------------------------------------------------------------------------------
def _read_list(path: Path) -> list[tuple[Path, str | None]]:
    """Video path (relative ones count from the list's folder) and prompt of each line; a blank prompt is None."""
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
                f"prompt list {path} needs a first line with the columns video,prompt; found {reader.fieldnames}."
            )
        for row in reader:
            if None in row:
                raise BenchError(
                    f"prompt list {path}, line {reader.line_num}, has more values than columns: put the prompt in "
                    "double quotes if it holds a comma."
                )
            yield _checked(row, f"prompt list {path}, line {reader.line_num},")
    except csv.Error as error:
        raise BenchError(f"prompt list {path}, line {reader.line_num}, is not CSV ({error}): mend it.") from error


def _json_lines(text: str, path: Path) -> Iterator[tuple[str, str | None]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"prompt list {path}, line {number},"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BenchError(f'{where} is not JSON ({error}): write {{"video": ..., "prompt": ...}}.') from error
        if not isinstance(row, dict):
            raise BenchError(f'{where} is no object: write {{"video": ..., "prompt": ...}}.')
        yield _checked(row, where)


def _checked(row: dict[str, Any], where: str) -> tuple[str, str | None]:
    video, prompt = row.get("video"), row.get("prompt")
    if not isinstance(video, str) or not video.strip():
        raise BenchError(f"{where} names no video: give its path under 'video'.")
    if prompt is not None and not isinstance(prompt, str):
        raise BenchError(f"{where} has a prompt that is no text: give it in quotes.")
    return video, prompt if prompt and prompt.strip() else None
