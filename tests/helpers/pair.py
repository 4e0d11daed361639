"""The bodies of tests with two processes: each process writes its results to its own file."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.algorithm.forward import ForwardSampler, ForwardUpdater, follow_policy, start_old_policy
from bench.algorithm.rollout import Sampler
from bench.algorithm.sampling import RolloutConfig
from bench.algorithm.update import StepUpdater, UpdateConfig
from bench.api import BenchError, Budget, DivergedError, Rewards
from bench.core.ledger import Ledger
from bench.core.world import SINGLE_PROCESS, World, process_group
from bench.plugins import kl_policy
from bench.train.rewards import RolloutVideos
from methods.diffusion_nft import DiffusionNFT
from methods.sage_grpo import SAGEGRPO
from tests.helpers.toy import Brightness, ToyBackbone

BUDGET = Budget(
    **{"updates": 3, "prompts": 2, "group_size": 4, "steps": 4, "train_steps": 2, "shift": 5.0, "guidance": 1.0},
    **{"lr": 1e-3, "micro_batch": 2, "grad_clip": 1e9},
)
KL = {"controller": "constant", "weight": 0.3, "every": 1}


def updates(world: World, **changes: Any) -> dict[str, Any]:
    """Three updates of the toy under the dual KL: their results."""
    backbone, ledger, policy = ToyBackbone(), Ledger(), kl_policy("dual", **KL)
    budget = dataclasses.replace(BUDGET, **changes)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=budget.lr)
    settings = RolloutConfig(budget, "predicted_x0", "distinct", 0, world=world)
    method, state, results = SAGEGRPO(), policy.init_state(), []
    texts = [text for text in ("one", "three") for _ in range(budget.group_size)]
    sampler = Sampler(backbone, method, settings, ledger)
    for index in range(budget.updates):
        backbone.refresh_anchor("moving")
        rollout = sampler.sample(backbone.encode(["one", "three"]), index, ["moving"])
        scores = RolloutVideos.decode(backbone, rollout, texts, settings).scores(Brightness())
        values = {name: score.reshape(2, -1) for name, score in scores.items()}
        rewards = Rewards(values, {"brightness": 1.0})
        updater = StepUpdater(backbone, method, policy, optimizer, UpdateConfig(budget, seed=0, world=world), ledger)
        state, log = updater(rollout, rewards, state, index)
        results.append(
            {"samples": rollout.samples, "x": rollout.x, "x0": rollout.x0, "logp": rollout.logp_old, "log": log}
        )
        results[-1] |= {"rewards": values["brightness"], "state": state}
    world.check_same_parameters(backbone.parameters(), "at the end")
    policy_now = torch.cat([p.detach().flatten() for p in backbone.parameters()])
    return {"updates": results, "policy": policy_now, "ledger": ledger.state() | {"seconds": {}}}


def forward_updates(world: World, **changes: Any) -> dict[str, Any]:
    """Three updates of the toy with an old policy that is far behind: the policy, the old one and the counts."""
    backbone, ledger, method = ToyBackbone(), Ledger(), DiffusionNFT()
    budget = dataclasses.replace(BUDGET, **changes)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=budget.lr)
    settings = RolloutConfig(budget, "predicted_x0", "distinct", 0, world=world)
    sampler = ForwardSampler(backbone, method, settings, ledger)
    start_old_policy(method, backbone)
    texts, videos = [text for text in ("one", "three") for _ in range(budget.group_size)], []
    for index in range(budget.updates):
        rollout = sampler.sample(backbone.encode(["one", "three"]), index)
        scores = RolloutVideos.decode(backbone, rollout, texts, settings).scores(Brightness())
        rewards = Rewards({name: score.reshape(2, -1) for name, score in scores.items()}, {"brightness": 1.0})
        config = UpdateConfig(budget, seed=0, world=world)
        ForwardUpdater(backbone, method, kl_policy("none"), optimizer, config, ledger)(rollout, rewards, {}, index)
        follow_policy(method, backbone, 500)  # decay 0.5
        videos.append((rollout.samples, rollout.x0))
    world.check_same_parameters(backbone.anchors["old"], "at the end")
    flat = {"policy": backbone.parameters(), "old": backbone.anchors["old"]}
    weights = {name: torch.cat([p.detach().flatten() for p in tensors]) for name, tensors in flat.items()}
    return {**weights, "videos": videos, "ledger": ledger.state() | {"seconds": {}}}


def scenario(world: World) -> dict[str, Any]:
    """All results that the tests need, from one start of two processes."""
    results: dict[str, Any] = {"one": updates(world), "two": updates(world, minibatches=2)}
    results |= {"forward": forward_updates(world), "forward, two": forward_updates(world, minibatches=2)}
    results["turns"] = list(world.padded_turns(range(5)))
    results["in order"] = world.gather_in_order([world.rank, world.rank + 2, 4][: 3 - world.rank])
    tensors = [
        torch.ones(2),
        None,
        None,
        torch.tensor([1.5], dtype=torch.bfloat16),
        torch.ones(1, dtype=torch.float64),
    ]
    if world.rank == 1:
        tensors[1] = torch.full((1,), 7.0)
    results["summed"] = world.all_reduce_sum(tensors)
    for name, act in {"divergence": diverge_in_one, "digest": differ_in_one, "file": see_in_one}.items():
        try:
            act(world)
        except BenchError as error:
            results[name] = str(error)
    return results


def diverge_in_one(world: World) -> None:
    with world.raise_together():
        if world.rank == 1:
            raise DivergedError("the policy of process 1 diverged.")


def differ_in_one(world: World) -> None:
    world.check_same_parameters([torch.ones(3) + 1e-7 * world.rank], "after update 9")


def see_in_one(world: World) -> None:
    world.check_equal(None if world.rank else "ab12", "the checkpoint that they see: share the folder")


def _enter(rank: int, size: int, port: int, folder: Path, act: Callable[[World], Any]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with process_group() as world:
        torch.save(act(world), folder / f"{rank}.pt")


def run_in(size: int, folder: Path, act: Callable[[World], Any], start: str = "spawn") -> list[Any]:
    """What `act` returns in each of `size` processes."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context(start)
    enter = functools.partial(_enter, size=size, port=port, folder=folder, act=act)
    workers = [context.Process(target=enter, args=(rank,)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(900)
        assert worker.exitcode == 0, f"a process of the test ended with {worker.exitcode}"
    return [torch.load(folder / f"{rank}.pt", map_location="cpu", weights_only=False) for rank in range(size)]


if __name__ == "__main__":  # a look at the numbers: python tests/pair.py
    import tempfile

    torch.set_num_threads(1)
    single_process = {
        name: updates(SINGLE_PROCESS, **change) for name, change in {"one": {}, "two": {"minibatches": 2}}.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        both = run_in(2, Path(folder), scenario, start=sys.argv[1] if sys.argv[1:] else "spawn")
    for name, single in single_process.items():
        gap = (both[0][name]["policy"] - single["policy"]).abs().max()
        print(name, "policy differs by", float(gap), "ledger equal:", both[0][name]["ledger"] == single["ledger"])
        for index, (first, second, whole) in enumerate(
            zip(both[0][name]["updates"], both[1][name]["updates"], single["updates"], strict=True)
        ):
            x = torch.empty_like(whole["x"])
            for part in (first, second):
                x[:, part["samples"]] = part["x"]
            print(" update", index, "latents equal:", torch.equal(x, whole["x"]), "log:", first["log"], whole["log"])
    print({name: both[0][name] for name in ("turns", "in order", "summed", "divergence", "digest")})
    print({name: both[1][name] for name in ("turns", "in order", "summed", "divergence", "digest")})
