"""The suite's optimizer: AdamW, or Muon for matrices with AdamW for the rest. Settings are torch's defaults.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) orthogonalises each matrix's momentum; torch's version
takes matrices only. Learning rate and weight decay are the budget's for both parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch

from bench.base import BenchError, Budget

BETAS, EPS = (0.9, 0.999), 1e-8
"""Of AdamW."""


class Optimizer(Protocol):
    """What the harness asks of an optimizer: torch's are ones."""

    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def step(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Together:
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


def make_optimizer(budget: Budget, parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
    """The budget's optimizer over the trained parameters, in their order."""
    trained = list(parameters)
    if budget.optimizer == "adamw":
        return _adamw(budget, trained)
    matrices, rest = [p for p in trained if p.ndim == 2], [p for p in trained if p.ndim != 2]
    parts: dict[str, torch.optim.Optimizer] = {}
    if matrices:
        parts["muon"] = torch.optim.Muon(matrices, lr=budget.lr, weight_decay=budget.weight_decay)
    if rest:
        parts["adamw"] = _adamw(budget, rest)
    return Together(parts)


def _adamw(budget: Budget, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(list(parameters), lr=budget.lr, betas=BETAS, eps=EPS, weight_decay=budget.weight_decay)


def described(budget: Budget, optimizer: Optimizer) -> dict[str, Any]:
    """For the record: class, number of tensors and settings of each part; nothing for AdamW, whose are all known."""
    if budget.optimizer == "adamw" or not isinstance(optimizer, Together):
        return {}
    return {"optimizer": {name: _settings(part) for name, part in optimizer.parts.items()}}


def _settings(optimizer: Any) -> dict[str, Any]:
    (group,) = optimizer.param_groups
    settings = {key: value for key, value in group.items() if key != "params" and value is not None}
    return {"class": type(optimizer).__name__, "tensors": len(group["params"]), **settings}
