"""A suite of the toy, which processes load in a second, and single runs of it with any launcher."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.core.world import World
from bench.launch.config import LaunchConfig
from bench.launch.jobs import suite_jobs
from bench.launch.launchers import Outcome, run_jobs
from bench.launch.progress import Workload
from bench.suite.job import Job
from bench.suite.load import load_suite
from bench.suite.prepared import prepare
from bench.suite.schema import Suite
from bench.train.run import execute
from tests.helpers.nano_suite import NANO
from tests.helpers.pair import run_in
from tests.helpers.paths import PROJECT

UPDATES = 8
LABEL = "cps-dual seed 0"


def toy_overrides(folder: Path) -> list[str]:
    """What makes the toy's suite of nano's: 8 updates of 8 samples in micro-batches of 2, a moving anchor.

    `folder` takes its (empty) checkpoint.
    """
    weights = folder / "weights"
    weights.mkdir(exist_ok=True)
    return [
        *("suite=toy", f"backbone={{name: 'tests.helpers.toy:LoadedToy', checkpoint: '{weights}'}}"),
        *(f"budget.{key}" for key in (f"updates={UPDATES}", "prompts=2", "group_size=4", "steps=4")),
        *("budget.train_steps=2", "budget.micro_batch=2", "monitor=[]", "evaluator_params={}", "seeds=[0]"),
        "prompts={train: bench/prompts/nano_train.txt, heldout: bench/prompts/nano_heldout.txt}",
        "reward={'tests.helpers.toy:Brightness': {brightness: 1.0}}",
        "evaluation={evaluators: ['tests.helpers.toy:Brightness'], steps: 2, videos_per_prompt: 1}",
        "rows=[{method: cps, kl: {name: dual, params: {every: 1, weight: 0.01, min_weight: 0.001}}}]",
    ]


def toy_suite(folder: Path) -> Suite:
    """The suite of `toy_overrides`."""
    return load_suite(NANO, toy_overrides(folder))


def scored_by(suite: Suite, evaluator: str, metric: str, **params: Any) -> Suite:
    """The suite with another evaluator, for the reward and for the held-out videos."""
    evaluation = suite.evaluation.model_copy(update={"evaluators": [evaluator]})
    changes = {"evaluation": evaluation, "evaluator_params": {evaluator: params}}
    return suite.model_copy(update={**changes, "reward": {evaluator: {metric: 1.0}}})


@contextmanager
def toy_importable() -> Iterator[None]:
    """Let the processes of a run import the toy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PROJECT), prepend=":")
        yield


def training_job(suite: Suite, results: Path) -> Job:
    """The only training run of the suite."""
    (_, job) = suite_jobs(prepare(suite), results)
    return job


def launch_one(job: Job, launch: LaunchConfig) -> Outcome:
    """Do one run with a launcher."""
    outcome = Outcome()
    run_jobs([job], {job.label: Workload(1, 1, 1.0)}, launch, outcome, job.folder.parent)
    return outcome


def run_alone(job: Job, world: World) -> str:
    """Do one run in this process; returns its status."""
    return execute(job, world=world).status


def run_in_two(job: Job, folder: Path) -> list[str]:
    """Do one run in two processes, without a launcher; returns the status of each process.

    The processes are forked from a server that has loaded the modules once.
    """
    multiprocessing.set_forkserver_preload(
        ["tests.helpers.toy_suite", "torch._dynamo"]
    )  # torch.optim loads the latter
    return run_in(2, folder, partial(run_alone, job), start="forkserver")
