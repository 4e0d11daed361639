"""Where a number comes from: commit, lock file, package versions, hardware, and hashes of files and settings.

Nothing here imports torch, so that records can be read and tables built without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.base import BenchError

#: The folder that holds the packages bench, methods and evaluators: the project's root in a checkout.
ROOT = Path(__file__).resolve().parents[1]

#: The packages whose sources decide a number; `source_digest` hashes all of them.
SOURCE_FOLDERS = ("bench", "methods", "evaluators")

#: Distributions whose version can change a number or a record.
PACKAGES = (
    *("torch", "torchvision", "diffusers", "transformers", "tokenizers", "safetensors", "accelerate", "peft"),
    *("open-clip-torch", "numpy", "scipy", "pandas", "pyarrow", "pydantic", "pillow", "av"),
)

MANIFEST = "manifest.json"

#: Expected scores of an evaluator on clips made by formula (`bench.golden`), beside its checkpoint.
GOLDEN = "golden_scores.json"

#: Files beside a checkpoint that no number depends on: the manifest itself, a recipe's own state and its report, and
#: the golden scores, which decide whether a run may start and never what it gives.
NOT_LISTED = (MANIFEST, "state.pt", "report.json", GOLDEN)

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


def source_digest(root: Path = ROOT, folders: Sequence[str] = SOURCE_FOLDERS) -> str:
    """16 hexadecimal digits over the path and the content of every *.py below the three packages.

    `bench/report` and `bench/speed` are left out: they read finished records or time calls, so an edit there changes
    no run.
    """
    files = sorted(
        path
        for folder in folders
        for path in (root / folder).rglob("*.py")
        if not {"report", "speed"} & set(path.relative_to(root).parts)
    )
    return digest([[path.relative_to(root).as_posix(), sha256_file(path)] for path in files])


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


# environment --------------------------------------------------------------------------------------------------
def git_state(root: Path = ROOT) -> dict[str, Any]:
    """Commit and whether files differ from it; both None where `root` is not itself the top of a git checkout."""

    def git(*words: str) -> str:
        # an inherited GIT_DIR (a hook sets it) would make git answer for another folder
        env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        command = ["git", "-C", str(root), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=env)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return {"commit": None, "dirty": None}
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def lock_digest(root: Path = ROOT) -> str | None:
    """sha256 of requirements.lock, None where there is none (an installed wheel)."""
    path = root / "requirements.lock"
    return sha256_file(path) if path.is_file() else None


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """Installed version of each distribution, None if it is not installed; nothing is imported."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def hardware() -> dict[str, Any]:
    """CPU model, cores this process may use, and memory in MB (10^6 bytes); None for what the system does not tell."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = None
    with contextlib.suppress(ValueError, OSError, AttributeError):  # AttributeError: no os.sysconf on Windows
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6)
    return {"cpu": _cpu_model(), "machine": platform.machine(), "cores": cores, "memory_mb": memory}


def _cpu_model() -> str | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def peak_kib() -> int:
    """Largest resident memory of this process so far, in KiB.

    Linux's VmHWM; elsewhere ru_maxrss, which on Linux a process inherits from the one that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak  # bytes there


def provenance(root: Path = ROOT, **extra: Any) -> dict[str, Any]:
    """All of the above as one dict for a record; `extra` adds what only the caller knows (the GPU, for one)."""
    return {
        "git": git_state(root),
        "lock_sha256": lock_digest(root),
        "source_digest": source_digest(root),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "packages": package_versions(),
        "hardware": hardware(),
        **extra,
    }
