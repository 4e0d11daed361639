"""Trackers: a run shown live in TensorBoard, Weights & Biases or trackio, through accelerate's tracker classes.

A tracker gets what the run has written already (lines of `train.jsonl`, the record, the scores), so that no number of
a run and no table depends on it. Everything stays on this machine unless the user's own environment says otherwise.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from bench import store
from bench.core.errors import BenchError, ProcessStateError
from bench.core.process_state import unchanged_process
from bench.core.progress import ProgressCallback, Step, say
from bench.core.strict_json import read_json
from bench.suite.job import Job

FOLDER = "trackers"
"""Folder below the records of a suite, or of a variant of a study, in which the trackers write."""
LEFT_OUT = frozenset({"update", "prompts", "trained_steps", "step_weights", "kl_ticks"})
"""Fields of a line of `train.jsonl` that are no measurement of the update, or one of every single tick."""
Warn = Callable[[str], None]


def flat_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line by their path, such as `rewards/VQ`; a list of one number is that number."""
    return {path: value for path, value in _leaves(values) if isinstance(value, int | float)}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping | list):
        for key, child in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(child, f"{path}/{key}" if path else str(key))
    else:
        yield path, value


def run_settings(job: Job) -> dict[str, Any]:
    """The settings of the run by their path: its names and digest, its row, and the suite as its record has it."""
    row = None if job.spec is None else job.spec.model_dump(mode="json")
    suite = job.suite.model_dump(mode="json", exclude={"rows", "seeds"})
    return dict(_leaves({**job.identity, "digest": job.digest, "settings": {**suite, "row": row}}))


class RunTracker:
    """One run in one tracker. It counts the logged updates in a file, so that a resumed run logs each update once."""

    def __init__(self, job: Job, name: str, warn: Warn = say):
        """`name`: one of `TRACKERS`. `warn` takes the sentence about a tracker that fails while the run goes on."""
        self.job, self.name, self.warn = job, name, warn
        self.folder = job.suite_folder / FOLDER / name
        self.count_file = self.folder / f"{job.digest}.json"
        self.logged = 0
        """Updates that the tracker has."""
        self.tracker: Any = None
        """accelerate's tracker; None before the start and after a failure."""

    @property
    def run_name(self) -> str:
        """Suite, row and seed."""
        identity = self.job.identity
        names = [identity["suite"], identity["row"]]
        return "/".join(names if identity["seed"] is None else [*names, f"seed-{identity['seed']}"])

    def start(self) -> None:
        """Start the tracker, or go on with its run of this digest; a failure is a `BenchError`."""
        store.check_writable(self.folder)
        resumed = self.count_file.is_file()
        self.logged = self._stored_count() if resumed else 0
        try:
            with unchanged_process(f"tracker {self.name}"), redirect_stdout(sys.stderr):
                tracker = self._new_tracker()
                tracker.start()
                if not resumed:
                    tracker.store_init_configuration(run_settings(self.job))
        except ProcessStateError:
            raise
        except Exception as cause:  # any of the tracker's own
            raise BenchError(
                f"tracker {self.name} cannot be started for {self.job.label} ({type(cause).__name__}: "
                f"{' '.join(str(cause).split())}): fix that, or run without --tracker {self.name}."
            ) from cause
        self._count(self.logged)
        self.tracker = tracker

    def _stored_count(self) -> int:
        fix = "delete it, and this run starts anew in the tracker"
        count = read_json(self.count_file, "count of logged updates", fix).get("updates")
        if type(count) is not int:
            raise BenchError(f"count of logged updates {self.count_file} has no whole number of updates: {fix}.")
        return count

    def _new_tracker(self) -> Any:
        from accelerate import PartialState
        from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

        PartialState()  # which accelerate's log asks for; a process group of the run is taken as it is
        digest, project = self.job.digest, self.job.suite.study
        if self.name == "tensorboard":  # what a killed process wrote beyond the count is purged
            return TensorBoardTracker(f"{self.run_name}/{digest}", str(self.folder), purge_step=self.logged)
        if self.name == "wandb":
            mode = os.environ.get("WANDB_MODE", "offline")
            options = {"name": self.run_name, "id": digest, "dir": str(self.folder), "mode": mode}
            resume = None if mode == "offline" else "allow"
            return WandBTracker(project, **options, resume=resume, settings={"console": "off", "silent": True})
        os.environ.setdefault("TRACKIO_DIR", str(self.folder.resolve()))  # before trackio is imported
        return TrackioTracker(project, name=f"{self.run_name}/{digest}", resume="allow")

    def step(self, step: Step) -> None:
        """Log the updates that are done and not logged; called before and after each update."""
        if self.tracker is None or step.phase != "train" or step.done <= self.logged:
            return
        lines = store.read_lines(self.job.folder / store.TRAIN)[self.logged : step.done]
        with self._failure_is_a_warning():
            for line in lines:
                values = {key: value for key, value in line.items() if key not in LEFT_OUT}
                self.tracker.log(flat_numbers(values), step=line["update"])
                self._count(line["update"] + 1)

    def end(self) -> None:
        """Log the mean held-out scores, if the run has its record, and close the tracker's run."""
        if self.tracker is not None and store.is_complete(self.job.folder):
            record, scores = store.read_run(self.job.folder)
            means = scores.groupby("metric")["value"].mean().to_dict()
            with self._failure_is_a_warning():
                self.tracker.log(flat_numbers({"held_out": means}), step=record.updates_done)
        self.close()

    def close(self) -> None:
        """Close the tracker's run."""
        if self.tracker is not None:
            with self._failure_is_a_warning():
                self.tracker.finish()

    def _count(self, updates: int) -> None:
        store.write_text(self.count_file, json.dumps({"run": self.run_name, "updates": updates}))
        self.logged = updates

    @contextmanager
    def _failure_is_a_warning(self) -> Iterator[None]:
        """After a failure the tracker gets no more: the run's own files have everything."""
        try:
            with redirect_stdout(sys.stderr):  # stdout is for results, and for the messages to a launcher
                yield
        except Exception as error:  # any of the tracker's own
            self.tracker = None
            self.warn(
                f"warning: tracker {self.name} failed for {self.job.label} ({type(error).__name__}: "
                f"{' '.join(str(error).split())}); the run goes on without it, and its own files stay complete."
            )


@contextmanager
def tracked(job: Job, names: Sequence[str], report: ProgressCallback, warn: Warn = say) -> Iterator[ProgressCallback]:
    """The callback, which also keeps the trackers up to date; they start at the first report, under the run's lock."""
    trackers, started = [RunTracker(job, name, warn) for name in names], False

    def follow(step: Step) -> None:
        nonlocal started
        if not started:
            started = True
            for tracker in trackers:
                tracker.start()
        for tracker in trackers:
            tracker.step(step)
        report(step)

    try:
        yield follow if trackers else report
    except BaseException:
        for tracker in trackers:
            tracker.close()
        raise
    for tracker in trackers:
        tracker.end()
