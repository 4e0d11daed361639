"""A run's checkpoint, checked by the sha256 of its bytes, and the lock that keeps a second process off its folder."""

from __future__ import annotations

import fcntl
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench import store
from bench.base import BenchError


def write(path: Path, state: dict[str, Any]) -> None:
    """torch's file behind the sha256 of its bytes: torch itself reads a flipped bit as another number."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    store.write_bytes(path, hashlib.sha256(data).digest() + data)


def read(path: Path) -> dict[str, Any]:
    """The state of a run, tensors on the CPU; damaged bytes are refused."""
    content = path.read_bytes()
    size = hashlib.sha256().digest_size
    if hashlib.sha256(content[size:]).digest() != content[:size]:
        raise BenchError(
            f"checkpoint {path} is damaged (its bytes do not have the sha256 that it was written with): "
            "delete it and the run starts again."
        )
    state: dict[str, Any] = torch.load(io.BytesIO(content[size:]), weights_only=True)
    return state


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; a second process that works on the same run is refused."""
    with (folder / store.LOCK).open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            raise BenchError(
                f"run {folder} is being worked on by another process: wait for it, or stop it."
            ) from cause
        yield
