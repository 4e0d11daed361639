"""Prompt by prompt: gains of each row on each prompt, their means by word of the prompt, and the losses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bench.report import formatting
from bench.report.data.differences import NANO_CAPTION
from bench.report.data.metrics import REWARD
from bench.report.data.statistics import Array
from bench.report.page.steps import groups
from bench.report.page.subject import Entry, Subject

#: Words that do not tell prompts apart.
PLAIN = frozenset({"a", "an", "the", "is", "are", "and", "of", "in", "on", "at", "with", "to", "moving"})
#: Prompts with more shared words than this are sentences, which have no attributes in common.
MOST_WORDS = 40
#: Place in a caption of the nano world of each of its attributes.
CAPTION = {"colour": 1, "shape": 2, "direction": 4, "speed": 5}
#: Steps of colour of a heat map on each side of 0.
STEPS = 5


class HeatCell(NamedTuple):
    """The gain of one row on one prompt."""

    row: str
    """Label of the row."""
    text: str
    step: int
    """Colour, from -`STEPS` (worst) to `STEPS` (best)."""


class HeatLine(NamedTuple):
    """The gains of all rows on one prompt, or their means over the prompts with one word."""

    lead: Sequence[str]
    """The prompt; or the kind of word, the word and the number of its prompts."""
    prompt: int | None
    cells: Sequence[HeatCell]
    mean: str


@dataclass(frozen=True)
class HeatMap:
    """Gains of some rows in one score, and their means by word."""

    title: str
    name: str
    heads: Sequence[str]
    prompts: Sequence[HeatLine]
    words: Sequence[HeatLine]


class Losses(NamedTuple):
    """The prompts on which one row loses."""

    row: str
    counts: str
    """Number of prompts for each score."""
    prompts: Sequence[str]
    """The prompts of each score with their losses."""


def tags(prompts: Sequence[str]) -> list[list[str]]:
    """For each prompt the words that it shares with some and not all prompts; [] for each if all are sentences."""
    words = [re.findall(r"\w+", text.lower()) for text in prompts]
    if all(NANO_CAPTION.fullmatch(text) for text in prompts):
        return [[each[place] for place in CAPTION.values()] for each in words]
    counts = Counter(word for each in words for word in set(each))
    shared = {word for word, count in counts.items() if 1 < count < len(prompts) and word not in PLAIN}
    if len(shared) > MOST_WORDS or any(not shared & set(each) for each in words):
        return [[] for _ in prompts]
    return [[word for word in dict.fromkeys(each) if word in shared] for each in words]


def gains(subject: Subject, entry: Entry, score: str) -> Array | None:
    """Gain of a row over the base on each prompt, mean over seeds; None without runs of both."""
    x = entry.runs.matrix(score)
    if x is None or subject.base is None or score not in subject.base.cells:
        return None
    return np.asarray(x.mean(0) - subject.base.cells[score].to_numpy())


def shown_scores(subject: Subject) -> list[str]:
    """The primary score, the trained one and gold Overall, those that were scored."""
    return [name for name in dict.fromkeys((subject.primary, REWARD, "gold_overall")) if name in subject.metrics]


def heat_maps(subject: Subject) -> list[HeatMap]:
    """For the primary score and gold Overall one heat map of at most six rows each."""
    scores = [name for name in shown_scores(subject) if name == subject.primary or name == "gold_overall"]
    return [
        found
        for score in scores
        for title, _, rows in groups(subject.entries)
        if (found := _heat_map(subject, score, title, rows))
    ]


def _heat_map(subject: Subject, score: str, title: str, rows: Sequence[Entry]) -> HeatMap | None:
    found = {entry.label: x for entry in rows if (x := gains(subject, entry, score)) is not None}
    if not found:
        return None
    metric = subject.metrics[score]
    x = np.stack(list(found.values()))
    unit = float(np.quantile(np.abs(x), 0.95)) or 1.0

    def line(lead: Sequence[str], prompt: int | None, values: Array) -> HeatLine:
        cells = [
            HeatCell(row, signed(value), int(np.clip(round(metric.sign * STEPS * value / unit), -STEPS, STEPS)))
            for row, value in zip(found, values, strict=True)
        ]
        return HeatLine(lead, prompt, cells, signed(float(values.mean())))

    order = np.argsort(-metric.sign * x.mean(0), kind="stable")
    entries = {entry.label: entry.title for entry in rows}
    return HeatMap(
        f"{metric.title} - base{f', {title}' if title else ''}",
        f"{score}{f'-{title}' if title else ''}",
        [entries[label] for label in found],
        [line([subject.prompts[p]], int(p), x[:, p]) for p in order],
        [
            line([kind, word, str(len(places))], None, x[:, places].mean(1))
            for kind, word, places in _words(subject.prompts)
        ],
    )


def _words(prompts: Sequence[str]) -> Iterator[tuple[str, str, list[int]]]:
    """Kind of word, word, and the prompts that have it."""
    found = tags(prompts)
    kinds = list(CAPTION) if all(NANO_CAPTION.fullmatch(text) for text in prompts) else [""]
    for place, kind in enumerate(kinds):
        names = [[words[place]] if kind else words for words in found]
        for word in dict.fromkeys(word for each in names for word in each):
            yield kind or "word", word, [p for p, each in enumerate(names) if word in each]


def losses(subject: Subject) -> list[Losses]:
    """For each row the prompts on which one of `shown_scores` falls, the worst first."""
    found = []
    for entry in subject.entries:
        counts, names = [], []
        for score in shown_scores(subject):
            x, metric = gains(subject, entry, score), subject.metrics[score]
            if x is None:
                continue
            worse = [int(p) for p in np.argsort(metric.sign * x, kind="stable") if metric.sign * x[p] < 0]
            counts.append(f"{metric.title} on {len(worse)}")
            told = ", ".join(f"{subject.prompts[p]} ({signed(x[p])})" for p in worse)
            names += [f"{metric.title}: {told}"] if worse else []
        if counts:
            found.append(Losses(entry.title, f"{', '.join(counts)} of {len(subject.prompts)} prompts", names))
    return found


def best(subject: Subject) -> Entry | None:
    """The row with the largest gain in the primary score; None without a gain."""
    sign = subject.metrics[subject.primary].sign if subject.metrics else 1
    found = [
        (sign * x.mean(), entry)
        for entry in subject.entries
        if (x := gains(subject, entry, subject.primary)) is not None
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def told_prompts(subject: Subject) -> dict[str, int]:
    """What is shown of the best row to its prompt: the largest gain, the median, the largest loss or least gain."""
    entry = best(subject)
    x = gains(subject, entry, subject.primary) if entry else None
    if x is None:
        return {}
    order = np.argsort(subject.metrics[subject.primary].sign * x, kind="stable")
    last = "largest loss" if subject.metrics[subject.primary].sign * x[order[0]] < 0 else "smallest gain"
    return {"largest gain": int(order[-1]), "median gain": int(order[len(order) // 2]), last: int(order[0])}


def signed(value: float) -> str:
    """A difference with its sign."""
    text = formatting.number(value)
    return text if text.startswith("-") else f"+{text}"
