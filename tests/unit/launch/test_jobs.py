"""What a run's digest covers of its checkpoints, and that two processes never work on one run."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.core.errors import BenchError
from bench.core.hashing import write_manifest
from bench.launch.jobs import suite_jobs, unfinished
from bench.suite import checkpoints
from bench.suite.checkpoints import Checkpoint
from bench.suite.prepared import prepare
from tests.helpers import nano_suite


def test_a_checkpoint_without_a_manifest_is_identified_by_its_content(tmp_path: Path) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"one")
    before = Checkpoint(str(tmp_path)).digest
    weights.write_bytes(b"two")
    assert Checkpoint(str(tmp_path)).digest != before


def test_a_file_is_identified_by_its_content(tmp_path: Path) -> None:
    template = tmp_path / "prompt_template.txt"
    template.write_text("How good is it?", encoding="utf-8")
    before = Checkpoint(str(template)).digest
    template.write_text("How good is it? ", encoding="utf-8")
    assert Checkpoint(str(template)).digest != before


def test_a_packaged_checkpoint_needs_its_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.bin").write_bytes(b"one")
    monkeypatch.setattr(checkpoints, "resolve", lambda name: tmp_path)
    with pytest.raises(BenchError, match=r"has no manifest\.json: restore it"):
        _ = Checkpoint("nano/clip").digest
    write_manifest(tmp_path)
    assert list(Checkpoint("nano/clip").digest) == ["weights.bin"]


def test_a_run_that_another_process_works_on_is_refused(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BenchError, match="is being worked on by another process"):
            nano_suite.run(nano_suite.tiny(), tmp_path)


def test_an_unfinished_run_of_another_digest_is_refused(tmp_path: Path) -> None:
    suite = nano_suite.tiny()
    jobs = suite_jobs(prepare(suite), tmp_path)
    jobs[1].folder.mkdir(parents=True)
    (jobs[1].folder / "digest").write_text("0123456789abcdef\n", encoding="utf-8")
    with pytest.raises(BenchError, match="0123456789abcdef"):
        unfinished(jobs)


def test_a_stop_ends_the_workers_and_keeps_the_checkpoints(tmp_path: Path) -> None:
    """Only the parent gets the signal, as from a scheduler; the runs would go on for minutes."""
    words = ["run", str(nano_suite.NANO), *nano_suite.TINY, "budget.updates=5000", "rows=[{method: cps}]"]
    command = [sys.executable, "-m", "bench.cli", *words, "--results", str(tmp_path)]
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell's `&` and nohup leave it to their children
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, ignored)
    folder, deadline = tmp_path / "tiny" / "cps-none" / "seed-0", time.monotonic() + 120
    while not (folder / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no checkpoint after two minutes"
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "continues each other run from its last checkpoint" in stderr
    lines = (folder / "train.jsonl").read_bytes()
    time.sleep(1)
    assert (folder / "train.jsonl").read_bytes() == lines, "a worker goes on after the stop"
    assert not (folder / "run.json").exists()
