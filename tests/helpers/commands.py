"""`bench` in a process of its own, on the toy's suite."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.helpers.nano_suite import NANO
from tests.helpers.paths import PROJECT
from tests.helpers.toy_suite import toy_overrides


def toy_command(command: str, folder: Path, *words: str) -> list[str]:
    """`bench COMMAND` on the toy's suite, with records in `folder`/results; `words` are overrides and options."""
    overrides = toy_overrides(folder)
    bench = [sys.executable, "-m", "bench.cli"]
    return [*bench, command, str(NANO), *overrides, *words, "--results", str(folder / "results")]


def start(command: list[str], folder: Path, env: Mapping[str, str | None] | None = None) -> subprocess.Popen[str]:
    """Start a command in `folder`, as the leader of its own group; a variable whose value is None is removed."""
    environment: dict[str, str] = {**os.environ, "PYTHONPATH": str(PROJECT)}
    for key, value in (env or {}).items():
        environment.pop(key, None)
        if value is not None:
            environment[key] = value
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 300) -> tuple[int, str]:
    """Exit code and output of a command; its group is killed if it does not end in time."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def run(command: list[str], folder: Path, env: Mapping[str, str | None] | None = None) -> tuple[int, str]:
    """Exit code and output of a command, which must not show a traceback."""
    code, output = finish(start(command, folder, env))
    assert "Traceback" not in output, output
    return code, output
