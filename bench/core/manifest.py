"""Checkpoint manifests: the sha256 and the size of every file, written once and verified before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.core.hashing import sha256_file

MANIFEST = "manifest.json"

#: Expected scores of an evaluator on clips made by formula (`bench.checks.golden`), beside its checkpoint.
GOLDEN = "golden_scores.json"

#: Files beside a checkpoint that no number depends on: the manifest itself, a recipe's own state and its report, and
#: the golden scores, which decide whether a run may start and never what it gives.
NOT_LISTED = (MANIFEST, "state.pt", "report.json", GOLDEN)


# checkpoints --------------------------------------------------------------------------------------------------
def write_manifest(folder: Path | str) -> Path:
    """List every file below `folder` with its sha256 and size in bytes, in `manifest.json`."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in NOT_LISTED)
    entries = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in files
    }
    target = folder / MANIFEST
    target.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return target


def verify_manifest(folder: Path | str) -> dict[str, str]:
    """Check a checkpoint folder against its `manifest.json`; returns {relative path: sha256}, fit for a fingerprint.

    A missing or altered file is a `BenchError` that names it, what was expected, what was found and how to mend it.
    """
    folder = Path(folder)
    mend = f"Restore it with `git checkout -- {folder}`, or build it again with `bench nano` (see its --help)."
    entries = _read_manifest(folder, mend)
    found: dict[str, str] = {}
    for name, entry in entries.items():
        path, size, sha256 = folder / name, entry["bytes"], entry["sha256"]
        if not path.is_file():
            raise BenchError(f"checkpoint file {path} is missing: expected {size} bytes, sha256 {sha256}. {mend}")
        if path.stat().st_size != size:
            was = path.stat().st_size
            raise BenchError(f"checkpoint file {path} was altered: expected {size} bytes, found {was}. {mend}")
        found[name] = sha256_file(path)
        if found[name] != sha256:
            raise BenchError(
                f"checkpoint file {path} was altered: expected sha256 {sha256}, found {found[name]}. {mend}"
            )
    return found


def _read_manifest(folder: Path, mend: str) -> dict[str, dict[str, Any]]:
    path = folder / MANIFEST
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"checkpoint manifest {path} cannot be read ({error.strerror}). {mend}") from error
    except ValueError as error:
        raise BenchError(f"checkpoint manifest {path} is not JSON ({error}). {mend}") from error
    listed = entries.values() if isinstance(entries, dict) else []
    if not listed or not all(isinstance(entry, dict) and {"sha256", "bytes"} <= set(entry) for entry in listed):
        raise BenchError(f"checkpoint manifest {path} does not list {{file: {{sha256, bytes}}}}. {mend}")
    return dict(entries)
