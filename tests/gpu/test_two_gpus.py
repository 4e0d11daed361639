"""Two processes against one, on the CPU by gloo and on two GPUs by NCCL: samples, weights or tokens are shared."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest

from bench.core.world import SINGLE_PROCESS, World
from tests.helpers import context, pair, parity, sharded

PLACE = {"lora_rank": 4, "gradient_checkpointing": True}
BUDGET = dataclasses.replace(sharded.BUDGET, updates=1, group_size=2, steps=3, train_steps=1, micro_batch=2)
CASES = {"data": None, "full": "full"}
"""Who shares what: samples alone, or FSDP2's weights as well."""
BOUNDS = {"cpu": 5e-7, "cuda": 1e-5}
"""Relative to the largest value: gradients are added in another order, and NCCL adds in one of its own."""
WEIGHTS = 1e-2
"""A weight after the update, relative to the learning rate: AdamW divides a gradient by its size."""


def scenario(world: World, folder: Path, device: str) -> dict[str, Any]:
    """All results of one process, from one start of two."""
    results: dict[str, Any] = {}
    for name, shard in CASES.items():
        case = sharded.Case({**PLACE, "device": device}, shard or "full")
        results[name] = sharded.updates(folder, case, dataclasses.replace(world, shard=shard), BUDGET)
    results["context"] = context.in_a_pair(world, device)
    return results


@pytest.fixture(scope="module")
def both(folder: Path, two: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    run = functools.partial(scenario, folder=folder, device=two)
    return pair.run_in(2, tmp_path_factory.mktemp("two"), run)


@pytest.fixture(scope="module")
def alone(folder: Path, two: str) -> dict[str, Any]:
    return sharded.updates(folder, sharded.Case({**PLACE, "device": two}, "full"), SINGLE_PROCESS, BUDGET)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_do_the_updates_of_one(
    both: list[dict[str, Any]], alone: dict[str, Any], two: str, name: str
) -> None:
    for result in (process[name] for process in both):
        assert result["ledger"] == alone["ledger"]
        for mine, whole in zip(result["rounds"], alone["rounds"], strict=True):
            expected = whole["x"].index_select(1, mine["own"]).cpu()
            top = expected.abs().max()
            what = f"{two}, two processes that share {name}: latents over the largest"
            parity.within(what, mine["x"] / top, expected / top, BOUNDS[two])
        assert all(min(each["log"].step_rms) > 0 for each in result["rounds"]), "the update changed nothing"
    policy, want = both[0][name]["policy"], alone["policy"]
    assert policy.keys() == want.keys()
    for key in want:
        what = f"{two}, two processes that share {name}: weights over the learning rate"
        parity.within(what, policy[key] / BUDGET.lr, want[key].cpu() / BUDGET.lr, WEIGHTS)


def test_two_processes_share_the_tokens_of_a_sample(both: list[dict[str, Any]], two: str) -> None:
    v, grads = context.forward_and_backward(context.tiny().to(two))
    top = float(v.abs().max())
    largest = max(float(grad.abs().max()) for grad in grads.values())
    for process in both:
        result = process["context"]
        parity.within(f"{two}, context: velocity over the largest", result["v"] / top, v / top, 2 * BOUNDS[two])
        assert result["grads"].keys() == grads.keys()
        for name, grad in grads.items():
            what = f"{two}, context: gradients over the largest"
            parity.within(what, result["grads"][name] / largest, grad / largest, 2 * BOUNDS[two])
