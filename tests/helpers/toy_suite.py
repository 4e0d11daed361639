"""A suite of the toy that processes load in a second, and single runs of it, by whichever launcher."""

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
from bench.suite.job import Job
from bench.suite.load import load
from bench.suite.schema import Experiment
from bench.train.run import execute
from tests.helpers.nano_suite import NANO
from tests.helpers.pair import run_in
from tests.helpers.paths import PROJECT

UPDATES = 8
LABEL = "cps-dual seed 0"


def toy_suite(folder: Path) -> Experiment:
    """8 updates of 8 samples in micro-batches of 2, a moving anchor; `folder` takes its (empty) checkpoint."""
    weights = folder / "weights"
    weights.mkdir(exist_ok=True)
    return load(
        NANO,
        [
            *("suite=toy", f"backbone={{name: 'tests.helpers.toy:LoadedToy', checkpoint: {weights}}}"),
            *(f"budget.{key}" for key in (f"updates={UPDATES}", "prompts=2", "group_size=4", "steps=4")),
            *("budget.train_steps=2", "budget.micro_batch=2", "monitor=[]", "evaluator_params={}", "seeds=[0]"),
            "prompts={train: bench/prompts/nano_train.txt, heldout: bench/prompts/nano_heldout.txt}",
            "reward={'tests.helpers.toy:Brightness': {brightness: 1.0}}",
            "evaluation={evaluators: ['tests.helpers.toy:Brightness'], steps: 2, videos_per_prompt: 1}",
            "rows=[{method: cps, kl: {name: dual, params: {every: 1, weight: 0.01, min_weight: 0.001}}}]",
        ],
    )


def scored_by(exp: Experiment, scorer: str, metric: str, **params: Any) -> Experiment:
    """The suite with another scorer."""
    judged = exp.evaluation.model_copy(update={"evaluators": [scorer]})
    change = {"evaluation": judged, "evaluator_params": {scorer: params}, "reward": {scorer: {metric: 1.0}}}
    return exp.model_copy(update=change)


@contextmanager
def found_by_processes() -> Iterator[None]:
    """The processes of a run find the toy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PROJECT), prepend=":")
        yield


def trained(exp: Experiment, results: Path) -> Job:
    """The suite's one run that trains."""
    (_, job) = suite_jobs(exp, results)
    return job


def do_one(job: Job, how: LaunchConfig) -> Outcome:
    """One run by a launcher."""
    outcome = Outcome()
    run_jobs([job], {job.label: (1, 1)}, how, outcome, job.folder.parent)
    return outcome


def alone(job: Job, world: World) -> str:
    """One run in this process; its status."""
    return execute(job, lambda phase, done, total: None, world).status


def in_two(job: Job, folder: Path) -> list[str]:
    """One run in two processes that no launcher has started; the status that each one saw.

    They are forked from a server that has loaded the modules once.
    """
    multiprocessing.set_forkserver_preload(
        ["tests.helpers.toy_suite", "torch._dynamo"]
    )  # torch.optim loads the latter
    return run_in(2, folder, partial(alone, job), start="forkserver")
