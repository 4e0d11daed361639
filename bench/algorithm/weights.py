"""The trained weights and the optimizer as the harness watches them: hashes, sizes of changes, settings.

Plug-ins run in the harness's process and can reach its objects, so what only the harness may change is compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from bench.algorithm.gradients import full_tensor
from bench.algorithm.optimizers import CombinedOptimizer, Optimizer
from bench.core.errors import BenchError
from bench.core.world import tensors_digest

SAMPLED = 65_536
"""Most elements of a tensor from which the size of a change is measured; larger tensors are sampled evenly."""


def weights_hash(parameters: Iterable[Tensor]) -> str:
    """16 hexadecimal digits that stand for all bits of the full weights, however they are sharded.

    Collective call where they are.
    """
    return tensors_digest(full_tensor(p.detach()) for p in parameters)[:16]


def sampled_elements(parameters: Iterable[Tensor]) -> list[Float[Tensor, "n"]]:
    """Copies of at most `SAMPLED` elements of each full tensor, at even distances. Collective call where sharded."""
    return [_sample(full_tensor(p.detach()).flatten()) for p in parameters]


def _sample(flat: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
    return flat[:: max(1, math.ceil(flat.numel() / SAMPLED))].clone()


def rms_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Root mean square of the changes of sampled elements; one transfer from the device for all tensors."""
    squares = [(b.double() - a.double()).square().sum() for a, b in zip(before, after, strict=True)]
    total = sum(torch.stack(squares).tolist()) if squares else 0.0
    return math.sqrt(total / max(1, sum(part.numel() for part in before)))


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The parameter groups of all parts of the optimizer."""
    parts = list(optimizer.parts.values()) if isinstance(optimizer, CombinedOptimizer) else [cast(Any, optimizer)]
    return [group for part in parts for group in part.param_groups]


def learning_rate(optimizer: Optimizer) -> float:
    """The learning rate of the optimizer."""
    return float(_groups(optimizer)[0]["lr"])


def optimizer_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """A copy of all settings of each parameter group: learning rate, weight decay, betas, eps and the rest."""
    return [{name: value for name, value in group.items() if name != "params"} for group in _groups(optimizer)]


def check_settings(optimizer: Optimizer, expected: Sequence[Mapping[str, Any]], culprit: str, when: str) -> None:
    """Raise `BenchError` if the optimizer's settings are not the `expected` ones: a plug-in has changed them."""
    for group, settings in zip(_groups(optimizer), expected, strict=True):
        for name, value in settings.items():
            if group.get(name) != value:
                raise BenchError(
                    f"{culprit} changed the optimizer's {name} from {value} to {group.get(name)} {when}: a plug-in "
                    "may not reach the optimizer; take that out of its code."
                )


def check_weights(actual: str, expected: str, culprit: str, where: str) -> None:
    """Raise `BenchError` if the weights were changed `where` only the optimizer may change them."""
    if actual != expected:
        raise BenchError(
            f"{culprit} changed the trained weights {where}: only the optimizer may change them; take that out of the "
            "plug-in's code."
        )


def measured_step(optimizer: Optimizer, parameters: Sequence[torch.nn.Parameter], lr: float) -> float:
    """Do one step of the optimizer; returns the rms of the change of the weights, in units of the learning rate.

    With a learning rate of 0 nothing may change, and the result is 0.
    """
    before = sampled_elements(parameters)
    optimizer.step()
    change = rms_change(before, sampled_elements(parameters))
    return change / lr if change else 0.0
