"""Training of a policy that is sharded over two processes (FSDP2), and of the same policy in one process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from bench.algorithm.optimizers import full_state, load_full_state, make_optimizer
from bench.algorithm.rollout import Sampler
from bench.algorithm.sampling import RolloutConfig
from bench.algorithm.update import StepUpdater, UpdateConfig
from bench.api import Budget, Rewards
from bench.backbones.hunyuanvideo15.backbone import HunyuanVideo15
from bench.core.ledger import Ledger
from bench.core.parallelism import Shard
from bench.core.rng import normal, stream
from bench.core.world import World, is_peer_loss
from bench.plugins import kl_policy
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
    bound: float = 4e-3
    """Bound on the difference of a weight after two updates, relative to the learning rate. AdamW divides a gradient
    by its size, so a step is as long as the learning rate, and rounding matters more for small gradients."""


CASES = {
    "LoRA": Case({"lora_rank": 4, "gradient_checkpointing": True}, "full"),
    "LoRA on bfloat16, gathered until backward": Case({"lora_rank": 4, "dtype": "bfloat16"}, "grads"),
    "all weights": Case({"lora_rank": 0, "gradient_checkpointing": True}, "full"),
    "all weights, gathered until backward": Case({"lora_rank": 0}, "grads"),
    "all weights and context": Case({"lora_rank": 0}, "full", context=2, bound=2e-2),
}
SIZE = (5, 8, 8)
ANCHORED = {"LoRA": {"lora_rank": 4, "gradient_checkpointing": True}, "all": {"lora_rank": 0}}


def make(folder: Path, world: World, params: dict[str, Any]) -> HunyuanVideo15:
    """The backbone of one process of `world`."""
    parallel = {"context": world.cp_degree} if world.shard else None
    backbone = HunyuanVideo15(folder, size=SIZE, **params, parallel=parallel, shard=world.shard)
    backbone.reset(stream(0, "initial_policy"))
    return backbone


def updates(folder: Path, case: Case, world: World, budget: Budget = BUDGET) -> dict[str, Any]:
    """The budget's updates, two by default, with a moving anchor and the KL's share of the gradient."""
    backbone = make(folder, world, case.params)
    policy = kl_policy("dual", controller="constant", weight=0.3, every=1)
    ledger, method, state, rounds = Ledger(), SAGEGRPO(), policy.init_state(), []
    # with torch's eps: with the harness's, a gradient that is rounding alone takes a whole step in any direction
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=budget.lr, weight_decay=budget.weight_decay)
    settings = RolloutConfig(budget, "predicted_x0", "distinct", 0, world=world)
    for index in range(budget.updates):
        backbone.refresh_anchor("moving")
        rollout = Sampler(backbone, method, settings, ledger).sample(backbone.encode(PROMPTS), index, ["moving"])
        rewards = Rewards({"r": normal(0, [("rewards", index)], (budget.prompts, budget.group_size))[0]}, {"r": 1.0})
        updater = StepUpdater(
            backbone, method, policy, optimizer, UpdateConfig(budget, seed=0, probe_every=1, world=world), ledger
        )
        state, log = updater(rollout, rewards, state, index)
        rounds.append({"own": rollout.samples, "x": rollout.x, "logp": rollout.logp_old, "log": log})
    with backbone.as_anchor("fixed"):
        base = backbone.velocity(*_point(2), backbone.encode(PROMPTS), 1.0)
    return {"rounds": rounds, "policy": backbone.state_dict(), "base": base, "ledger": ledger.totals()}


def _point(b: int) -> tuple[Tensor, Tensor]:
    return normal(0, [("point", i) for i in range(b)], (8, 2, 2, 2)), torch.full((b,), 0.7)


def muon(folder: Path, world: World, checkpoint: dict[str, Any] | None = None) -> dict[str, Any]:
    """Policy and optimizer state after two steps of Muon on fixed gradients, from the start or from a checkpoint."""
    backbone = make(folder, world, {"lora_rank": 0})
    sharded = backbone if world.shard else None
    optimizer = make_optimizer(dataclasses.replace(BUDGET, optimizer="muon"), backbone.parameters(), sharded)
    if checkpoint is not None:
        backbone.load_state_dict(checkpoint["policy"])
        load_full_state(optimizer, checkpoint["optimizer"], sharded)
    for step in range(2):
        for i, p in enumerate(backbone.parameters()):
            p.grad = backbone.part_of(torch.randn(p.shape, generator=stream(step, "gradient", i)), p)
        optimizer.step()
    return {"policy": backbone.state_dict(), "optimizer": full_state(optimizer, sharded)}


def gradients(folder: Path, world: World, params: dict[str, Any], *, between: bool) -> Tensor:
    """All gradients as one vector. `between`: run anchors between the forward and the backward pass."""
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


def blended(folder: Path, world: World, params: dict[str, Any]) -> dict[str, Tensor]:
    """The policy and its anchor "old", which has followed it twice."""
    backbone = make(folder, world, params)
    backbone.refresh_anchor("old")
    for decay in (0.25, 0.5):
        with torch.no_grad():
            for i, p in enumerate(backbone.parameters()):
                p.add_(backbone.part_of(torch.randn(p.shape, generator=stream(1, "shake", i)), p))
        backbone.blend_anchor("old", decay)
    return backbone.state_dict()


def followers(world: World, folder: Path) -> dict[str, dict[str, Tensor]]:
    """`blended` for each kind of trained weights, without any forward pass: a short start of its own."""
    return {
        kind: blended(folder, dataclasses.replace(world, shard="full"), params) for kind, params in ANCHORED.items()
    }


def lengths(folder: Path, world: World) -> Tensor:
    """The gradient, with texts of two lengths in one process's micro-batch and of one length in the other's."""
    backbone = make(folder, world, {"lora_rank": 0})
    texts = [PROMPTS, [SHORT, SHORT]]
    for share in [world.rank] if world.shard else [0, 1]:
        backbone.velocity(*_point(2), backbone.encode(texts[share]), 6.0).square().sum().backward()
    grads = [p.grad for p in backbone.parameters() if p.grad is not None]
    return torch.cat([(g.full_tensor() if isinstance(g, DTensor) else g).flatten() for g in grads])


def scenario(world: World, folder: Path) -> dict[str, Any]:
    """All results that the tests compare, from one start of two processes."""
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        results[name] = updates(folder, case, dataclasses.replace(world, shard=case.shard, cp_degree=case.context))
    full = dataclasses.replace(world, shard="full")
    results["muon"] = muon(folder, full)
    results["muon resumed"] = muon(folder, full, torch.load(folder / "muon.pt", weights_only=True))
    for shard in ("full", "grads"):
        layout = dataclasses.replace(world, shard=shard)
        for kind, params in ANCHORED.items():
            plain_and_between = [gradients(folder, layout, params, between=between) for between in (False, True)]
            results[f"anchored {kind} {shard}"] = plain_and_between
    results["lengths"] = lengths(folder, full)
    if world.rank == 0:  # the other process has ended
        try:
            lengths(folder, full)
        except RuntimeError as error:
            results["lost"] = (is_peer_loss(error), str(error))
    return results
