"""The checkpoint of a run, protected by the sha256 of its bytes."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import IO, Any, cast

import torch

from bench import store
from bench.core.errors import BenchError

DIGEST_BYTES = hashlib.sha256().digest_size
BLOCK = 1 << 24
"""Number of bytes that are hashed at a time."""


class _HashingFile(io.RawIOBase):
    """Writes bytes to a file and hashes them, so that the state is not copied in memory."""

    def __init__(self, file: IO[bytes]):
        self.file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None
        """Why a write failed; torch raises a `RuntimeError` of its own instead."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise


def write(path: Path, state: dict[str, Any]) -> None:
    """Write torch's file, followed by the sha256 of its bytes: torch itself would not detect a flipped bit."""

    def write_hashed(temporary: Path) -> None:
        with temporary.open("wb") as file:
            hashing = _HashingFile(file)
            try:
                torch.save(state, cast(IO[bytes], hashing))
            except RuntimeError as error:
                raise (hashing.error or error) from error
            file.write(hashing.sha256.digest())
            file.flush()
            os.fsync(file.fileno())

    store.replace_atomically(path, write_hashed)


def stored_sha256(path: Path) -> str | None:
    """The sha256 at the end of a checkpoint; None where there is no checkpoint."""
    try:
        with path.open("rb") as file:
            file.seek(-min(DIGEST_BYTES, path.stat().st_size), os.SEEK_END)
            return file.read().hex()
    except FileNotFoundError:
        return None


def read(path: Path) -> dict[str, Any]:
    """The state of a run, with tensors on the CPU, mapped from the file; damaged bytes are a `BenchError`."""
    total, remaining = hashlib.sha256(), path.stat().st_size - DIGEST_BYTES
    with path.open("rb") as file:
        while remaining > 0:
            block = file.read(min(BLOCK, remaining))
            total.update(block)
            remaining -= len(block)
        intact = remaining == 0 and file.read() == total.digest()
    if not intact:
        raise BenchError(
            f"checkpoint {path} is damaged (its bytes do not have the sha256 that it was written with): "
            "delete it to start the run again."
        )
    state: dict[str, Any] = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    return state
