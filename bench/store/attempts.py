"""The log of all starts of runs in a results folder: append-only, each line with the hash of the line before.

So a run that was started and is not shown leaves a trace, and a line cannot be changed, removed from the middle or put
in without a break of the chain.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from bench.core.errors import BenchError
from bench.core.hashing import canonical_json
from bench.store.files import append_line, disk_errors, make_folder, read_lines

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


def _is_attempt(line: Mapping[str, object]) -> bool:
    """Whether the values are of the types of `Attempt`."""
    texts = all(isinstance(line[name], str) for name in Attempt._fields if name != "seed")
    return texts and line["event"] in ("start", "copy") and (line["seed"] is None or type(line["seed"]) is int)


def _hash(entries: Mapping[str, object]) -> str:
    return hashlib.sha256(canonical_json(entries).encode()).hexdigest()


def record_attempt(folder: Path, event: Literal["start", "copy"], row: str, seed: int | None, digest: str) -> str:
    """Append a line durably, after the lines of other processes; returns its hash.

    A file whose chain is broken is a `BenchError`, so that no run extends it. Half a last line, of a process that was
    killed, is removed.
    """
    path = make_folder(folder) / ATTEMPTS
    with disk_errors(path), path.open("ab") as held:
        with contextlib.suppress(OSError):  # a disk without locks: two starts in one instant may break the chain
            fcntl.flock(held, fcntl.LOCK_EX)
        attempts = read_attempts(folder)
        before = attempts[-1].hash if attempts else START
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        entries = {"time": time, "event": event, "row": row, "seed": seed, "digest": digest, "before": before}
        own = _hash(entries)
        append_line(path, {**entries, "hash": own})
    return own


def read_attempts(folder: Path) -> list[Attempt] | None:
    """All lines, their chain checked; None without a file.

    A broken chain, and an entry of another kind, are a `BenchError` with file and line.
    """
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
        if not _is_attempt(line):
            raise BenchError(
                f"{path}, line {number}, has an entry of another kind than a start: restore the file, or move it away "
                "and run the suite anew."
            )
        attempts.append(Attempt(**line))
    return attempts
