"""Where a number comes from: commit, lock file, package versions, hardware, and hashes of files and settings.

Nothing here imports torch, so that records can be read and tables built without it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.core.hashing import digest, sha256_file

#: The folder that holds the packages bench, methods and evaluators: the project's root in a checkout.
ROOT = Path(__file__).resolve().parents[2]

#: The packages whose sources decide a number; `source_digest` hashes all of them.
SOURCE_FOLDERS = ("bench", "methods", "evaluators")

#: Distributions whose version can change a number or a record.
PACKAGES = (
    *("torch", "torchvision", "diffusers", "transformers", "tokenizers", "safetensors", "accelerate", "peft"),
    *("open-clip-torch", "numpy", "scipy", "pandas", "pyarrow", "pydantic", "pillow", "av"),
)


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
