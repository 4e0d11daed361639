"""The log of all starts of runs in a results folder: append-only, each line with the hash of the line before.

So a run that was started and is not shown leaves a trace, and a line cannot be changed, removed from the middle or put
in without a break of the chain.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from bench.core.errors import BenchError
from bench.core.hashing import canonical_json
from bench.store.files import disk_errors, make_folder, read_lines

ATTEMPTS = "attempts.jsonl"
"""The file, in the folder of the records of a suite, or of a variant of a study."""
START = "0" * 64
"""In place of the hash of a line before the first."""


class Attempt(NamedTuple):
    """One line: the start of a run, or the copy of a run that another suite has finished."""

    time: str
    """UTC, such as 2026-11-29T18:00:00Z."""
    event: Literal["start", "copy"]
    row: str
    seed: int | None
    """None for the base."""
    digest: str
    """Digest of the run."""
    before: str
    """Hash of the line before."""
    hash: str
    """sha256 of the canonical JSON of the other entries."""


def _hash(entries: Mapping[str, object]) -> str:
    return hashlib.sha256(canonical_json(entries).encode()).hexdigest()


def record_attempt(folder: Path, event: Literal["start", "copy"], row: str, seed: int | None, digest: str) -> str:
    """Append a line durably, after the lines of other processes; returns its hash.

    A file whose chain is broken is a `BenchError`, so that no run extends it.
    """
    path = make_folder(folder) / ATTEMPTS
    with disk_errors(path), path.open("ab", buffering=0) as file:
        with contextlib.suppress(OSError):  # a disk without locks: two starts in one instant may break the chain
            fcntl.flock(file, fcntl.LOCK_EX)
        attempts = read_attempts(folder)
        before = attempts[-1].hash if attempts else START
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        entries = {"time": time, "event": event, "row": row, "seed": seed, "digest": digest, "before": before}
        own = _hash(entries)
        size = file.seek(0, os.SEEK_END)
        try:
            file.write((canonical_json({**entries, "hash": own}) + "\n").encode())
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise
    return own


def read_attempts(folder: Path) -> list[Attempt] | None:
    """All lines, their chain checked; None without a file. A broken chain is a `BenchError` with file and line."""
    path = folder / ATTEMPTS
    if not path.is_file():
        return None
    attempts: list[Attempt] = []
    for number, line in enumerate(read_lines(path), 1):
        before = attempts[-1].hash if attempts else START
        entries = {key: value for key, value in line.items() if key != "hash"}
        if line.keys() != set(Attempt._fields) or line["before"] != before or line["hash"] != _hash(entries):
            raise BenchError(
                f"{path}, line {number}, breaks the chain of starts: a line was changed, removed or put in; restore "
                "the file, or move it away and run the suite anew."
            )
        attempts.append(Attempt(**line))
    return attempts
