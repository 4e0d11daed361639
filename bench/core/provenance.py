"""Provenance of a run: commit, lock file, package versions, hardware and the digest of the source code.

Nothing here imports torch, so that records can be read and tables built without it.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import itertools
import os
import platform
import subprocess
import sys
import tokenize
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.core.hashing import digest, sha256_file

ROOT = Path(__file__).resolve().parents[2]
"""The folder of the packages bench, methods and evaluators: in a checkout, the project's root."""

CHECKOUT = (ROOT / "pyproject.toml").is_file()
"""Whether the code runs from a checkout; otherwise from installed packages, into which nothing is written."""

SOURCE_ROOMS = (
    *("bench/api.py", "bench/flow.py", "bench/plugins.py", "bench/core", "bench/algorithm", "bench/store"),
    *("bench/suite", "bench/train", "bench/backbones", "bench/nano/gold.py", "bench/nano/world.py"),
)
"""Files and folders of the harness whose code can change a number of a run; `bench.core.plugin_sources` adds those of
the run's own plug-ins. Checks, plans, launchers, reports, audits and the command line are not listed: after an edit
there, finished runs stay valid."""

PACKAGES = (
    *("torch", "torchvision", "diffusers", "transformers", "tokenizers", "safetensors", "accelerate", "peft"),
    *("open-clip-torch", "numpy", "scipy", "pandas", "pyarrow", "pydantic", "pillow", "av"),
)
"""Distributions whose version can change a number or a record."""


def check_not_installed(path: Path, fix: str) -> None:
    """Refuse to write to a path inside the installed packages; `fix` is the end of the sentence."""
    if not CHECKOUT and path.resolve().is_relative_to(ROOT):
        raise BenchError(f"{path} belongs to the installed package and is not changed: {fix}.")


def source_digest(root: Path = ROOT, rooms: Sequence[str] = SOURCE_ROOMS) -> str:
    """16 hexadecimal digits over the path and the code of every Python file in the rooms of the harness.

    Comments, docstrings and blank lines do not count.
    """
    files = sorted(path for room in rooms for path in _python_files(root / room))
    return digest([[path.relative_to(root).as_posix(), code_without_comments(path)] for path in files])


def _python_files(path: Path) -> list[Path]:
    return list(path.rglob("*.py")) if path.is_dir() else [path] if path.is_file() else []


def code_without_comments(path: Path) -> str:
    """The lines of a Python file without comments, docstrings, and trailing spaces and blank lines outside strings.

    A docstring is any statement that consists of a string. The result does not depend on the version of Python.
    """
    text = read_python(path)
    try:
        return _without_comments(text)
    except (SyntaxError, ValueError) as error:
        raise _not_python(path, error) from error


@functools.cache
def _without_comments(text: str) -> str:
    """The code of a file with this text; a suite asks for the same files once per row."""
    tree = ast.parse(text)
    lines = io.StringIO(text).readlines()  # as Python counts them: a form feed ends no line
    starts = [0, *itertools.accumulate(map(len, lines))]
    docstrings = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            last = node.end_lineno or node.lineno
            begin = starts[node.lineno - 1] + _characters(lines[node.lineno - 1], node.col_offset)
            docstrings[begin] = starts[last - 1] + _characters(lines[last - 1], node.end_col_offset or 0)
    cuts, verbatim = list(docstrings.items()), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        begin = starts[token.start[0] - 1] + token.start[1]
        if token.type == tokenize.COMMENT:
            cuts.append((begin, begin + len(token.string)))
        elif tokenize.tok_name[token.type] in ("STRING", "FSTRING_MIDDLE") and begin not in docstrings:
            verbatim |= set(range(token.start[0], token.end[0]))  # lines that end inside the string
    for begin, end in sorted(cuts, reverse=True):
        text = text[:begin] + "\n" * text.count("\n", begin, end) + text[end:]
    numbered = enumerate(text.split("\n"), 1)
    return "\n".join(line if n in verbatim else line.rstrip() for n, line in numbered if n in verbatim or line.strip())


def read_python(path: Path) -> str:
    """The text of a Python file; one that cannot be read is a `BenchError`."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, ValueError) as error:
        raise _not_python(path, error) from error
    except OSError as error:
        raise BenchError(f"{path} cannot be read ({error.strerror}): is it there, and readable?") from error


def parse_python(path: Path, text: str) -> ast.Module:
    """The syntax tree of a Python file with this text; a text that is not Python is a `BenchError`."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise _not_python(path, error) from error


def _not_python(path: Path, error: Exception) -> BenchError:
    return BenchError(f"{path} is not Python ({' '.join(str(error).split())}): fix it.")


def _characters(line: str, utf8_bytes: int) -> int:
    """Characters in the first bytes of a line: positions of `ast` count bytes."""
    return len(line.encode()[:utf8_bytes].decode())


def git_state(root: Path = ROOT) -> dict[str, Any]:
    """Commit, and whether files differ from it; both None where `root` is not the top folder of a git checkout."""

    def git(*words: str) -> str:
        # an inherited GIT_DIR (a hook sets it) would make git use another folder
        env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        command = ["git", "-C", str(root), *words]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=env)
        return result.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return {"commit": None, "dirty": None}
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def lock_digest(root: Path = ROOT) -> str | None:
    """sha256 of requirements.lock; None where there is none (an installed wheel)."""
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


CPU_NUMBERS = {"cpu family": "family", "model": "model", "stepping": "stepping"}
"""What /proc/cpuinfo calls the numbers of a CPU, and what its text calls them."""


def hardware() -> dict[str, Any]:
    """CPU model, cores this process may use, and memory in MB (10^6 bytes); None for what is not known."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = None
    with contextlib.suppress(ValueError, OSError, AttributeError):  # AttributeError: no os.sysconf on Windows
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6)
    return {"cpu": _cpu_model(), "machine": platform.machine(), "cores": cores, "memory_mb": memory}


def _cpu_model() -> str | None:
    """Name of the CPU and, where Linux tells them, its numbers: virtual machines hide the name of the model."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        pairs = (line.partition(":") for line in text.splitlines())
        entries = {key.strip(): value.strip() for key, _, value in pairs}
        numbers = [f"{name} {entries[key]}" for key, name in CPU_NUMBERS.items() if key in entries]
        if "model name" in entries:
            return ", ".join([entries["model name"], *([" ".join(numbers)] if numbers else [])])
    return platform.processor() or None


def peak_kib() -> int:
    """Largest resident memory of this process so far, in KiB.

    Linux's VmHWM; elsewhere ru_maxrss, which on Linux would include the memory of the parent process.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak  # bytes there


def reset_peak_kib() -> bool:
    """Let `peak_kib` count from the memory that is resident now; False where the system cannot: only Linux can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def provenance(root: Path = ROOT, **extra: Any) -> dict[str, Any]:
    """All of the above as one dict for a record.

    `extra`: further entries, for example the name of the GPU, or a `source_digest` that includes plug-ins.
    """
    return {
        "git": git_state(root),
        "lock_sha256": lock_digest(root),
        "source_digest": extra.get("source_digest") or source_digest(root),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "packages": package_versions(),
        "hardware": hardware(),
        **extra,
    }
