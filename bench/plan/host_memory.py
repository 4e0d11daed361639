"""Memory of the host that a new process may use now."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Files of a control group with its limit and its use, in version 2 and in version 1."""
RECLAIMABLE = ("inactive_file", "total_inactive_file")
"""Entries of `memory.stat`, by version: files in the cache, which make room."""


def available_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that are free or can be made free, within the limit of this container; None where Linux does not tell."""
    amounts = [_of_machine(proc), *_of_groups(proc, groups)]
    known = [amount for amount in amounts if amount is not None]
    return max(0, min(known)) if known else None


def _of_machine(proc: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "meminfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return None


def _of_groups(proc: Path, groups: Path) -> list[int | None]:
    """What the control groups of this process leave, those above them included."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    left: list[int | None] = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        top = groups if not controllers else groups / "memory" if "memory" in controllers.split(",") else None
        if top is None:
            continue
        folder = Path(os.path.normpath(top / name.lstrip("/")))
        left += [_left_in(each) for each in (folder, *folder.parents) if each.is_relative_to(top)]
    return left


def _left_in(folder: Path) -> int | None:
    """Bytes that the group leaves; None for a group without a limit."""
    for limit, usage in LIMITS:
        with contextlib.suppress(OSError, ValueError):
            statistics = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
            counts = {name: int(value) for name, value in (line.split() for line in statistics)}
            cache = next((counts[name] for name in reversed(RECLAIMABLE) if name in counts), 0)
            return int((folder / limit).read_text()) - int((folder / usage).read_text()) + cache
    return None
