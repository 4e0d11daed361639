"""Norms of gradients and of their parts over all processes of a run, with or without sharded weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import Backbone
from bench.core.world import SINGLE_PROCESS, World


def gradients(backbone: Backbone) -> list[Tensor | None]:
    """Copies of the gradients of the trained parameters; None where there is none."""
    return [None if p.grad is None else p.grad.clone() for p in backbone.parameters()]


def added_norm(backbone: Backbone, before: Sequence[Tensor | None], world: World) -> float:
    """Norm of the gradient that was added since `before`, summed over all processes."""
    pairs = zip(backbone.parameters(), before, strict=True)
    added = [p.grad if old is None or p.grad is None else p.grad - old for p, old in pairs]
    return norm(part for part in world.all_reduce_sum(added) if part is not None)


def norm(parts: Iterable[Tensor]) -> float:
    """Euclidean norm over all tensors together, sharded ones included in full; 0 for no tensor."""
    norms = [full_tensor(torch.linalg.vector_norm(part)) for part in parts]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


def full_tensor(value: Tensor) -> Tensor:
    """The full tensor of a sharded one (torch's DTensor); a collective call. Other tensors are returned unchanged."""
    gather = getattr(value, "full_tensor", None)
    full: Tensor = value if gather is None else gather()
    return full


class KLProbe:
    """Splits the gradient of one optimizer step into the part of the weighted KL terms and the rest.

    The KL part needs its own backward pass, so it is measured at some updates only.
    """

    def __init__(self, backbone: Backbone, world: World):
        self._backbone, self._world = backbone, world
        self._parameters = list(backbone.parameters())
        self._kl: list[Tensor | None] = [None for _ in self._parameters]

    def add(self, kl: Float[Tensor, ""]) -> None:
        """Add the gradient of the weighted KL of one micro-batch; its graph is retained."""
        parts = self._by_backward(kl) if self._world.shard else self._by_autograd(kl)
        self._kl = [
            old if new is None else new if old is None else old + new for old, new in zip(self._kl, parts, strict=True)
        ]

    def _by_autograd(self, kl: Float[Tensor, ""]) -> Sequence[Tensor | None]:
        return torch.autograd.grad(kl, self._parameters, retain_graph=True, allow_unused=True)

    def _by_backward(self, kl: Float[Tensor, ""]) -> Sequence[Tensor | None]:
        """The same for sharded weights: only a backward pass into the parameters sums over the processes."""
        gradients_before = [p.grad for p in self._parameters]
        for p in self._parameters:
            p.grad = None
        kl.backward(retain_graph=True)
        parts = [p.grad for p in self._parameters]
        for p, grad in zip(self._parameters, gradients_before, strict=True):
            p.grad = grad
        return parts

    def norms(self) -> dict[str, float] | None:
        """Norms of both parts, called when the parameters have their full gradient; None without a KL term."""
        summed = self._world.all_reduce_sum(self._kl)
        if all(part is None for part in summed):
            return None
        kl = [part for part in summed if part is not None]
        return {"kl": norm(kl), "policy": added_norm(self._backbone, summed, SINGLE_PROCESS)}
