"""The suite's optimizer: AdamW, or Muon for matrices with AdamW for the rest. Settings are torch's defaults.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) orthogonalises each matrix's momentum; torch's version
takes matrices only. Learning rate and weight decay are the budget's for both parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch

from bench.api import Backbone, ShardsWeights
from bench.core.budget import Budget
from bench.core.errors import BenchError
from bench.core.world import World


def sharded_backbone(backbone: Backbone, world: World) -> ShardsWeights | None:
    """The backbone where it has spread its weights over the processes, else None."""
    return backbone if world.shard is not None and isinstance(backbone, ShardsWeights) else None


BETAS, EPS = (0.9, 0.999), 1e-8
"""Of AdamW."""


class Optimizer(Protocol):
    """What the harness asks of an optimizer: torch's are ones."""

    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def step(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class CombinedOptimizer:
    """Several optimizers, each with parameters of its own, as one."""

    def __init__(self, parts: dict[str, torch.optim.Optimizer]):
        self.parts = parts

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts.values():
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """State of each part under its name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Back to a stored state; that of another division of the parameters is refused."""
        if state_dict.keys() != self.parts.keys():
            raise BenchError(
                f"a checkpoint's optimizer has the parts {', '.join(state_dict)}, this run's has "
                f"{', '.join(self.parts)}: delete the checkpoint and the run starts again."
            )
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])


def full_state(optimizer: Optimizer, spread: ShardsWeights | None) -> dict[str, Any]:
    """The optimizer's state; where `spread` has spread the weights over processes, its tensors are put together."""
    state = optimizer.state_dict()
    return state if spread is None else _full(state, spread)


def _full(value: Any, spread: ShardsWeights) -> Any:
    if isinstance(value, torch.Tensor):
        return spread.stored(value)
    return {key: _full(entry, spread) for key, entry in value.items()} if isinstance(value, dict) else value


def load_full_state(optimizer: Optimizer, state: dict[str, Any], spread: ShardsWeights | None) -> None:
    """Back to what `whole_state` gave, each tensor spread as the weight that it belongs to."""
    if spread is not None:
        pairs = [(optimizer, state)]
        if isinstance(optimizer, CombinedOptimizer):
            pairs = [(part, state[name]) for name, part in optimizer.parts.items() if name in state]
        for part, held in pairs:
            _assign_owners(part, held, spread)
    optimizer.load_state_dict(state)


def _assign_owners(optimizer: Any, state: dict[str, Any], spread: ShardsWeights) -> None:
    """Replace each whole tensor of one optimizer's state by this process's part."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state["state"].items():
        like = parameters[index]
        for key, value in values.items():
            if value.shape == like.shape:
                values[key] = spread.part_of(value, like)


class ShardedMuon(torch.optim.Muon):
    """Muon for matrices that are spread over processes: each is put together for its step, alike on every process.

    torch's own orthogonalises spread matrices too, but in bfloat16 over parts: directions that the gradient hardly has
    come out otherwise, by half of the update for matrices of low rank.
    """

    def __init__(self, matrices: Sequence[torch.nn.Parameter], spread: ShardsWeights, **settings: Any):
        self._spread = spread
        super().__init__(matrices, **settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of torch's Muon on each whole matrix; this process keeps its part."""
        assert closure is None
        for group in self.param_groups:
            settings = {key: value for key, value in group.items() if key != "params"}
            for p in group["params"]:
                if p.grad is None:
                    continue
                matrix = torch.nn.Parameter(p.full_tensor())
                matrix.grad = p.grad.full_tensor()
                alone = torch.optim.Muon([matrix], **settings)
                alone.state[matrix] = {key: value.full_tensor() for key, value in self.state[p].items()}
                alone.step()
                p.copy_(self._spread.part_of(matrix, p))
                self.state[p] = {key: self._spread.part_of(v, p) for key, v in alone.state[matrix].items()}


def make_optimizer(
    budget: Budget, parameters: Iterable[torch.nn.Parameter], spread: ShardsWeights | None = None
) -> Optimizer:
    """The budget's optimizer over the trained parameters, in their order; `spread` where it has spread them."""
    trained = list(parameters)
    if budget.optimizer == "adamw":
        return _adamw(budget, trained)
    matrices, rest = [p for p in trained if p.ndim == 2], [p for p in trained if p.ndim != 2]
    parts: dict[str, torch.optim.Optimizer] = {}
    if matrices:
        settings: dict[str, Any] = {"lr": budget.lr, "weight_decay": budget.weight_decay}
        if spread is None:
            parts["muon"] = torch.optim.Muon(matrices, **settings)
        else:
            parts["muon"] = ShardedMuon(matrices, spread, **settings)
    if rest:
        parts["adamw"] = _adamw(budget, rest)
    return CombinedOptimizer(parts)


def _adamw(budget: Budget, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(list(parameters), lr=budget.lr, betas=BETAS, eps=EPS, weight_decay=budget.weight_decay)


def recorded_optimizer(budget: Budget, optimizer: Optimizer) -> dict[str, Any]:
    """For the record: class, number of tensors and settings of each part; nothing for AdamW, whose are all known."""
    if budget.optimizer == "adamw" or not isinstance(optimizer, CombinedOptimizer):
        return {}
    return {"optimizer": {name: _settings(part) for name, part in optimizer.parts.items()}}


def _settings(optimizer: Any) -> dict[str, Any]:
    (group,) = optimizer.param_groups
    settings = {key: value for key, value in group.items() if key != "params" and value is not None}
    name = "Muon" if isinstance(optimizer, torch.optim.Muon) else type(optimizer).__name__
    return {"class": name, "tensors": len(group["params"]), **settings}
