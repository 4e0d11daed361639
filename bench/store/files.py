"""Atomic and durable writes: a reader sees the old file or the new one, never a part of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bench.core.errors import BenchError
from bench.core.hashing import canonical_json
from bench.core.limits import JSON_LINES_BYTES
from bench.core.strict_json import parse_json
from bench.core.text import decode_text, read_bytes

if TYPE_CHECKING:
    import pyarrow as pa


def find(folder: Path | str, pattern: str) -> list[Path]:
    """Paths below a folder that match a glob pattern such as `**/run.json`, sorted.

    Folders and files whose name starts with a dot are passed over: notebooks and editors keep copies in them.
    """
    paths = Path(folder).glob(pattern)
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def write_table(table: pa.Table, path: Path) -> None:
    """Write a pyarrow table as parquet and flush it to the disk."""
    import pyarrow.parquet as pq

    with path.open("wb") as file:  # an own handle, which fsync needs
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise a `BenchError` that says what to fix where the disk is full, or where `path` cannot be made or written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BenchError(
                f"no space left on the disk while writing {path}: earlier files are intact; free some space (`df -h` "
                "and `df -i` show what is left) and run the same command again."
            ) from error
        if error.errno in FIXES:
            raise BenchError(f"{path} cannot be written ({error.strerror}): {FIXES[error.errno]}.") from error
        raise


_OTHER_FOLDER = "write elsewhere, with --results or --out"
FIXES = {
    **dict.fromkeys((errno.EACCES, errno.EROFS, errno.EPERM), f"fix its permissions, or {_OTHER_FOLDER}"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
        f"a file is where a folder must be, or a folder where a file must be; move it, or {_OTHER_FOLDER}",
    ),
    errno.ENOENT: f"its folder cannot be made, or was removed meanwhile; check the path, or {_OTHER_FOLDER}",
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL), f"the path is not valid; {_OTHER_FOLDER}"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "the disk reports an error; check it, then run the same command again"),
}
"""Numbers of the errors of a write that the user can fix, and how."""


def make_folder(path: Path | str) -> Path:
    """Make a folder with its parents, unless it exists; a `BenchError` where that is not possible."""
    path = Path(path)
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def check_writable(folder: Path | str) -> None:
    """Make the folder and a file in it, which is removed; a `BenchError` where nothing can be written."""
    folder = make_folder(folder)
    with disk_errors(folder), tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")


def replace_atomically(path: Path | str, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path beside `path`, then rename the file.

    `write` must flush and fsync the file; the rename is made durable here. What a killed process left of an earlier
    write of the same file is removed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # not a pid, which two nodes may share
    make_folder(path.parent)
    with disk_errors(path):
        _remove_abandoned(path)
        try:
            with temporary.open("xb") as claim:
                try_lock(claim)
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


TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{12}\.tmp")
"""Name of the temporary file of a write; `name` is that of the file."""


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files of this file whose writers have ended: a writer holds a lock on its own."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if TEMPORARY.fullmatch(left.name):
            with contextlib.suppress(FileNotFoundError), left.open("rb") as file:
                if try_lock(file):
                    left.unlink()


def try_lock(file: IO[Any], shared: bool = False) -> bool | None:
    """Lock an open file until it is closed; False if another process holds it, None if this disk has no locks.

    `shared`: several processes may hold it so at a time.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            return None
        raise
    return True


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file, atomically and durably."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    replace_atomically(path, write)


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 text file, atomically and durably."""
    write_bytes(path, text.encode())


def write_files(folder: Path | str, contents: Mapping[str, str | bytes]) -> dict[str, Path]:
    """Each file of `contents` (name to content) in `folder`, atomically and durably: {file name: path}."""
    paths = {name: Path(folder) / name for name in contents}
    for name, path in paths.items():
        content = contents[name]
        write_bytes(path, content.encode() if isinstance(content, str) else content)
    return paths


def append_line(path: Path | str, line: Mapping[str, Any]) -> None:
    """Append one JSON line durably, after an incomplete last line (of a killed process) is removed.

    If the disk is full, the file gets its old length again and a `BenchError` is raised.
    """
    path = Path(path)
    try:
        text = canonical_json(line)
    except (ValueError, TypeError) as error:
        raise BenchError(f"line for {path} cannot be written: {error}; line: {dict(line)}.") from error
    make_folder(path.parent)
    with disk_errors(path), path.open("a+b", buffering=0) as file:
        start = _complete_length(file.seek(0, os.SEEK_END), path)
        file.truncate(start)
        try:
            data = (text + "\n").encode()
            while data:  # an unbuffered write may be partial
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(start)
            raise


def _complete_length(size: int, path: Path) -> int:
    """Length of the file in bytes up to its last newline, inclusive."""
    with path.open("rb") as file:
        if size == 0:
            return 0
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return size
        file.seek(0)
        return file.read().rfind(b"\n") + 1


def read_lines(path: Path | str) -> list[dict[str, Any]]:
    """The complete lines of a file of JSON lines; [] if there is no file. A last line without newline is left out."""
    path, fix = Path(path), "delete the folder of the run and start it again"
    if not path.is_file():
        return []
    content = read_bytes(path, "file", fix, JSON_LINES_BYTES)
    complete = decode_text(content[: content.rfind(b"\n") + 1], f"file {path}")
    lines = []
    for number, text in enumerate(complete.split("\n")[:-1], 1):
        line = parse_json(text, f"{path}, line {number},", fix)
        if not isinstance(line, dict):
            raise BenchError(f"{path}, line {number}, is not a JSON object: {fix}.")
        lines.append(line)
    return lines
