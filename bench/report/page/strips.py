"""The videos of a page without script: first, middle and last frame of the base and of each row, for three prompts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.report import formatting
from bench.report.data.records import Run
from bench.report.data.selection import BASE
from bench.report.page.clips import SMALL_TYPE, Clips, uri
from bench.report.page.prompts import best, signed, told_prompts
from bench.report.page.steps import groups
from bench.report.page.subject import Subject
from bench.store.videos import KeptVideos

#: Height of the frames of large videos in the page, in pixels; smaller ones are stored as they are.
HEIGHT = 96
#: Video of each prompt that is shown.
VIDEO = 0


@dataclass(frozen=True)
class Strip:
    """Three frames of one video."""

    row: str
    src: str
    """Data URI."""
    score: str
    change: str
    """Difference to the base's video of the same prompt; "" for the base."""
    good: bool
    """Whether the change is for the better."""


@dataclass(frozen=True)
class PromptStrips:
    """One prompt."""

    why: str
    """Why it is shown, such as "largest gain"."""
    prompt: str
    strips: Sequence[Strip]


def prompt_strips(subject: Subject, clips: Clips) -> list[PromptStrips]:
    """The prompts of largest gain, median and largest loss of the best row, seed by seed the first with videos."""
    entry = best(subject)
    if entry is None or (BASE, "") not in clips.kept or subject.base is None:
        return []
    rows = next(rows for _, _, rows in groups(subject.entries) if entry in rows)
    sides: list[tuple[str, Run, KeptVideos]] = [("Base", subject.base, clips.kept[BASE, ""])]
    for each in rows:
        runs = [(run, clips.kept.get((each.label, str(run.record.seed)))) for run in each.runs.finished]
        sides += [(f"{each.title}, seed {run.record.seed}", run, kept) for run, kept in runs if kept][:1]
    return [
        PromptStrips(why, subject.prompts[p], [_strip(subject, *side, p) for side in sides])
        for why, p in told_prompts(subject).items()
    ]


def _strip(subject: Subject, row: str, run: Run, kept: KeptVideos, prompt: int) -> Strip:
    def score(each: Run) -> float:
        own = each.clips.xs((prompt, VIDEO), level=("prompt_index", "video"))
        return float(own[subject.primary].iloc[0])

    assert subject.base is not None
    gain = score(run) - score(subject.base)
    change, good = ("" if run is subject.base else signed(gain)), subject.metrics[subject.primary].sign * gain >= 0
    return Strip(row, _frames(kept, prompt), formatting.number(score(run)), change, good)


def _frames(kept: KeptVideos, prompt: int) -> str:
    from PIL import Image

    frames = kept.frames(prompt, VIDEO)
    picture = Image.fromarray(np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]], axis=1))
    small = picture.height <= HEIGHT
    if not small:
        picture = picture.resize((picture.width * HEIGHT // picture.height, HEIGHT))
    out = io.BytesIO()
    picture.save(out, "WEBP", lossless=small, quality=80)
    return uri(SMALL_TYPE, out.getvalue())
