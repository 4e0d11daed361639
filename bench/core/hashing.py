"""Digests of settings, files and checkpoint folders. Nothing here imports torch.

Settings are hashed as one canonical JSON text. A checkpoint folder has a manifest: the sha256 and the size of every
file, written once and verified before a run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.core.strict_json import read_json

DIGEST_LENGTH = 16
"""Length of the hexadecimal digests that name runs, budgets and prompt lists: 64 bits, ample for a suite."""

MANIFEST = "manifest.json"

GOLDEN = "golden_scores.json"
"""Expected scores of an evaluator on clips made by formula (`bench.checks.golden`), beside its checkpoint."""

NOT_LISTED = (MANIFEST, "state.pt", "report.json", GOLDEN)
"""Files beside a checkpoint that no number depends on: the manifest itself, a recipe's state and its report, and the
golden scores, which decide whether a run may start but not its numbers."""


def plain(value: Any) -> Any:
    """The same value in JSON's own types: numpy and torch values become numbers and lists, paths become text."""
    if value is None or isinstance(value, (str, bool, int, float)):  # first: most values are these
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be stored in a record: use a number, a text, a list or a mapping")


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces. NaN and infinity raise `ValueError`, since JSON has neither."""
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


def files_below(folder: Path) -> list[Path]:
    """All files below a checkpoint folder, sorted, but those in or named like ".cache", which a download leaves."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def write_manifest(folder: Path | str) -> Path:
    """List every file below `folder` with its sha256 and its size in bytes, in `manifest.json`."""
    folder = Path(folder)
    files = [path for path in files_below(folder) if path.name not in NOT_LISTED]
    entries = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in files
    }
    target = folder / MANIFEST
    part = target.with_name(f".{MANIFEST}.part")
    part.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(target)
    return target


def verify_manifest(folder: Path | str) -> dict[str, str]:
    """Check a checkpoint folder against its `manifest.json`; returns {relative path: sha256}, fit for a fingerprint.

    A missing or altered file is a `BenchError` that names the file, the expected and the actual value, and the fix.
    """
    folder = Path(folder)
    fix = f"Restore it with `git checkout -- {folder}`, or build it again with `bench nano` (see its --help)."
    digests: dict[str, str] = {}
    for name, entry in _read_manifest(folder, fix).items():
        path, size, sha256 = folder / name, entry["bytes"], entry["sha256"]
        if not path.is_file():
            raise BenchError(f"checkpoint file {path} is missing: expected {size} bytes, sha256 {sha256}. {fix}")
        actual_size = path.stat().st_size
        if actual_size != size:
            raise BenchError(f"checkpoint file {path} was altered: expected {size} bytes, found {actual_size}. {fix}")
        digests[name] = sha256_file(path)
        if digests[name] != sha256:
            raise BenchError(
                f"checkpoint file {path} was altered: expected sha256 {sha256}, found {digests[name]}. {fix}"
            )
    return digests


def _is_entry(name: str, entry: Any) -> bool:
    """Whether this is a file with its digest and its size."""
    described = isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and type(entry.get("bytes")) is int
    return described and name.isprintable() and entry["sha256"].isalnum()


def _read_manifest(folder: Path, fix: str) -> dict[str, dict[str, Any]]:
    path = folder / MANIFEST
    entries = read_json(path, "checkpoint manifest", fix[0].lower() + fix[1:].rstrip("."))
    if not entries or not all(_is_entry(name, entry) for name, entry in entries.items()):
        raise BenchError(f"checkpoint manifest {path} does not list {{file: {{sha256, bytes}}}}. {fix}")
    return entries
