"""The local launcher: each run in a new process of this machine, several runs at a time.

A process does one run and ends, so no number of a run depends on the plug-ins that another run has imported.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from threading import Lock
from typing import Any

from bench.core.errors import BenchError, RunLockedError
from bench.launch.torchrun import KILLED_MESSAGE, KilledError, Status
from bench.launch.worker import run_in_process
from bench.suite.devices import VISIBLE
from bench.suite.job import Job


@dataclass
class LocalLauncher:
    """Do runs in processes of their own; `run` may be called by several threads."""

    messages: Any
    """Queue that takes (label, step)."""
    trackers: Sequence[str] = ()
    gpus: Sequence[str] = ()
    """GPUs of this machine (`bench.suite.devices.shared_gpus`); each run has the one with the fewest runs."""
    processes: dict[BaseProcess, str | None] = field(default_factory=dict)
    """The processes of the current runs, with the GPU of each."""
    stopped: bool = False
    lock: Lock = field(default_factory=Lock)
    """Held while a process is started or its exit code is read, since both collect ended children."""

    def run(self, job: Job) -> Status:
        """Do one run in a new process."""
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        with self.lock:
            if self.stopped:
                raise KilledError(KILLED_MESSAGE)
            taken = list(self.processes.values())
            gpu = min(self.gpus, key=taken.count, default=None)
            process = context.Process(target=run_in_process, args=(pickle.dumps((job, self.trackers)), sender))
            with _only_gpu(gpu):
                _start_without_interrupt(process)
            self.processes[process] = gpu
        sender.close()  # the process has its own end, so that its death ends the messages
        end = None
        try:
            while end is None:
                kind, value = receiver.recv()
                if kind == "progress":
                    self.messages.put((job.label, value))
                else:
                    end = kind, value
        except EOFError:
            pass
        self._collect(process)
        if end is None and (process.exitcode or 0) > 0:
            raise BenchError(
                f"the process of the run ended with exit code {process.exitcode} before it could report; its error "
                "stands above. A script must call run_suites(...) below `if __name__ == '__main__':`."
            )
        if end is None:
            raise KilledError(KILLED_MESSAGE)
        return _status(*end)

    def _collect(self, process: BaseProcess) -> None:
        """Wait for the end of a process and forget it."""
        multiprocessing.connection.wait([process.sentinel])
        with self.lock:
            process.join()
            del self.processes[process]

    def stop(self) -> None:
        """End the processes of all current runs; no other one is started."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                process.terminate()


@contextmanager
def _only_gpu(name: str | None) -> Iterator[None]:
    """Processes that start here see this GPU only (None: all), from their first line on."""
    before = os.environ.get(VISIBLE)
    if name is not None:
        os.environ[VISIBLE] = name
    try:
        yield
    finally:
        os.environ.pop(VISIBLE, None)
        os.environ |= {} if before is None else {VISIBLE: before}


def _start_without_interrupt(process: BaseProcess) -> None:
    """Start a process that Ctrl-C never reaches, not even while it imports: the parent ends it."""
    resource_tracker.ensure_running()  # before the mask is set, since it clears the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _status(kind: str, value: Any) -> Status:
    """The status that a process has sent, or its error."""
    if kind == "locked":
        raise RunLockedError(value)
    if kind == "error":
        raise BenchError(value)
    if kind == "bug":
        message, remote_traceback = value
        bug = RuntimeError(message)
        bug.add_note(remote_traceback)
        raise bug
    status, error = value
    return status, error
