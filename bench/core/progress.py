"""Progress of a suite's runs on stderr: one bar on a terminal, plain lines elsewhere, always with the time left."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Mapping
from typing import Any

UNIT = {"train": "updates", "evaluate": "videos"}
LINE_EVERY = 20.0
"""Seconds between plain lines."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Work is counted in function evaluations, so the base and a resumed run do not mislead the clock."""

    def __init__(self, costs: Mapping[str, tuple[float, float]]):
        """`costs`: run label to its function evaluations in training and in the held-out evaluation."""
        from tqdm import tqdm

        self.costs = dict(costs)
        self.total = sum(map(sum, self.costs.values()))
        self.done: dict[str, float] = {}
        self.given: dict[str, float] = {}
        """Work that a resumed run found done."""
        self.now: dict[str, str] = {}
        self.ended = 0
        self.start = self.spoke = time.monotonic()
        form = "{percentage:3.0f}%|{bar:20}| {desc}"
        self.bar = tqdm(total=self.total, bar_format=form, leave=False) if sys.stderr.isatty() else None

    def hear(self, messages: Any) -> None:
        """Take in what the workers have said since the last time."""
        try:
            while True:
                self._note(*messages.get_nowait())
        except queue.Empty:
            pass
        self._show()

    def _note(self, label: str, phase: str, done: int, total: int) -> None:
        train, judge = self.costs[label]
        work = {
            "load": 0.0,
            "train": train * done / total,
            "evaluate": train + judge * done / total,
            "store": train + judge,
        }
        if phase == "train":
            self.given.setdefault(label, work[phase])
        self.done[label] = work[phase]
        self.now[label] = f"{label} {done}/{total} {UNIT[phase]}" if phase in UNIT else label

    def end(self, label: str, how: str) -> None:
        self.ended += 1
        self.done[label] = sum(self.costs[label])
        self.now.pop(label, None)
        text = f"[{self.ended}/{len(self.costs)}] {label}: {how}"
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            say(text)

    def minutes_left(self, now: float) -> float | None:
        """Minutes at the pace so far; None before a fiftieth of the training is done, since loading comes first."""
        done, given = sum(self.done.values()), sum(self.given.values())
        training = sum(train for train, _ in self.costs.values())
        trained = sum(min(work, self.costs[label][0]) for label, work in self.done.items()) - given
        if done == given or trained < 0.02 * training:
            return None
        return (now - self.start) / (done - given) * (self.total - done) / 60

    def _show(self) -> None:
        now = time.monotonic()
        left = self.minutes_left(now)
        clock = "time left: not known yet" if left is None else f"{left:.1f} min left"
        text = f"{self.ended}/{len(self.costs)} runs, {clock}; {', '.join(self.now.values())}"
        if self.bar is not None:
            self.bar.n = min(sum(self.done.values()), self.total)
            self.bar.set_description_str(text)
        elif now - self.spoke > LINE_EVERY:
            self.spoke = now
            say(text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
