"""Trackers: what they show is what the run wrote, once per update, and nothing of the run depends on them."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bench import store
from bench.cli import main
from bench.core.errors import BenchError
from bench.core.parallelism import ProcessLayout
from bench.core.progress import Step, silent
from bench.core.world import SINGLE_PROCESS, World
from bench.launch import config, torchrun, worker
from bench.launch.config import LaunchConfig, load_launch_config
from bench.launch.slurm import run_job
from bench.launch.torchrun import write_job
from bench.launch.trackers import FOLDER, flat_numbers, run_settings, tracked
from bench.suite.job import Job
from bench.train.run import execute
from tests.helpers.toy_suite import LABEL, UPDATES, launch_one, toy_importable, toy_suite, training_job

ONE = ("tensorboard",)


def run(job: Job, *names: str, warn: Any = pytest.fail, report: Any = silent) -> store.RunRecord:
    """Do the run in this process, shown by these trackers."""
    with tracked(job, names, report, warn) as follow:
        return execute(job, follow)


def events(job: Job) -> EventAccumulator:
    """What TensorBoard shows of the run."""
    folder = job.suite_folder / FOLDER / "tensorboard" / "toy" / "cps-dual" / "seed-0" / job.digest
    return EventAccumulator(str(folder)).Reload()


def points(job: Job, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(job).Scalars(tag)]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return training_job(toy_suite(tmp_path), tmp_path)


def test_tensorboard_shows_what_the_run_wrote(job: Job) -> None:
    record = run(job, *ONE)
    lines = store.read_lines(job.folder / store.TRAIN)
    assert len(lines) == UPDATES
    for tag, value in {
        "reward": lambda line: line["reward"],
        "rewards/brightness": lambda line: line["rewards"]["brightness"],
        "policy_loss": lambda line: line["policy_loss"],
        "kl_anchor": lambda line: line["kl_anchor"],
        "kl_weight/anchor": lambda line: line["kl_weight"]["anchor"],
        "grad_norm": lambda line: line["grad_norm"][0],
        "ratio_error": lambda line: line["ratio_error"],
        "ledger/nfe_rollout": lambda line: line["ledger"]["nfe_rollout"],
        "seconds/update": lambda line: line["seconds"]["update"],
    }.items():
        assert points(job, tag) == [(line["update"], pytest.approx(value(line), rel=1e-6)) for line in lines], tag
    mean = store.read_run(job.folder)[1]["value"].mean()
    assert points(job, "held_out/brightness") == [(record.updates_done, pytest.approx(mean, rel=1e-6))]
    (settings,) = (job.suite_folder / FOLDER).rglob("hparams.yml")
    assert "settings/budget/updates: 8" in settings.read_text(encoding="utf-8")


def test_a_tracked_run_has_the_bits_of_one_without(job: Job, tmp_path: Path) -> None:
    plain = training_job(job.suite, tmp_path / "plain")
    tracked_record, record = run(job, *ONE), run(plain)
    assert job.digest == plain.digest
    assert tracked_record.scores_digest == record.scores_digest
    first, second = (store.read_lines(each.folder / store.TRAIN) for each in (job, plain))
    assert [{**line, "seconds": None} for line in first] == [{**line, "seconds": None} for line in second]


def test_a_resumed_run_goes_on_without_doubled_points(job: Job) -> None:
    def kill(step: Step) -> None:
        if step == ("train", 7, UPDATES, "", step.reward) and not (job.folder / "again").exists():
            (job.folder / "again").touch()
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(job, *ONE, report=kill)
    assert [step for step, _ in points(job, "reward")] == list(range(7))
    count = next((job.suite_folder / FOLDER / "tensorboard").glob("*.json"))
    count.write_text(json.dumps({"updates": 6}), encoding="utf-8")  # killed between the point and its count
    record = run(job, *ONE, report=kill)
    assert record.ledger["restarts"] == 1
    assert [step for step, _ in points(job, "reward")] == list(range(UPDATES))
    assert len(list((job.suite_folder / FOLDER).rglob("hparams.yml"))) == 1


def test_a_tracker_that_does_not_start_stops_the_run_before_training(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any) -> None:
        raise ValueError("no\nplace")

    monkeypatch.setattr(TensorBoardTracker, "start", refuse)
    with pytest.raises(BenchError, match=f"tracker tensorboard cannot be started for {LABEL} .ValueError: no place"):
        run(job, *ONE)
    assert not (job.folder / store.TRAIN).exists()


def test_a_tracker_that_fails_warns_once_and_the_run_goes_on(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    log, warnings = TensorBoardTracker.log, []

    def fail_later(self: Any, values: Any, step: int) -> None:
        if step == 2:
            raise OSError("the disk is full")
        log(self, values, step)

    monkeypatch.setattr(TensorBoardTracker, "log", fail_later)
    record = run(job, *ONE, warn=warnings.append)
    assert record.status == "finished"
    assert len(store.read_lines(job.folder / store.TRAIN)) == UPDATES
    assert warnings == [
        f"warning: tracker tensorboard failed for {LABEL} (OSError: the disk is full); the run goes on without it, "
        "and its own files stay complete."
    ]
    assert [step for step, _ in points(job, "reward")] == [0, 1]


def test_a_tracker_that_changes_the_process_is_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def settings(self: Any, values: Any) -> None:
        torch.set_num_threads(2)

    monkeypatch.setattr(TensorBoardTracker, "store_init_configuration", settings)
    try:
        with pytest.raises(BenchError, match="tracker tensorboard changes num_threads from 1 to 2"):
            run(job, *ONE)
    finally:
        torch.set_num_threads(1)


def test_the_local_launcher_passes_the_trackers_on(job: Job) -> None:
    with toy_importable():
        assert launch_one(job, LaunchConfig(trackers=ONE)).finished == 1
    assert [step for step, _ in points(job, "reward")] == list(range(UPDATES))


@pytest.mark.parametrize("process", ["rank", "slurm"])
def test_each_kind_of_process_tracks(job: Job, process: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if process == "rank":
        monkeypatch.setattr(worker, "process_group", lambda *_: contextlib.nullcontext(SINGLE_PROCESS))
        assert worker.main(write_job(job, trackers=ONE)) == 0
    else:
        assert run_job(job, ProcessLayout(), ONE) == ("finished", None)
    assert [step for step, _ in points(job, "reward")] == list(range(UPDATES))


def test_only_the_main_process_tracks(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = []
    monkeypatch.setattr(worker, "process_group", lambda *_: contextlib.nullcontext(World(1, 2)))
    monkeypatch.setattr(worker, "execute", lambda job, report, world: reports.append(report))
    monkeypatch.setattr(worker, "tracked", lambda *_: pytest.fail("a tracker of another process"))
    assert worker.main(write_job(job, trackers=ONE)) == 0
    assert reports == [silent]


def test_torchrun_passes_the_trackers_and_their_warnings_on(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = (
        "import json, sys; print('warning', json.dumps('careful'))\n"
        "print('error', json.dumps(f\"tracked by {json.load(open(sys.argv[1]))['trackers']}\")); sys.exit(2)"
    )
    monkeypatch.setattr(torchrun, "command", lambda layout, node, path: [sys.executable, "-c", program, str(path)])
    launch_one(job, LaunchConfig("torchrun", trackers=ONE))
    err = capsys.readouterr().err
    assert "careful" in err
    assert "tracked by ['tensorboard']" in err


def test_settings_and_numbers_have_a_path(job: Job) -> None:
    settings = run_settings(job)
    assert settings["row"] == "cps-dual"
    assert settings["settings/row/kl/params/every"] == 1
    assert settings["digest"] == job.digest
    assert not any(key.startswith("settings/rows") for key in settings)
    line = {"reward": 1.0, "lr": [0.1], "grad_norm": [1.0, 2.0], "weights_after": "ab", "rewards": {"VQ": 0.5}}
    assert flat_numbers(line) == {"reward": 1.0, "lr": 0.1, "grad_norm/0": 1.0, "grad_norm/1": 2.0, "rewards/VQ": 0.5}


def test_a_count_that_is_none_is_refused(job: Job) -> None:
    folder = job.suite_folder / FOLDER / "tensorboard"
    store.write_text(folder / f"{job.digest}.json", '{"updates": "x"}')
    with pytest.raises(BenchError, match="has no whole number of updates: delete it"):
        run(job, *ONE)


def test_a_missing_package_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise config.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(config.metadata, "version", missing)
    for name, command in config.TRACKERS.items():
        assert main(["run", "nano", "--results", str(tmp_path), "--tracker", name]) == 2
        err = capsys.readouterr().err
        assert f"--tracker {name} needs the package {name!r}: install it with `{command}`." in err
        assert err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_launch_file_may_name_trackers(tmp_path: Path) -> None:
    path = tmp_path / "launch.yaml"
    path.write_text("trackers: [tensorboard]\n", encoding="utf-8")
    assert load_launch_config(path).trackers == ["tensorboard"]
    path.write_text("trackers: [comet]\n", encoding="utf-8")
    with pytest.raises(BenchError, match="tracker is 'comet': choose one of tensorboard, wandb, trackio"):
        load_launch_config(path)
