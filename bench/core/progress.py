"""Messages and progress on stderr: lines drawn in place on a terminal, and elsewhere one line a minute with the time.

Nothing here imports torch, so that a command shows its first line before it loads anything.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    from rich.live import Live

LINE_EVERY = 60.0
"""Seconds between two lines of progress in a log file."""
DRAW_EVERY = 0.5
"""Seconds between two drawings on a terminal."""

T = TypeVar("T")
Phase = Literal["load", "train", "curve", "evaluate", "store"]

_quiet = False
"""Whether `--quiet` was given: the only setting of this process that concerns all its output."""


class Step(NamedTuple):
    """Where a run is; a run reports it to its `ProgressCallback`."""

    phase: Phase
    done: int
    """Updates done in "train", held-out videos done in "evaluate", and in one point of the "curve"."""
    total: int
    loading: str = ""
    """What is being loaded, in "load"."""
    reward: float | None = None
    """Mean training reward of the latest rollout, in "train"."""


ProgressCallback = Callable[[Step], None]


def silent(step: Step) -> None:
    """A progress callback that shows nothing."""


def set_quiet(quiet: bool) -> None:
    """Show no progress in this process (`--quiet`), or show it again."""
    global _quiet
    _quiet = quiet


def say(text: str) -> None:
    """Print a result, a warning or an error to stderr."""
    print(text, file=sys.stderr, flush=True)


def inform(text: str) -> None:
    """Print a message about progress to stderr, unless `--quiet` was given."""
    if not _quiet:
        say(text)


def clock() -> str:
    """The time of day, HH:MM:SS."""
    return time.strftime("%H:%M:%S")


def duration(seconds: float) -> str:
    """A time span for a reader: "45 s", "12 min", "5.3 h" or "3.1 days"."""
    for limit, unit, form in ((90, 1, "{:.0f} s"), (5400, 60, "{:.0f} min"), (172800, 3600, "{:.1f} h")):
        if seconds < limit:
            return form.format(seconds / unit)
    return f"{seconds / 86400:.1f} days"


def on_terminal() -> bool:
    """Whether stderr is a terminal on which lines can be drawn again."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


class Screen:
    """Progress that is shown until `close`: a few lines drawn in place on a terminal, else one line a minute.

    `lines`: from the window's width in columns to the lines to draw, each shorter than that. `line`: the same as one
    line of a log file. Both are called by a thread of their own.
    """

    def __init__(self, lines: Callable[[int], list[str]], line: Callable[[], str]):
        self._lines, self._line = lines, line
        self._live = _live_display() if on_terminal() and not _quiet else None
        self._drawn: list[int] = []
        self._closed = threading.Event()
        self._lock = threading.Lock()
        if self._live is not None:
            self._live.start()
            self._draw()
        if not _quiet:
            threading.Thread(target=self._repeat, daemon=True).start()

    def _repeat(self) -> None:
        while not self._closed.wait(LINE_EVERY if self._live is None else DRAW_EVERY):
            self._draw()

    def _draw(self) -> None:
        with self._lock:
            if self._closed.is_set():
                return
            if self._live is None:
                say(f"{clock()} {self._line()}")
            else:
                self._draw_lines(self._live)

    def _draw_lines(self, live: Live) -> None:
        from rich.control import Control
        from rich.segment import ControlType
        from rich.text import Text

        width = live.console.width
        # a terminal that has become narrower has wrapped the lines, and rich does not count these rows
        wrapped = sum((length - 1) // width for length in self._drawn if length > width)
        live.console.control(*[Control((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))] * wrapped)
        lines = self._lines(width)
        self._drawn = [len(line) for line in lines]
        live.update(Text("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)

    def close(self) -> None:
        """Remove the lines."""
        with self._lock:
            self._closed.set()
            if self._live is not None:
                self._live.stop()


def _live_display() -> Live:
    """rich's display of lines in place; lines that are printed meanwhile appear above it."""
    from rich.console import Console
    from rich.live import Live

    return Live(
        console=Console(stderr=True, highlight=False), auto_refresh=False, transient=True, redirect_stdout=False
    )


class Work:
    """Progress of work that a command does itself: what it does, how much is done, and the time left."""

    def __init__(self, what: str, total: int):
        """`total`: number of steps; 0 if the work has no steps."""
        self.what, self.total, self.done = what, total, 0
        self._start = time.monotonic()

    def step(self) -> None:
        """Count one step as done."""
        self.done += 1

    def line(self) -> str:
        """The state in one line."""
        spent = time.monotonic() - self._start
        if not self.total:
            return f"{self.what}, {duration(spent)}"
        left = f", {duration(spent / self.done * (self.total - self.done))} left" if self.done else ""
        return f"{self.what} {self.done}/{self.total}{left}"


@contextmanager
def working(what: str, total: int = 0) -> Iterator[Work]:
    """Show that this work goes on, such as "loading torch" or "checking runs", and how much of `total` is done."""
    work = Work(what, total)
    screen = Screen(lambda width: [work.line()[: width - 1]], work.line)
    try:
        yield work
    finally:
        screen.close()


def track(items: Iterable[T], what: str) -> Iterator[T]:
    """The items, with the progress of the work on them."""
    items = list(items)
    with working(what, len(items)) as work:
        for item in items:
            yield item
            work.step()
