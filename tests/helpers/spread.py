"""What two processes do with one policy spread over them (FSDP2), and what one process does alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from bench.algorithm.kl import kl_policy
from bench.algorithm.optimizers import full_state, load_full_state, make_optimizer
from bench.algorithm.rollout import RolloutConfig, sample
from bench.algorithm.update import Updater
from bench.api import Budget, Rewards
from bench.backbones.hunyuanvideo15.backbone import HunyuanVideo15
from bench.core.ledger import Ledger
from bench.core.parallelism import Shard
from bench.core.rng import normal, stream
from bench.core.world import World, is_peer_loss
from methods.sage_grpo import SAGEGRPO
from tests.helpers.full_size import LONG, SHORT

BUDGET = Budget(
    **{"updates": 2, "prompts": 2, "group_size": 4, "steps": 4, "train_steps": 2, "shift": 5.0, "guidance": 6.0},
    **{"lr": 1e-3, "micro_batch": 4, "grad_clip": 1.0},
)
PROMPTS = [SHORT, LONG]


class Case(NamedTuple):
    """One way to train over two processes."""

    params: dict[str, Any]
    shard: Shard
    context: int = 1
    moved: float = 2e-3
    """Bound on the difference of a weight after two updates, relative to the learning rate, which AdamW's steps are as
    long as: it divides a gradient by its own size, so that roundings count more where the gradient is small."""


CASES = {
    "LoRA": Case({"lora_rank": 4, "gradient_checkpointing": True}, "full"),
    "LoRA on bfloat16, gathered till backward": Case({"lora_rank": 4, "dtype": "bfloat16"}, "grads"),
    "all weights": Case({"lora_rank": 0, "gradient_checkpointing": True}, "full"),
    "all weights, gathered till backward": Case({"lora_rank": 0}, "grads"),
    "all weights and context": Case({"lora_rank": 0}, "full", context=2, moved=2e-2),
}
SIZE = (5, 8, 8)
ANCHORED = {"LoRA": {"lora_rank": 4, "gradient_checkpointing": True}, "all": {"lora_rank": 0}}


def make(folder: Path, world: World, params: dict[str, Any]) -> HunyuanVideo15:
    """The backbone as `world` holds it."""
    parallel = {"context": world.copies} if world.shard else None
    backbone = HunyuanVideo15(folder, size=SIZE, **params, parallel=parallel, shard=world.shard)
    backbone.reset(stream(0, "initial_policy"))
    return backbone


def updates(folder: Path, case: Case, world: World) -> dict[str, Any]:
    """Two updates with a moving anchor and the KL's share of the gradient."""
    backbone = make(folder, world, case.params)
    policy = kl_policy("dual", controller="constant", weight=0.3, every=1)
    ledger, method, state, found = Ledger(), SAGEGRPO(), policy.init_state(), []
    taken = make_optimizer(BUDGET, backbone.parameters())
    settings = RolloutConfig(BUDGET, "predicted_x0", "distinct", 0, world=world)
    for index in range(BUDGET.updates):
        backbone.refresh_anchor("moving")
        rollout = sample(backbone, method, backbone.encode(PROMPTS), settings, index, ["moving"], ledger)
        rewards = Rewards({"r": normal(0, [("rewards", index)], (2, 4))[0]}, {"r": 1.0})
        updater = Updater(backbone, method, policy, taken, BUDGET, 0, ledger, probe_every=1, world=world)
        state, log = updater(rollout, rewards, state, index)
        found.append({"own": rollout.own, "x": rollout.x, "logp": rollout.logp_old, "log": log})
    with backbone.as_anchor("fixed"):
        base = backbone.velocity(*_point(2), backbone.encode(PROMPTS), 1.0)
    return {"rounds": found, "policy": backbone.state_dict(), "base": base, "ledger": ledger.totals()}


def _point(b: int) -> tuple[Tensor, Tensor]:
    return normal(0, [("point", i) for i in range(b)], (8, 2, 2, 2)), torch.full((b,), 0.7)


def muon(folder: Path, world: World, checkpoint: dict[str, Any] | None = None) -> dict[str, Any]:
    """Two steps of Muon on given gradients, from the start or from a checkpoint; all that they leave."""
    backbone = make(folder, world, {"lora_rank": 0})
    spread = backbone if world.shard else None
    optimizer = make_optimizer(dataclasses.replace(BUDGET, optimizer="muon"), backbone.parameters(), spread)
    if checkpoint is not None:
        backbone.load_state_dict(checkpoint["policy"])
        load_full_state(optimizer, checkpoint["optimizer"], spread)
    for step in range(2):
        for i, p in enumerate(backbone.parameters()):
            p.grad = backbone.part_of(torch.randn(p.shape, generator=stream(step, "gradient", i)), p)
        optimizer.step()
    return {"policy": backbone.state_dict(), "optimizer": full_state(optimizer, spread)}


def gradients(folder: Path, world: World, params: dict[str, Any], *, between: bool) -> Tensor:
    """All gradients in one row; `between`: with an anchor's forward pass between forward and backward."""
    backbone = make(folder, world, params)
    with torch.no_grad():
        for i, p in enumerate(backbone.parameters()):
            p.add_(backbone.part_of(0.05 * torch.randn(p.shape, generator=stream(1, "shake", i)), p))
    backbone.refresh_anchor("moving")
    v = backbone.velocity(*_point(2), backbone.encode(PROMPTS), 6.0)
    if between:
        for name in ("moving", "fixed"):
            with backbone.as_anchor(name):
                backbone.velocity(*_point(2), backbone.encode(PROMPTS), 1.0)
    v.square().sum().backward()
    grads = [p.grad for p in backbone.parameters() if p.grad is not None]
    return torch.cat([(g.full_tensor() if isinstance(g, DTensor) else g).flatten() for g in grads])


def lengths(folder: Path, world: World) -> Tensor:
    """Gradient where the processes' micro-batches hold texts of one and of two lengths."""
    backbone = make(folder, world, {"lora_rank": 0})
    texts = [PROMPTS, [SHORT, SHORT]]
    for share in [world.rank] if world.shard else [0, 1]:
        backbone.velocity(*_point(2), backbone.encode(texts[share]), 6.0).square().sum().backward()
    grads = [p.grad for p in backbone.parameters() if p.grad is not None]
    return torch.cat([(g.full_tensor() if isinstance(g, DTensor) else g).flatten() for g in grads])


def scenario(world: World, folder: Path) -> dict[str, Any]:
    """Everything that the tests look at, in one start of two processes."""
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        found[name] = updates(folder, case, dataclasses.replace(world, shard=case.shard, copies=case.context))
    full = dataclasses.replace(world, shard="full")
    found["muon"] = muon(folder, full)
    found["muon resumed"] = muon(folder, full, torch.load(folder / "muon.pt", weights_only=True))
    for shard in ("full", "grads"):
        there = dataclasses.replace(world, shard=shard)
        for kind, params in ANCHORED.items():
            pair = [gradients(folder, there, params, between=between) for between in (False, True)]
            found[f"anchored {kind} {shard}"] = pair
    found["lengths"] = lengths(folder, full)
    if world.rank == 0:  # the other process ends meanwhile
        try:
            lengths(folder, full)
        except RuntimeError as error:
            found["lost"] = (is_peer_loss(error), str(error))
    return found
