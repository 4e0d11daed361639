"""The local launcher: a new process per run, its messages, and what the end of one run does to the others."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import store
from bench.api import BenchError
from bench.launch import local
from bench.launch.config import LaunchConfig
from bench.launch.launchers import Outcome, run_jobs
from bench.launch.local import LocalLauncher
from bench.launch.torchrun import KilledError
from bench.suite.devices import shared_gpus
from bench.suite.job import Job
from bench.suite.load import load_suite
from tests.helpers import processes
from tests.helpers.toy_suite import scored_by, toy_importable, toy_suite, training_job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return training_job(toy_suite(tmp_path), tmp_path)


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], LocalLauncher]:
    """A launcher whose processes do this instead of a run."""

    def make(target: Any) -> LocalLauncher:
        monkeypatch.setattr(local, "run_in_process", target)
        return LocalLauncher(queue.SimpleQueue())

    return make


def test_each_run_has_a_process_of_its_own(job: Job, launcher: Callable[[Any], LocalLauncher]) -> None:
    finishing = launcher(processes.finish)
    statuses = [finishing.run(job) for _ in range(2)]
    assert [status for status, _ in statuses] == ["finished", "finished"]
    assert len({pid for _, pid in statuses} | {str(os.getpid())}) == 3
    assert finishing.messages.get() == (job.label, ("train", 1, 2))
    assert finishing.processes == {}


def test_a_run_has_the_gpu_with_the_fewest_runs(
    job: Job, launcher: Callable[[Any], LocalLauncher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    told = launcher(processes.visible_gpus)
    assert told.run(job) == ("finished", "GPU-a,GPU-b"), "the suite chooses among them"
    told.gpus = ["GPU-a", "GPU-b"]
    told.processes = {multiprocessing.get_context("spawn").Process(): "GPU-a"}  # another run is on it
    assert told.run(job) == ("finished", "GPU-b")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


@pytest.mark.parametrize(
    ("visible", "overrides", "gpus"),
    [
        (None, (), ["0", "1"]),
        ("5,GPU-a", (), ["5", "GPU-a"]),
        ("", (), ["0", "1"]),
        (None, ("evaluator_params.clipscore.device=cuda:1",), []),
        (None, ("evaluator_params.clipscore.idle_device=cuda:1",), []),
    ],
)
def test_runs_are_distributed_over_the_gpus_that_are_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, overrides: tuple[str, ...], gpus: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert shared_gpus([load_suite("nano"), load_suite("nano", list(overrides))]) == gpus


def test_ctrl_c_never_reaches_a_run(job: Job, launcher: Callable[[Any], LocalLauncher]) -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert launcher(processes.blocked_signals).run(job) == ("finished", str([signal.SIGINT]))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked


@pytest.mark.parametrize(
    ("target", "kind", "message"),
    [
        (processes.refuse, BenchError, "^fix it"),
        (processes.crash, RuntimeError, "^ValueError: no"),
        (processes.die, KilledError, "was killed"),
        (processes.leave, BenchError, "exit code 3 .* below `if __name__ == '__main__':`"),
    ],
)
def test_why_a_run_stopped(
    target: Any, kind: type[Exception], message: str, job: Job, launcher: Callable[[Any], LocalLauncher]
) -> None:
    with pytest.raises(kind, match=message) as stopped:
        launcher(target).run(job)
    expected = ["Traceback: line 1"] if target is processes.crash else []
    assert getattr(stopped.value, "__notes__", []) == expected


def test_after_a_stop_no_process_is_started(job: Job, launcher: Callable[[Any], LocalLauncher]) -> None:
    stopped = launcher(processes.finish)
    stopped.stop()
    with pytest.raises(KilledError):
        stopped.run(job)


@pytest.mark.slow
def test_a_run_that_changes_a_global_setting_is_refused_and_the_next_one_is_not_affected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run at a time: in the process of the first, the second would compute on two threads."""
    suite = toy_suite(tmp_path)
    first = training_job(scored_by(suite, "tests.helpers.toy:TwoThreads", "brightness"), tmp_path / "first")
    second = training_job(suite, tmp_path / "second")
    outcome = Outcome()
    with toy_importable():
        run_jobs([first, second], {first.label: (1, 1)}, LaunchConfig(processes=1), outcome, tmp_path)
    assert (outcome.finished, outcome.failed, outcome.errors) == (1, 0, 1)
    message = "error: evaluator tests.helpers.toy:TwoThreads, in score, changes num_threads from 1 to 2: "
    assert message in capsys.readouterr().err
    assert not store.is_complete(first.folder)
    record = store.read_record(second.folder)
    assert record.provenance["process_state"]["num_threads"] == 1
    alone = replace(second, folder=tmp_path / "alone")
    with toy_importable():
        run_jobs([alone], {alone.label: (1, 1)}, LaunchConfig(), Outcome(), tmp_path)
    assert store.read_record(alone.folder).scores_digest == record.scores_digest
