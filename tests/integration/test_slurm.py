"""Jobs of Slurm: on one node, on several nodes for one run, and how the statuses of the nodes are combined."""

from __future__ import annotations

import queue
import sys
import threading
import time
import types
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from submitit.core.utils import FailedJobError, UncompletedJobError

from bench import store
from bench.api import BenchError
from bench.core.parallelism import ProcessLayout
from bench.core.progress import Step
from bench.core.world import SINGLE_PROCESS
from bench.launch import slurm
from bench.launch.config import LaunchConfig, load_launch_config
from bench.launch.jobs import suite_jobs
from bench.launch.run import run_suites
from bench.launch.slurm import FOLDER, PORTS, LoggedSteps, SlurmLauncher, combine_statuses, run_job, this_node
from bench.launch.torchrun import KILLED_MESSAGE, Node
from bench.store.files import read_lines
from bench.store.record import JOB, read_run
from bench.suite.job import BaseRun, Job
from bench.suite.prepared import prepare
from bench.suite.schema import Suite
from tests.helpers.toy_suite import LABEL, launch_one, run_alone, toy_importable, toy_suite, training_job

THIS_MACHINE = {"cluster": "local", "timeout_min": 10}
"""submitit's own executor of this machine; a task of a job stands for a node."""
SECONDS = 30.0
"""From the last line of a run to the end of its jobs: far below the half hour that a process waits for a hung one."""
BOUND = 2e-6
"""As in test_launchers.py."""


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Suite]:
    with toy_importable():
        yield toy_suite(tmp_path)


class TaskOfThread:
    """submitit's environment of a task; the thread's name is the number of the node."""

    job_id, num_tasks, hostnames = "1234_7", 2, ("localhost", "elsewhere")

    @property
    def global_rank(self) -> int:
        return int(threading.current_thread().name)


def on_two_nodes(job: Job, layout: ProcessLayout) -> list[tuple[str, str | None]]:
    """The statuses that the tasks of two nodes return for one run."""
    statuses: list[Any] = [None, None]

    def run_task(rank: int) -> None:
        statuses[rank] = run_job(job, layout)

    threads = [threading.Thread(target=run_task, args=(rank,), name=str(rank)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


@pytest.mark.slow
def test_a_run_over_two_nodes_ends_with_a_killed_process_and_resumes_to_the_record_of_one(
    tmp_path: Path, toy: Suite, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    job = training_job(toy, tmp_path / "two")
    monkeypatch.setenv("TOY_KILLS", "1 6")
    with monkeypatch.context() as patch:
        patch.setattr(slurm, "_submitit", lambda: types.SimpleNamespace(JobEnvironment=TaskOfThread))
        first, second = on_two_nodes(job, ProcessLayout(nodes=2))
    assert time.time() - (job.folder / store.TRAIN).stat().st_mtime < SECONDS
    assert second == ("killed", KILLED_MESSAGE)
    assert first[0] == "lost"
    assert "process 0 of 2 lost the others" in str(first[1])
    assert (job.folder / "checkpoint.pt").exists()
    monkeypatch.delenv("TOY_KILLS")
    outcome = launch_one(job, LaunchConfig("slurm", nodes=2, slurm=THIS_MACHINE))
    assert (outcome.finished, outcome.failed, outcome.errors) == (1, 0, 0), capfd.readouterr().err
    one = training_job(toy, tmp_path / "one")
    assert run_alone(one, SINGLE_PROCESS) == "finished"
    (record, scores), (expected, others) = read_run(job.folder), read_run(one.folder)
    assert record.provenance["processes"] == 2
    changed = {"seconds", "peak_memory_mb", "provenance", "scores_digest", "train_digest", "attempt", "ledger"}
    assert record.model_dump(exclude=changed) == expected.model_dump(exclude=changed)
    assert record.ledger == {**expected.ledger, "restarts": 1}
    assert scores["value"].tolist() == pytest.approx(others["value"].tolist(), rel=BOUND)
    rewards = [[line["reward"] for line in read_lines(folder / store.TRAIN)] for folder in (job.folder, one.folder)]
    assert rewards[0] == pytest.approx(rewards[1], rel=BOUND)
    assert not list(job.folder.glob(f"*{JOB}"))


def test_progress_of_a_job_is_read_from_its_log(tmp_path: Path, toy: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "READ_EVERY", -1.0)
    base, job = BaseRun(prepare(toy), tmp_path / "base", "d"), training_job(toy, tmp_path)
    job.folder.mkdir(parents=True)
    log = job.folder / store.TRAIN
    log.write_text('{"update": 0, "reward": 0.5}\n')
    messages = LoggedSteps([base, job])
    with pytest.raises(queue.Empty):  # done by an earlier call
        messages.get_nowait()
    with log.open("a") as file:
        file.write('{"update": 1, "reward": 0.75}\n{"update": 2, "rew')  # the last line is being written
    assert messages.get_nowait() == (job.label, Step("train", 2, toy.budget.updates, reward=0.75))
    with pytest.raises(queue.Empty):
        messages.get_nowait()


def test_a_job_on_one_node_does_a_run_or_names_the_error(
    tmp_path: Path, toy: Suite, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    monkeypatch.setenv("TOY_REFUSES", "the toy refuses: fix it.")
    outcome = run_suites([prepare(toy)], results, LaunchConfig("slurm", slurm=THIS_MACHINE))
    assert (outcome.finished, outcome.failed, outcome.errors) == (1, 0, 1)
    assert f"{LABEL}: error: the toy refuses: fix it." in capfd.readouterr().err
    assert read_run(results / "toy" / "base")[0].status == "finished"
    assert list((results / "toy" / FOLDER).glob("*_log.out"))


@pytest.fixture
def sbatch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An `sbatch` that accepts a job and does nothing; returns the folder with the submitted script."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, text in {
        "sbatch": f'cp "$1" {folder}/submitted.sh\necho "Submitted batch job 77"',
        "srun": "exit 0",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def sbatch_options(script: Path) -> dict[str, str]:
    """The #SBATCH lines of a job's script."""
    lines = [line.removeprefix("#SBATCH --") for line in script.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("srun"))


def test_slurm_gets_one_array_with_a_job_per_run(tmp_path: Path, toy: Suite, sbatch: Path) -> None:
    jobs = suite_jobs(prepare(toy), tmp_path)
    settings = {"slurm_partition": "gpu", "timeout_min": 60, "gpus_per_node": 8}
    launcher = SlurmLauncher(jobs, LaunchConfig("slurm", slurm=settings), tmp_path / "toy")
    options = sbatch_options(sbatch / "submitted.sh")
    assert {key: options[key] for key in ("array", "job-name", "partition", "time", "gpus-per-node")} == {
        **{"array": "0-1%2", "job-name": "toy", "partition": "gpu", "time": "60", "gpus-per-node": "8"},
    }
    assert options["nodes"] == "1"
    assert [handle.job_id for handle in launcher.handles.values()] == ["77_0", "77_1"]
    assert list(launcher.handles) == [job.folder for job in jobs]


def test_a_run_over_nodes_has_a_task_on_each(tmp_path: Path, toy: Suite, sbatch: Path) -> None:
    path = tmp_path / "nodes.yaml"
    settings = {"launcher": "slurm", "nodes": 4, "nproc": 8, "shard": "full", "slurm": {"gpus_per_node": 8}}
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    launch = load_launch_config(path)
    assert launch.layout == ProcessLayout(nproc=8, shard="full", nodes=4)
    assert launch.layout.size == 32
    (handle,) = SlurmLauncher([training_job(toy, tmp_path)], launch, tmp_path / "toy").handles.values()
    options = sbatch_options(sbatch / "submitted.sh")
    assert (options["nodes"], options["ntasks-per-node"], options["gpus-per-node"]) == ("4", "1", "8")
    assert handle.num_tasks == 4


def test_the_rendezvous_is_on_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"SLURM_ARRAY_JOB_ID": "1234", "SLURM_ARRAY_TASK_ID": "7", "SLURM_NTASKS": "3", "SLURM_PROCID": "2"}
    variables |= {"SLURM_JOB_NODELIST": "gpu[07-08],cpu3", "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "1241"}
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    assert this_node(3) == Node(rank=2, host="gpu07", port=PORTS[zlib.crc32(b"1234_7") % len(PORTS)])
    assert this_node(1) == Node()
    with pytest.raises(BenchError, match=r"the job has 3 task\(s\), but its run has 2 nodes"):
        this_node(2)


def test_a_mistake_comes_before_the_loss_that_follows_from_it() -> None:
    with pytest.raises(BenchError, match="fix the suite"):
        combine_statuses([("lost", "process 0 lost the others"), ("error", "fix the suite"), ("done", None)])
    with pytest.raises(BenchError, match="lost the others"):
        combine_statuses([("lost", "process 0 lost the others"), ("done", None)])
    with pytest.raises(RuntimeError, match=r"a job stopped:\nTraceback"):
        combine_statuses([("lost", "process 0 lost the others"), ("killed", KILLED_MESSAGE), ("bug", "Traceback")])
    with pytest.raises(BenchError, match="a process was killed"):
        combine_statuses([("lost", "process 0 lost the others"), ("killed", KILLED_MESSAGE)])
    assert combine_statuses([("failed", "reward is NaN"), ("done", None)]) == ("failed", "reward is NaN")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nodes": 0}, "nodes is 0: give at least 1"),
        ({"nodes": 2}, "several nodes for one run need jobs of Slurm"),
        ({"launcher": "torchrun", "nodes": 2, "nproc": 8}, "several nodes for one run need jobs of Slurm"),
        ({"launcher": "slurm", "nodes": 2, "slurm": {"cluster": "debug"}}, "remove cluster: debug"),
        ({"launcher": "slurm", "slurm": {"nodes": 2}}, r"slurm\.nodes is set by the launcher: write nodes and nproc"),
        ({"launcher": "slurm", "slurm": {"tasks_per_node": 8}}, r"slurm\.tasks_per_node is set by the launcher"),
    ],
)
def test_nodes_that_contradict_the_launcher_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        LaunchConfig(**settings)


def test_processes_of_all_nodes_share_the_micro_batches(tmp_path: Path, toy: Suite) -> None:
    with pytest.raises(BenchError, match="6 processes cannot share the 4 micro-batches"):
        run_suites([prepare(toy)], tmp_path / "results", LaunchConfig("slurm", nproc=2, nodes=3))
    assert not (tmp_path / "results").exists()


class Handle:
    """A job of submitit that ended without a result, which no executor of this machine can produce."""

    job_id, state, paths = "7_0", "NODE_FAIL", types.SimpleNamespace(stderr="7_0.err")

    def __init__(self, cause: Exception):
        self.cause = cause

    def results(self) -> Any:
        raise self.cause


def test_a_job_that_is_lost_or_broken_is_an_error(tmp_path: Path, toy: Suite, sbatch: Path) -> None:
    job = training_job(toy, tmp_path)
    launcher = SlurmLauncher([job], LaunchConfig("slurm"), tmp_path / "toy")
    launcher.handles = {job.folder: Handle(UncompletedJobError("no output"))}
    with pytest.raises(
        BenchError, match=r"Slurm job 7_0 ended without a result \(state NODE_FAIL.*run the same command again"
    ):
        launcher.run(job)
    launcher.handles = {job.folder: Handle(FailedJobError("Traceback: ZeroDivisionError"))}
    with pytest.raises(FailedJobError, match="ZeroDivisionError"):  # a bug, shown with its traceback
        launcher.run(job)


def test_what_slurm_does_not_take_is_refused(
    tmp_path: Path, toy: Suite, sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BenchError, match=r"cannot be submitted .*'partitions'.*: fix 'slurm:' in the launch file"):
        run_suites([prepare(toy)], tmp_path, LaunchConfig("slurm", slurm={"slurm_partitions": "gpu"}))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match=r"cannot be submitted \(.*srun.*run this command on a node that has sbatch"):
        run_suites([prepare(toy)], tmp_path, LaunchConfig("slurm"))


def test_slurm_without_submitit_says_how_to_install_it(
    tmp_path: Path, toy: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(BenchError, match=r"needs submitit: install it with `pip install 'grpo-video-bench\[slurm\]'`"):
        run_suites([prepare(toy)], tmp_path, LaunchConfig("slurm"))
