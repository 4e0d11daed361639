"""The trained weights and the optimizer as the harness watches them: hashes, sizes of changes, settings.

Plug-ins run in the harness's process and can reach its objects, so what only the harness may change is compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from bench.algorithm.optimizers import BETAS, EPS, CombinedOptimizer, Optimizer
from bench.core.budget import Budget
from bench.core.errors import BenchError
from bench.core.hashing import digest
from bench.core.world import World, tensors_digest

SAMPLED = 65_536
"""Most elements of a tensor from which the size of a change is measured; larger tensors are sampled evenly."""


def local_part(tensor: Tensor) -> Tensor:
    """The shard of this process of a sharded tensor (torch's DTensor); other tensors are returned unchanged."""
    to_local = getattr(tensor, "to_local", None)
    part: Tensor = tensor if to_local is None else to_local()
    return part.detach()


def weights_hash(parameters: Iterable[Tensor], world: World) -> str:
    """16 hexadecimal digits that stand for all bits of the weights. Collective call where they are sharded."""
    own = tensors_digest(local_part(p) for p in parameters)[:16]
    return own if world.shard is None else digest(world.all_gather(own))


def sampled_elements(parameters: Iterable[Tensor]) -> list[Float[Tensor, "n"]]:
    """Copies of at most `SAMPLED` elements of each tensor, at even distances."""
    parts = [local_part(p).flatten() for p in parameters]
    return [part[:: max(1, math.ceil(part.numel() / SAMPLED))].clone() for part in parts]


def rms_change(before: Sequence[Tensor], after: Sequence[Tensor], world: World) -> float:
    """Root mean square of the changes of sampled elements. Collective call where the weights are sharded."""
    squares = sum(float((b.double() - a.double()).square().sum()) for a, b in zip(before, after, strict=True))
    sums = (squares, sum(part.numel() for part in before))
    parts = [sums] if world.shard is None else world.all_gather(sums)
    return math.sqrt(sum(part[0] for part in parts) / max(1, sum(part[1] for part in parts)))


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The parameter groups of all parts of the optimizer."""
    parts = list(optimizer.parts.values()) if isinstance(optimizer, CombinedOptimizer) else [cast(Any, optimizer)]
    return [group for part in parts for group in part.param_groups]


def learning_rate(optimizer: Optimizer) -> float:
    """The learning rate of the optimizer."""
    return float(_groups(optimizer)[0]["lr"])


def check_settings(optimizer: Optimizer, budget: Budget, culprit: str, when: str) -> None:
    """Raise `BenchError` if the optimizer's settings are not those of the budget: a plug-in has changed them."""
    expected = {"lr": budget.lr, "weight_decay": budget.weight_decay, "betas": BETAS}
    for group in _groups(optimizer):
        of_adamw = {"eps": EPS} if "betas" in group else {}
        for name, value in (expected | of_adamw).items():
            if name in group and group[name] != value:
                raise BenchError(
                    f"{culprit} changed the optimizer's {name} from {value} to {group[name]} {when}: a plug-in may "
                    "not reach the optimizer; take that out of its code."
                )


def check_weights(actual: str, expected: str, culprit: str, where: str) -> None:
    """Raise `BenchError` if the weights were changed `where` only the optimizer may change them."""
    if actual != expected:
        raise BenchError(
            f"{culprit} changed the trained weights {where}: only the optimizer may change them; take that out of the "
            "plug-in's code."
        )


def measured_step(optimizer: Optimizer, parameters: Sequence[torch.nn.Parameter], lr: float, world: World) -> float:
    """Do one step of the optimizer; returns the rms of the change of the weights, in units of the learning rate."""
    before = sampled_elements(parameters)
    optimizer.step()
    return rms_change(before, sampled_elements(parameters), world) / lr
