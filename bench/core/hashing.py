"""Digests of files and of settings, by way of one canonical JSON text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError

#: Length of the hexadecimal digests that name runs, budgets and prompt lists: 64 bits, ample for a suite.
DIGEST_LENGTH = 16


def plain(value: Any) -> Any:
    """The same value in JSON's own types; numpy and torch values become numbers and lists, paths text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, Path):
        return value.as_posix()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no place in a record: give a number, a text, a list or a mapping")


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN or infinity (JSON has neither)."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """The first 16 hexadecimal digits of the sha256 of the canonical JSON; the order of keys does not matter."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:DIGEST_LENGTH]


def sha256_file(path: Path | str) -> str:
    """sha256 of a file's bytes, 64 hexadecimal digits; a file that cannot be read is a `BenchError`."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BenchError(f"{path} cannot be read ({error.strerror}): is it there, and readable?") from error
