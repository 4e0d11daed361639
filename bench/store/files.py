"""Atomic and durable writes: a reader sees the old file or the new one, never a half."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import BenchError
from bench.core.hashing import canonical_json

if TYPE_CHECKING:
    import pyarrow as pa


def write_table(table: pa.Table, path: Path) -> None:
    """A pyarrow table as parquet, on the disk when this returns."""
    import pyarrow.parquet as pq

    with path.open("wb") as file:  # our own handle, so that fsync can follow
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())


# writing ------------------------------------------------------------------------------------------------------
@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """A full disk or a folder that may not be written is the user's to mend: one sentence instead of a traceback."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BenchError(
                f"no space left on the disk while writing {path}: earlier files are intact; free some space and "
                "start again, the run goes on from its last checkpoint."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise BenchError(
                f"{path} cannot be written ({error.strerror}): mend its permissions or give another --results."
            ) from error
        raise


def replace_atomically(path: Path | str, write: Callable[[Path], None]) -> None:
    """`write` a temporary file beside `path`, then rename it: a reader sees old or new, never a half.

    `write` must flush and fsync what it wrote; the rename itself is made durable here.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # a pid may be another node's too
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if hasattr(os, "O_DIRECTORY"):
            handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def write_bytes(path: Path | str, data: bytes) -> None:
    """A file, atomically and durably."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    replace_atomically(path, write)


def write_text(path: Path | str, text: str) -> None:
    """A UTF-8 text file, atomically and durably."""
    write_bytes(path, text.encode())


# lines --------------------------------------------------------------------------------------------------------
def append_line(path: Path | str, line: Mapping[str, Any]) -> None:
    """Append one JSON line (curves, ledger) durably; half a line left by a kill is cut off first.

    If the disk is full, the file is put back to its old length and a `BenchError` is raised.
    """
    path = Path(path)
    try:
        text = canonical_json(line)
    except (ValueError, TypeError) as error:
        raise BenchError(f"line for {path} cannot be written: {error}; line: {dict(line)}.") from error
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            start = _whole_lines(file.seek(0, os.SEEK_END), path)
            file.truncate(start)
            try:
                data = (text + "\n").encode()
                while data:  # an unbuffered write may take less than all
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(start)
                raise


def _whole_lines(size: int, path: Path) -> int:
    """Length in bytes of the file up to and with its last newline."""
    with path.open("rb") as file:
        if size == 0:
            return 0
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return size
        file.seek(0)
        return file.read().rfind(b"\n") + 1


def read_lines(path: Path | str) -> list[dict[str, Any]]:
    """All whole lines of a file of JSON lines, [] if there is none; a last line without its newline is left out."""
    path = Path(path)
    if not path.is_file():
        return []
    content = path.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise BenchError(
            f"{path} has a line that is not JSON ({error}): delete the run's folder and start again."
        ) from error
