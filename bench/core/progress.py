"""Progress of a suite's runs on stderr: a bar on a terminal, plain lines elsewhere, both with the time left."""

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
    """Print a line to stderr."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Work done by all runs, in function evaluations: the base and resumed runs do not distort the time left."""

    def __init__(self, costs: Mapping[str, tuple[float, float]]):
        """`costs`: run label to its function evaluations in training and in the held-out evaluation."""
        from tqdm import tqdm

        self.costs = dict(costs)
        self.total = sum(map(sum, self.costs.values()))
        self.done: dict[str, float] = {}
        """Run label to the work that is done."""
        self.resumed: dict[str, float] = {}
        """Run label to the work that was done before this start."""
        self.status: dict[str, str] = {}
        """Run label to the text that is shown while the run goes on."""
        self.ended = 0
        self.start = self.last_line = time.monotonic()
        form = "{percentage:3.0f}%|{bar:20}| {desc}"
        self.bar = tqdm(total=self.total, bar_format=form, leave=False) if sys.stderr.isatty() else None

    def receive(self, messages: Any) -> None:
        """Record all messages (label, phase, done, total) of a queue and show the progress."""
        try:
            while True:
                self.record(*messages.get_nowait())
        except queue.Empty:
            pass
        self._show()

    def record(self, label: str, phase: str, done: int, total: int) -> None:
        """Record that a run has done this part of a phase."""
        train, evaluate = self.costs[label]
        work = {
            "load": 0.0,
            "train": train * done / total,
            "evaluate": train + evaluate * done / total,
            "store": train + evaluate,
        }
        if phase == "train":
            self.resumed.setdefault(label, work[phase])
        self.done[label] = work[phase]
        self.status[label] = f"{label} {done}/{total} {UNIT[phase]}" if phase in UNIT else label

    def end(self, label: str, result: str) -> None:
        """Record and print that a run ended with this result."""
        self.ended += 1
        self.done[label] = sum(self.costs[label])
        self.status.pop(label, None)
        text = f"[{self.ended}/{len(self.costs)}] {label}: {result}"
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            say(text)

    def minutes_left(self, now: float) -> float | None:
        """Minutes left at the speed so far. None until 2 % of the training is done, since loading comes first."""
        done, resumed = sum(self.done.values()), sum(self.resumed.values())
        training = sum(train for train, _ in self.costs.values())
        trained = sum(min(work, self.costs[label][0]) for label, work in self.done.items()) - resumed
        if done == resumed or trained < 0.02 * training:
            return None
        return (now - self.start) / (done - resumed) * (self.total - done) / 60

    def _show(self) -> None:
        now = time.monotonic()
        minutes = self.minutes_left(now)
        clock = "time left: not known yet" if minutes is None else f"{minutes:.1f} min left"
        text = f"{self.ended}/{len(self.costs)} runs, {clock}; {', '.join(self.status.values())}"
        if self.bar is not None:
            self.bar.n = min(sum(self.done.values()), self.total)
            self.bar.set_description_str(text)
        elif now - self.last_line > LINE_EVERY:
            self.last_line = now
            say(text)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
