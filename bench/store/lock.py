"""The lock of a run's folder, which a process holds while it works on the run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.core.errors import RunLockedError
from bench.store.files import disk_errors, try_lock
from bench.store.record import LOCK

TRIES = 5
"""A look at a lock (`is_locked`) holds it for an instant, so that a run asks more than once."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder; a second process that works on the same run gets a `RunLockedError`."""
    with disk_errors(folder):
        file = (folder / LOCK).open("w", encoding="utf-8")
    with file:
        for _ in range(TRIES):
            if try_lock(file) is not False:
                break
            time.sleep(0.1)
        else:
            raise RunLockedError(f"run {folder} is being worked on by another process: wait for it, or stop it.")
        yield


def is_locked(folder: Path) -> bool:
    """Whether another process works on the run of this folder now."""
    try:
        with (folder / LOCK).open("r+", encoding="utf-8") as file:
            return try_lock(file, shared=True) is False
    except OSError:  # no such file, or one that only its owner may write: `run_lock` says what is wrong
        return False
