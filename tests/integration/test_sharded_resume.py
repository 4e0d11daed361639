"""A run whose weights are sharded over two processes goes on in one: its checkpoint does not depend on the layout."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from bench import store
from bench.core.progress import silent
from bench.core.world import SINGLE_PROCESS, World
from bench.store.curve import read_points
from bench.suite.schema import Suite
from bench.train import checkpoint
from bench.train.run import load_models
from bench.train.trainer import Trainer
from methods.diffusion_nft import DiffusionNFT
from tests.helpers.nano_suite import first_run, tiny
from tests.helpers.pair import run_in


def start(suite: Suite, folder: Path, world: World) -> Trainer:
    """The trainer of the suite's first run, from its checkpoint if it has one."""
    job = first_run(suite, folder)
    models = load_models(job, world=world)
    return Trainer.new(job, models.backbone, models.evaluators, world)


@dataclass(frozen=True, kw_only=True)
class SlowNFT(DiffusionNFT):
    """Its old policy follows from the first update on."""

    def old_decay(self, update: int) -> float:
        return 0.5


def updates(world: World, suite: Suite, folder: Path, until: int) -> str:
    """The first updates with sharded weights; returns the hash of the weights."""
    trainer = start(suite, folder, dataclasses.replace(world, shard="full"))
    trainer.train(silent, until)
    return trainer.weights


@pytest.mark.slow
def test_an_old_policy_of_sharded_processes_is_resumed_in_one(tmp_path: Path) -> None:
    """It has followed the policy, so it is neither the policy nor the base."""
    row = f"rows=[{{method: '{SlowNFT.__module__}:SlowNFT', kl: none, label: slow}}]"
    suite = tiny("budget.micro_batch=2", "backbone.train.lora_rank=4", "budget.updates=3", row)
    folder = tmp_path / "run"
    hashes = run_in(2, tmp_path, partial(updates, suite=suite, folder=folder, until=2))
    stored = checkpoint.read(folder / store.CHECKPOINT)["policy"]
    trainer = start(suite, folder, SINGLE_PROCESS)
    assert (trainer.updates_done, trainer.weights) == (2, hashes[0])
    state = trainer.backbone.state_dict()
    assert state.keys() == stored.keys()
    assert all(state[name].equal(stored[name]) for name in stored)
    old = {name: state[name] for name in state if name.startswith("old:")}
    moved = [name for name, value in old.items() if not value.equal(state[name.replace("old:", "policy:")])]
    assert len(moved) > len(old) / 2, "it is the policy, though it should be behind it"
    trainer.train(silent)
    assert trainer.updates_done == 3


@pytest.mark.slow
def test_a_sharded_run_resumes_in_one_process(tmp_path: Path) -> None:
    suite = tiny("budget.micro_batch=2", "backbone.train.lora_rank=4", "rows=[{method: cps}]", "evaluation.every=1")
    folder = tmp_path / "run"
    hashes = run_in(2, tmp_path, partial(updates, suite=suite, folder=folder, until=1))
    trainer = start(suite, folder, SINGLE_PROCESS)
    assert (trainer.updates_done, trainer.weights) == (1, hashes[0])
    assert trainer.weights == trainer.weights_now()
    point = read_points(folder)  # scored with sharded weights
    assert (set(point["update"]), len(point)) == ({1}, 36 * 3)
    trainer.train(silent)
    assert trainer.updates_done == 2
    assert read_points(folder).equals(point)
    assert trainer.ledger.counts["curve_videos"] == 36
