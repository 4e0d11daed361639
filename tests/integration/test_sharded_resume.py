"""A run whose weights are sharded over two processes goes on in one: its checkpoint does not depend on the layout."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest

from bench.core.progress import silent
from bench.core.world import SINGLE_PROCESS, World
from bench.store.curve import read_points
from bench.suite.schema import Suite
from bench.train.run import load_models
from bench.train.trainer import Trainer
from tests.helpers.nano_suite import first_run, tiny
from tests.helpers.pair import run_in


def start(suite: Suite, folder: Path, world: World) -> Trainer:
    """The trainer of the suite's first run, from its checkpoint if it has one."""
    job = first_run(suite, folder)
    models = load_models(job, world=world)
    return Trainer.new(job, models.backbone, models.evaluators, world)


def first_update(world: World, suite: Suite, folder: Path) -> str:
    """One update with sharded weights; returns the hash of the weights."""
    trainer = start(suite, folder, dataclasses.replace(world, shard="full"))
    trainer.train(silent, 1)
    return trainer.weights


@pytest.mark.slow
def test_a_sharded_run_resumes_in_one_process(tmp_path: Path) -> None:
    suite = tiny("budget.micro_batch=2", "backbone.train.lora_rank=4", "rows=[{method: cps}]", "evaluation.every=1")
    folder = tmp_path / "run"
    hashes = run_in(2, tmp_path, partial(first_update, suite=suite, folder=folder))
    trainer = start(suite, folder, SINGLE_PROCESS)
    assert (trainer.updates_done, trainer.weights) == (1, hashes[0])
    assert trainer.weights == trainer.weights_now()
    point = read_points(folder)  # scored with sharded weights
    assert (set(point["update"]), len(point)) == ({1}, 36 * 3)
    trainer.train(silent)
    assert trainer.updates_done == 2
    assert read_points(folder).equals(point)
    assert trainer.ledger.counts["curve_videos"] == 36
