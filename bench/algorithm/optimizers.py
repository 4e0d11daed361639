"""The optimizer of a suite: AdamW, or Muon for matrices with AdamW for the other parameters.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) orthogonalises the momentum of each matrix; torch's
version accepts matrices only. Both use the learning rate and the weight decay of the budget, and torch's defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch

from bench.api import Backbone, ShardsWeights
from bench.core.budget import Budget
from bench.core.errors import BenchError
from bench.core.world import World

BETAS, EPS = (0.9, 0.999), 1e-15
"""Betas and epsilon of AdamW. Torch's 1e-8 is near the gradients of a LoRA at its start, so that the scale of a loss
would act as a learning rate there."""


class Optimizer(Protocol):
    """The interface of an optimizer, which torch's optimizers have."""

    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def step(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class CombinedOptimizer:
    """Several optimizers, each with its own parameters, used as one."""

    def __init__(self, parts: dict[str, torch.optim.Optimizer]):
        """`parts`: the optimizers by name."""
        self.parts = parts

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts.values():
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """State of each part by its name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a stored state; one with other parts is a `BenchError`."""
        if state_dict.keys() != self.parts.keys():
            raise BenchError(
                f"a checkpoint's optimizer has the parts {', '.join(state_dict)}, this run's has "
                f"{', '.join(self.parts)}: delete the checkpoint to start the run again."
            )
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])


def sharded_backbone(backbone: Backbone, world: World) -> ShardsWeights | None:
    """The backbone if its weights are sharded over the processes, else None."""
    return backbone if world.shard is not None and isinstance(backbone, ShardsWeights) else None


def full_state(optimizer: Optimizer, sharding: ShardsWeights | None) -> dict[str, Any]:
    """The state of the optimizer with full tensors. `sharding`: the backbone if its weights are sharded."""
    state = optimizer.state_dict()
    return state if sharding is None else _full_tensors(state, sharding)


def _full_tensors(value: Any, sharding: ShardsWeights) -> Any:
    if isinstance(value, torch.Tensor):
        return sharding.stored(value)
    return {key: _full_tensors(entry, sharding) for key, entry in value.items()} if isinstance(value, dict) else value


def load_full_state(optimizer: Optimizer, state: dict[str, Any], sharding: ShardsWeights | None) -> None:
    """Restore what `full_state` returned; each tensor is sharded like the weight that it belongs to."""
    if sharding is not None:
        pairs = [(optimizer, state)]
        if isinstance(optimizer, CombinedOptimizer):
            pairs = [(part, state[name]) for name, part in optimizer.parts.items() if name in state]
        for part, part_state in pairs:
            _shard_state(part, part_state, sharding)
    optimizer.load_state_dict(state)


def _shard_state(optimizer: Any, state: dict[str, Any], sharding: ShardsWeights) -> None:
    """Replace each full tensor in the state of one optimizer by the shard of this process."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state["state"].items():
        like = parameters[index]
        for key, value in values.items():
            if value.shape == like.shape:
                values[key] = sharding.part_of(value, like)


class ShardedMuon(torch.optim.Muon):
    """Muon for sharded matrices: every process gathers the full matrix for its step and keeps its shard of the result.

    torch's Muon accepts sharded matrices, but orthogonalises them in bfloat16 shard by shard. This changes directions
    in which the gradient is small: for matrices of low rank, by half of the update.
    """

    def __init__(self, matrices: Sequence[torch.nn.Parameter], sharding: ShardsWeights, **settings: Any):
        self._sharding = sharding
        super().__init__(matrices, **settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of torch's Muon on each full matrix. Collective call."""
        assert closure is None
        for group in self.param_groups:
            settings = {key: value for key, value in group.items() if key != "params"}
            for p in group["params"]:
                if p.grad is None:
                    continue
                matrix = torch.nn.Parameter(p.full_tensor())
                matrix.grad = p.grad.full_tensor()
                muon = torch.optim.Muon([matrix], **settings)
                muon.state[matrix] = {key: value.full_tensor() for key, value in self.state[p].items()}
                muon.step()
                p.copy_(self._sharding.part_of(matrix, p))
                self.state[p] = {key: self._sharding.part_of(v, p) for key, v in muon.state[matrix].items()}


def make_optimizer(
    budget: Budget, parameters: Iterable[torch.nn.Parameter], sharding: ShardsWeights | None = None
) -> Optimizer:
    """The optimizer of the budget over the trained parameters. `sharding`: the backbone if its weights are sharded."""
    trained = list(parameters)
    if budget.optimizer == "adamw":
        return _adamw(budget, trained)
    matrices, rest = [p for p in trained if p.ndim == 2], [p for p in trained if p.ndim != 2]
    parts: dict[str, torch.optim.Optimizer] = {}
    if matrices:
        settings: dict[str, Any] = {"lr": budget.lr, "weight_decay": budget.weight_decay}
        if sharding is None:
            parts["muon"] = torch.optim.Muon(matrices, **settings)
        else:
            parts["muon"] = ShardedMuon(matrices, sharding, **settings)
    if rest:
        parts["adamw"] = _adamw(budget, rest)
    return CombinedOptimizer(parts)


def _adamw(budget: Budget, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(list(parameters), lr=budget.lr, betas=BETAS, eps=EPS, weight_decay=budget.weight_decay)


def recorded_optimizer(budget: Budget, optimizer: Optimizer) -> dict[str, Any]:
    """For the record: class, number of tensors and settings of each part; {} for AdamW, whose settings are fixed."""
    if budget.optimizer == "adamw" or not isinstance(optimizer, CombinedOptimizer):
        return {}
    return {"optimizer": {name: _settings(part) for name, part in optimizer.parts.items()}}


def _settings(optimizer: Any) -> dict[str, Any]:
    (group,) = optimizer.param_groups
    settings = {key: value for key, value in group.items() if key != "params" and value is not None}
    name = "Muon" if isinstance(optimizer, torch.optim.Muon) else type(optimizer).__name__
    return {"class": name, "tensors": len(group["params"]), **settings}
