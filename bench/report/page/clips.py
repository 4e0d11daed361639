"""The kept videos of a page: as data for its player, and as strips of three frames that need no script."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bench.core.errors import BenchError
from bench.report.page.islands import sets_of
from bench.report.page.subject import Subject
from bench.store.videos import FIX, KeptVideos, read_videos

#: Bytes of videos in the page, as base64: of the miniature model, and of any other.
NANO_BYTES, FULL_BYTES = 2_100_000, 12_000_000
SMALL_TYPE, LARGE_TYPE = "image/webp", "video/mp4"
EMPTY: dict[str, Any] = {
    "kind": None,
    "fps": None,
    "frames": None,
    "height": None,
    "width": None,
    "videos": 0,
    "sets": {},
}


@dataclass(frozen=True)
class Clips:
    """The kept videos of the shown runs."""

    subject: Subject
    kept: dict[tuple[str, str], KeptVideos] = field(default_factory=dict)
    """Label and seed ("" for the base) to the videos of the run."""

    @property
    def videos(self) -> int:
        """Videos per prompt that every run with videos has kept."""
        counts = [1 + max(clip["video"] for clip in one.index["clips"]) for one in self.kept.values()]
        return min(counts, default=0)

    @cached_property
    def island(self) -> dict[str, Any]:
        """The videos inside the page, seed by seed while they fit."""
        if not self.kept:
            return EMPTY
        first = next(iter(self.kept.values())).index
        kind = "atlas" if first["format"] == "webp" else "mp4"
        content = {name: first[name] for name in ("fps", "frames", "height", "width")}
        sets: dict[str, dict[str, Any]] = {}
        left = NANO_BYTES if self.subject.nano else FULL_BYTES
        for unit in self._atlases() if kind == "atlas" else self._files():
            left -= sum(len(src) for *_, src in unit)
            if left < 0:
                break
            for label, seed, clips, src in unit:
                _add(sets.setdefault(label, {}), seed, clips, src, kind)
        return {"kind": kind, **content, "videos": self.videos, "sets": sets}

    def _order(self) -> list[list[tuple[str, str]]]:
        """The runs seed by seed, the base with the first seed."""
        seeds = dict.fromkeys(seed for _, seed in self.kept)
        groups = [[key for key in self.kept if key[1] == seed] for seed in seeds]
        return [groups[0] + groups[1], *groups[2:]] if "" in seeds and len(groups) > 1 else groups

    def _atlases(self) -> Iterator[list[tuple[str, str, list[dict[str, Any]], str]]]:
        for group in self._order():
            unit = []
            for label, seed in group:
                kept = self.kept[label, seed]
                clips = kept.index["clips"]
                path = kept.path(clips[0]["prompt_index"], clips[0]["video"])
                unit.append((label, seed, clips, uri(SMALL_TYPE, path.read_bytes())))
            yield unit

    def _files(self) -> Iterator[list[tuple[str, str, list[dict[str, Any]], str]]]:
        for group in self._order():
            keys = sorted({(c["prompt_index"], c["video"]) for key in group for c in self.kept[key].index["clips"]})
            for place in keys:
                unit = []
                for label, seed in group:
                    kept = self.kept[label, seed]
                    clips = [c for c in kept.index["clips"] if (c["prompt_index"], c["video"]) == place]
                    unit += [(label, seed, clips, uri(LARGE_TYPE, kept.path(*place).read_bytes())) for _ in clips[:1]]
                yield unit


def load_clips(subject: Subject) -> Clips:
    """The kept videos of every run that has some; a missing or a changed file is a `BenchError`."""
    found = {}
    for label, seed, run in sets_of(subject):
        if kept := read_videos(run.folder):
            if problems := kept.problems():
                raise BenchError(f"the videos of {run.folder} are damaged: {problems[0]}. {FIX.capitalize()}.")
            found[label, seed] = kept
    return Clips(subject, found)


def uri(kind: str, content: bytes) -> str:
    """A data URI of this media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _add(seeds: dict[str, Any], seed: str, clips: list[dict[str, Any]], src: str, kind: str) -> None:
    """Add one file of a run to the sets of its row."""
    if kind == "atlas":
        lines = {f"{clip['prompt_index']}-{clip['video']}": clip["line"] for clip in clips}
        seeds[seed] = {"src": src, "lines": lines, "sha256": clips[0]["sha256"]}
        return
    (clip,) = clips
    files = seeds.setdefault(seed, {"files": {}})["files"]
    files[f"{clip['prompt_index']}-{clip['video']}"] = {"src": src, "sha256": clip["sha256"]}
