"""The launchers: one run over several processes, and what is refused before anything is loaded."""

from __future__ import annotations

import contextlib
import queue
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from bench import store
from bench.api import BenchError
from bench.cli import main
from bench.core.parallelism import ProcessLayout
from bench.core.world import SINGLE_PROCESS, PeerLostError, World
from bench.launch import run, torchrun, worker
from bench.launch.config import LaunchConfig
from bench.launch.jobs import suite_jobs
from bench.launch.run import run_suites
from bench.launch.slurm import run_job
from bench.launch.torchrun import KILLED_MESSAGE, TorchrunLauncher, read_job, write_job
from bench.store.files import read_lines
from bench.store.record import JOB, read_run
from bench.suite.prepared import prepare
from bench.suite.schema import Suite
from tests.helpers.nano_suite import NANO, TINY, tiny
from tests.helpers.toy_suite import (
    LABEL,
    launch_one,
    run_alone,
    run_in_two,
    scored_by,
    toy_importable,
    toy_suite,
    training_job,
)

BOUND = 2e-6
"""Relative difference of a number after some updates of one and of two processes (see invariant/test_processes.py)."""
SECONDS = 20.0
"""From the last line of a run to its end: far below the half hour that a process waits for one that hangs."""
TWO = LaunchConfig(launcher="torchrun", nproc=2)


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Suite]:
    with toy_importable():
        yield toy_suite(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the toy's run in two processes, without a launcher and never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    job = training_job(toy_suite(folder), folder)
    assert run_in_two(job, folder) == ["finished", "finished"]
    return job.folder


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of `train.jsonl` without what a restart may change."""
    return [
        {**line, "seconds": None, "ledger": {k: v for k, v in line["ledger"].items() if k != "restarts"}}
        for line in lines
    ]


@pytest.mark.slow
def test_a_killed_process_ends_the_run_within_seconds_and_it_resumes_to_the_same_bits(
    tmp_path: Path,
    toy: Suite,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    job = training_job(toy, tmp_path)
    monkeypatch.setenv("TOY_KILLS", "1 6")
    killed = launch_one(job, TWO)
    assert time.time() - (job.folder / store.TRAIN).stat().st_mtime < SECONDS
    assert (killed.finished, killed.failed, killed.errors) == (0, 0, 1)
    assert f"{LABEL}: error: a process was killed" in capfd.readouterr().err
    assert [line["update"] for line in read_lines(job.folder / store.TRAIN)] == list(range(6))
    assert (job.folder / "checkpoint.pt").exists()
    assert not store.is_complete(job.folder)
    monkeypatch.delenv("TOY_KILLS")
    resumed = launch_one(job, TWO)
    assert (resumed.finished, resumed.failed, resumed.errors) == (1, 0, 0), capfd.readouterr().err
    (record, _), (expected, _) = read_run(job.folder), read_run(whole)
    assert record.scores_digest == expected.scores_digest
    assert record.ledger == {**expected.ledger, "restarts": 1}
    assert timeless(read_lines(job.folder / store.TRAIN)) == timeless(read_lines(whole / store.TRAIN))
    policy, expected_policy = (load_file(folder / "policy.safetensors") for folder in (job.folder, whole))
    assert all(policy[key].equal(expected_policy[key]) for key in expected_policy)
    assert not (job.folder / JOB).exists()


def test_the_record_of_two_processes_is_that_of_one(tmp_path: Path, whole: Path) -> None:
    job = training_job(toy_suite(whole.parents[2]), tmp_path)
    assert run_alone(job, SINGLE_PROCESS) == "finished"
    (one, scores), (two, others) = read_run(job.folder), read_run(whole)
    assert (one.provenance["processes"], two.provenance["processes"]) == (1, 2)
    changed = {"seconds", "peak_memory_mb", "provenance", "scores_digest", "train_digest", "attempt"}
    assert one.model_dump(exclude=changed) == two.model_dump(exclude=changed)
    assert others["value"].tolist() == pytest.approx(scores["value"].tolist(), rel=BOUND)
    assert 0 < one.extra["prompts_cut"]["tests.helpers.toy:Brightness"] < 1
    first, second = (read_lines(folder / store.TRAIN)[0] for folder in (job.folder, whole))
    weights = {"step_rms", "weights_after"}
    exact = {"grad_norm", "grad_norm_of_step", "kl_gradient", "seconds", *weights}  # all but these are the same bits
    assert {k: v for k, v in first.items() if k not in exact} == {k: v for k, v in second.items() if k not in exact}


def test_a_divergence_is_a_failed_run_of_all_processes(tmp_path: Path) -> None:
    suite = scored_by(toy_suite(tmp_path), "tests.helpers.toy:NotANumberLater", "brightness", calls_before=10)
    job = training_job(suite, tmp_path)
    assert run_in_two(job, tmp_path) == ["failed", "failed"]
    record, _ = read_run(job.folder)
    assert record.status == "failed"
    assert "reward brightness of prompt" in str(record.error)
    assert record.updates_done == 5
    assert (job.folder / "offending_sample.safetensors").exists()


def test_a_mistake_in_the_processes_is_one_sentence(
    tmp_path: Path, toy: Suite, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOY_REFUSES", "the toy refuses: fix it.")
    outcome = launch_one(training_job(toy, tmp_path), LaunchConfig("torchrun"))
    assert outcome.errors == 1
    assert f"{LABEL}: error: the toy refuses: fix it." in capfd.readouterr().err


@pytest.mark.parametrize(
    ("program", "kind", "message"),
    [
        ("say('lost', 'the others'); say('error', 'fix it'); say('error', 'again')", BenchError, "^fix it$"),
        ("say('lost', 'the others'); say('bug', 'line 1')", RuntimeError, "line 1"),
        ("say('lost', 'the others')", PeerLostError, "^the others$"),
        (
            "say('lost', 'the others'); note('Signal 9 (SIGKILL) received by PID 7')",
            BenchError,
            f"^{re.escape(KILLED_MESSAGE)}",
        ),
        ("import os; os.kill(os.getpid(), 9)", BenchError, f"^{re.escape(KILLED_MESSAGE)}"),
        ("print('error of a library'); print('progress {'); say('error', 'fix it')", BenchError, "^fix it$"),
        ("note('failed (exitcode: -6) local_rank: 0')", PeerLostError, "was aborted while it waited for the others"),
        ("note('address in use')", RuntimeError, "exit code 3 and no message:\naddress in use"),
    ],
)
def test_why_a_run_stopped(
    program: str, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "import json, sys\ndef say(kind, text): print(kind, json.dumps(text), flush=True)\n"
    words += f"def note(text): print(text, file=sys.stderr)\n{program}\nsys.exit(3)"
    monkeypatch.setattr(torchrun, "command", lambda layout, node, path: [sys.executable, "-c", words])
    (base, _) = suite_jobs(prepare(tiny("rows=[{method: cps}]", "seeds=[0]")), tmp_path)
    with pytest.raises(kind, match=message) as stopped:
        TorchrunLauncher(ProcessLayout(nproc=2), queue.SimpleQueue()).run(base)
    assert isinstance(stopped.value, PeerLostError) == (kind is PeerLostError)
    assert not (base.folder / JOB).exists()


def test_the_job_file_holds_the_whole_job(tmp_path: Path) -> None:
    suite = tiny("rows=[{method: cps}, {method: sage_grpo, kl: {name: dual, params: {every: 1}}}]")
    for job in suite_jobs(prepare(suite), tmp_path):
        assert read_job(write_job(job)) == (job, None, [])
        assert read_job(write_job(job, "full", trackers=("wandb",))) == (job, "full", ["wandb"])


def test_a_process_shards_the_weights_as_the_job_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job, _) = suite_jobs(prepare(tiny("rows=[{method: cps}]", "seeds=[0]")), tmp_path)
    executed: list[Any] = []

    @contextlib.contextmanager
    def process_group(cp_degree: int, shard: str | None) -> Iterator[World]:
        yield World(0, 2, cp_degree, shard)

    monkeypatch.setattr(worker, "process_group", process_group)
    monkeypatch.setattr(worker, "execute", lambda job, report, world: executed.append((job, world)))
    assert worker.main(write_job(job, "grads")) == 0
    assert executed == [(job, World(0, 2, 1, "grads"))]


def test_a_number_of_processes_that_does_not_divide_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(NANO), *TINY, "budget.micro_batch=1", "--results", str(tmp_path)]
    assert main([*words, "--launcher", "torchrun", "--nproc", "3"]) == 2
    assert "use N processes that divide 4" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("gpus", "device", "nproc", "message"),
    [
        (1, None, 2, "a run has 2 process(es) on this machine and each needs a GPU of its own, but torch sees 1:"),
        (3, "cuda", 4, "but torch sees 3: give an --nproc of at most 3, or backbone.train.device=cpu."),
        (0, "cuda", 1, "but torch sees none: choose a machine that has GPUs, or backbone.train.device=cpu."),
        (2, None, 2, None),
        (1, "cpu", 2, None),
        (0, None, 2, None),
        (8, "cuda:0", 2, "the suite names the device cuda:0: write cuda in its place"),
    ],
)
def test_too_few_gpus_are_refused_before_anything_is_loaded(
    gpus: int, device: str | None, nproc: int, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    started: list[Any] = []
    monkeypatch.setattr(run, "run_jobs", lambda *arguments: started.append(arguments))
    suite = tiny("rows=[{method: cps}]", "budget.micro_batch=1", "seeds=[0]")
    train = {key: value for key, value in suite.backbone.train.items() if key != "device"}
    train |= {} if device is None else {"device": device}
    suite = suite.model_copy(update={"backbone": suite.backbone.model_copy(update={"train": train})})
    many = LaunchConfig("torchrun", nproc=nproc)
    if message is None:
        run_suites([prepare(suite)], tmp_path, many)
        assert started
        return
    with pytest.raises(BenchError) as refused:
        run_suites([prepare(suite)], tmp_path, many)
    assert message in str(refused.value)
    assert not started
    assert not any(tmp_path.iterdir())
    (base, _) = suite_jobs(prepare(suite), tmp_path)
    assert run_job(base, many.layout) == ("error", str(refused.value))  # a Slurm job looks at its own node


def test_more_processes_than_cores_are_allowed_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0})
    monkeypatch.setattr(run, "run_jobs", lambda *arguments: None)
    suite = tiny("rows=[{method: cps}]", "budget.micro_batch=1", "seeds=[0]")
    run_suites([prepare(suite)], tmp_path, LaunchConfig("torchrun", nproc=2))
    assert "note: 2 processes of one run share 1 core(s)" in capsys.readouterr().err
    run_suites([prepare(suite)], tmp_path, LaunchConfig())
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nproc": 2}, "use --launcher torchrun"),
        ({"launcher": "torchrun", "nproc": 0}, "--nproc is 0: give at least 1"),
        ({"launcher": "torchrun", "processes": 2}, "--processes belongs to the local launcher"),
        ({"processes": 0}, "--processes is 0: give at least 1"),
        ({"launcher": "kubernetes"}, "choose one of local, torchrun, slurm"),
        ({"slurm": {"mem_gb": 8}}, "set launcher: slurm"),
        ({"shard": "full"}, "--shard is full, but each run has one process"),
        ({"launcher": "torchrun", "nproc": 1, "shard": "grads"}, "--shard is grads, but each run has one process"),
        ({"launcher": "torchrun", "nproc": 2, "shard": "half"}, "shard is 'half': choose one of full, grads"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        LaunchConfig(**settings)
