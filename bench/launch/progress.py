"""Progress of the runs of a suite: one line per run that goes on, and the time left from measured updates."""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from bench.core.progress import Phase, Screen, Step, clock, duration, inform, on_terminal, say

UNITS: Mapping[Phase, str] = {"train": "update", "evaluate": "video"}
STARTING = "starting the processes, which load torch"
WELL = "finished"
"""Result of a run that is no news to a quiet command."""


@dataclass(frozen=True)
class Workload:
    """What one run does."""

    updates: int
    """Updates of the training; 0 for the base."""
    videos: int
    """Held-out videos."""
    video_cost: float
    """Function evaluations of one held-out video over those of one update: its time until one has been measured."""


@dataclass
class Measured:
    """Time of one phase of a run: from its first report to its latest."""

    start: float
    done_before: int
    """Done at the first report, by an earlier call."""
    latest: float
    done: int

    @property
    def seconds_each(self) -> float | None:
        """Seconds of one update or video; None until one is done."""
        count = self.done - self.done_before
        return (self.latest - self.start) / count if count else None


@dataclass
class RunState:
    """One run from its first report to its end."""

    started: float
    step: Step
    reward: float | None = None
    phases: dict[Phase, Measured] = field(default_factory=dict)

    def text(self) -> str:
        """What the run is doing, in words."""
        reward = "" if self.reward is None else f", reward {self.reward:.3g}"
        if self.step.phase == "load":
            return f"loading {self.step.loading}"
        if self.step.phase == "store":
            return "writing the record"
        if self.step.phase == "curve":
            return f"scoring a point of the held-out curve, video {self.step.done}/{self.step.total}{reward}"
        return f"{UNITS[self.step.phase]} {self.step.done}/{self.step.total}{reward}"


class RunsProgress:
    """Shows what all runs of a suite do, from the messages (label, step) of their processes."""

    def __init__(self, workloads: Mapping[str, Workload]):
        """`workloads`: label of every run that is to be done to its work."""
        self.workloads = dict(workloads)
        self.active: dict[str, RunState] = {}
        self.ended: dict[str, RunState | None] = {}
        """Label of each ended run to its last state; None if it never reported."""
        self.at_once = 1
        """Largest number of runs that went on at the same time."""

    def __enter__(self) -> Self:
        self._screen = Screen(self.lines, self.line)
        return self

    def __exit__(self, *_: object) -> None:
        self._screen.close()

    def receive(self, messages: Any) -> None:
        """Record all messages (label, step) of a queue."""
        try:
            while True:
                label, step = messages.get_nowait()
                self.record(label, Step(*step), time.monotonic())
        except queue.Empty:
            pass

    def record(self, label: str, step: Step, now: float) -> None:
        """Record what a run does at the time `now` (`time.monotonic`)."""
        if label in self.ended:  # a message that was read late
            return
        state = self.active.get(label)
        if state is None:
            state = self.active[label] = RunState(now, step)
            self.at_once = max(self.at_once, len(self.active))
            _log(f"{label}: started")
        state.step = step
        state.reward = state.reward if step.reward is None else step.reward
        if step.phase in UNITS:
            measured = state.phases.setdefault(step.phase, Measured(now, step.done, now, step.done))
            if step.done < measured.done:  # the run was resumed from a checkpoint
                state.phases[step.phase] = Measured(now, step.done, now, step.done)
            elif step.done > measured.done:
                measured.latest, measured.done = now, step.done

    def end(self, label: str, result: str) -> None:
        """Record and print that a run ended with this result."""
        self.ended[label] = self.active.pop(label, None)
        show = inform if result == WELL else say
        show(f"{clock()} [{len(self.ended)}/{len(self.workloads)}] {label}: {result}")

    def seconds_left(self, now: float) -> float | None:
        """Seconds left for all runs at the measured speed; None until one update of a training run is done."""
        left = {label: self._seconds_of(label, now) for label in self.workloads if label not in self.ended}
        known = [seconds for seconds in left.values() if seconds is not None]
        if len(known) < len(left):
            return None
        return max([sum(known) / self.at_once, *(left[label] or 0.0 for label in self.active)])

    def _seconds_of(self, label: str, now: float) -> float | None:
        """Seconds that one run still takes; None if its speed is not known yet."""
        work, state = self.workloads[label], self.active.get(label)
        update, video = self._seconds_each(state, "train"), self._seconds_each(state, "evaluate")
        if video is None and update is not None:
            video = update * work.video_cost
        updates, videos = work.updates - _done(state, "train"), work.videos - _done(state, "evaluate")
        if (updates and update is None) or (videos and video is None):
            return None
        total = updates * (update or 0.0) + videos * (video or 0.0)
        if state is None or not state.phases:
            total += self._load_seconds()
        latest = max([each.latest for each in state.phases.values()], default=state.started) if state else now
        return max(0.0, total - (now - latest))

    def _seconds_each(self, state: RunState | None, phase: Phase) -> float | None:
        """Seconds of an update or a video in this run, or else the mean over all runs that have measured it."""
        own = _measured([state], phase)
        others = _measured([*self.active.values(), *self.ended.values()], phase)
        return own[0] if own else sum(others) / len(others) if others else None

    def _load_seconds(self) -> float:
        """Mean seconds of loading; 0 while no run has loaded."""
        states = [state for state in [*self.active.values(), *self.ended.values()] if state and state.phases]
        times = [min(each.start for each in state.phases.values()) - state.started for state in states]
        return sum(times) / len(times) if times else 0.0

    def summary(self) -> str:
        """Runs that have ended, and the time left."""
        seconds = self.seconds_left(time.monotonic())
        left = "time left: not known yet" if seconds is None else f"{duration(seconds)} left"
        return f"{len(self.ended)}/{len(self.workloads)} runs, {left}"

    def lines(self, width: int) -> list[str]:
        """The summary and a line per run that goes on, each shorter than the window's `width`."""
        runs = [(label, state.text()) for label, state in list(self.active.items())]
        if not runs:
            return [self.summary()[: width - 1], f"  {STARTING}"[: width - 1]]
        label_width = min(max(len(label) for label, _ in runs), width - 5 - max(len(text) for _, text in runs))
        rows = [f"  {_shorten(label, label_width):<{max(label_width, 8)}}  {text}" for label, text in runs]
        return [line[: width - 1] for line in (self.summary(), *rows)]

    def line(self) -> str:
        """The same as one line of a log file."""
        runs = ", ".join(f"{label}: {state.text()}" for label, state in list(self.active.items()))
        return f"{self.summary()}; {runs or STARTING}"


def _log(text: str) -> None:
    if not on_terminal():  # a terminal shows the run's own line
        inform(f"{clock()} {text}")


def _measured(states: Any, phase: Phase) -> list[float]:
    """Seconds of an update or a video, of each of the runs that have measured it."""
    values = [state.phases[phase].seconds_each for state in states if state and phase in state.phases]
    return [value for value in values if value is not None]


def _done(state: RunState | None, phase: Phase) -> int:
    return state.phases[phase].done if state and phase in state.phases else 0


def _shorten(label: str, width: int) -> str:
    """The label in `width` characters, at least 8; its end has the seed and is kept."""
    width = max(width, 8)
    return label if len(label) <= width else "…" + label[1 - width :]
