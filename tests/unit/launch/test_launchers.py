"""What the local launcher says if its processes cannot start."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import NoReturn

import pytest

from bench.core.errors import BenchError
from bench.launch.config import LaunchConfig
from bench.launch.launchers import Outcome, run_jobs


def test_a_script_without_a_main_guard_is_told_to_have_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def start(self: SpawnContext) -> NoReturn:
        raise EOFError  # the process has ended while it imported the script

    monkeypatch.setattr(type(multiprocessing.get_context("spawn")), "Manager", start)
    with pytest.raises(BenchError, match="below `if __name__ == '__main__':`"):
        run_jobs([], {}, LaunchConfig(), Outcome(), tmp_path)
