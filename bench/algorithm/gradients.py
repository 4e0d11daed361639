"""Norms of gradients and of their parts, over all processes of a run, spread weights included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import Backbone
from bench.core.world import SINGLE_PROCESS, World


def gradients(backbone: Backbone) -> list[Tensor | None]:
    """A copy of every trained parameter's gradient."""
    return [None if p.grad is None else p.grad.clone() for p in backbone.parameters()]


def added_norm(backbone: Backbone, before: Sequence[Tensor | None], world: World) -> float:
    """Norm of what the gradient gained since `before`, summed over all processes."""
    pairs = zip(backbone.parameters(), before, strict=True)
    gain = [p.grad if old is None or p.grad is None else p.grad - old for p, old in pairs]
    return norm(part for part in world.summed(gain) if part is not None)


def norm(parts: Iterable[Tensor]) -> float:
    """Euclidean norm over all tensors together, spread ones whole; 0 for none."""
    norms = [full_tensor(torch.linalg.vector_norm(part)) for part in parts]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


def full_tensor(value: Tensor) -> Tensor:
    """A number computed from a spread tensor (torch's DTensor), added up over the processes; others as they are."""
    add_up = getattr(value, "full_tensor", None)
    found: Tensor = value if add_up is None else add_up()
    return found


class KLProbe:
    """Splits the gradient of one optimizer step into the weighted KL term's part and the rest.

    The KL's part is a backward pass of its own, so it is taken at some updates only.
    """

    def __init__(self, backbone: Backbone, world: World):
        self._backbone, self._world = backbone, world
        self._parameters = list(backbone.parameters())
        self._kl: list[Tensor | None] = [None for _ in self._parameters]

    def add(self, kl: Float[Tensor, ""]) -> None:
        """Add the gradient of one micro-batch's KL; its graph stays usable."""
        parts = self._by_backward(kl) if self._world.shard else self._of(kl)
        self._kl = [
            old if new is None else new if old is None else old + new for old, new in zip(self._kl, parts, strict=True)
        ]

    def _of(self, kl: Float[Tensor, ""]) -> Sequence[Tensor | None]:
        return torch.autograd.grad(kl, self._parameters, retain_graph=True, allow_unused=True)

    def _by_backward(self, kl: Float[Tensor, ""]) -> Sequence[Tensor | None]:
        """The same where weights are spread: only a backward pass into the parameters sums over the processes."""
        kept = [p.grad for p in self._parameters]
        for p in self._parameters:
            p.grad = None
        kl.backward(retain_graph=True)
        parts = [p.grad for p in self._parameters]
        for p, grad in zip(self._parameters, kept, strict=True):
            p.grad = grad
        return parts

    def norms(self) -> dict[str, float] | None:
        """Norms of both parts, once the whole gradient stands in the parameters; None without a KL term."""
        summed = self._world.summed(self._kl)
        if all(part is None for part in summed):
            return None
        kl = [part for part in summed if part is not None]
        return {"kl": norm(kl), "policy": added_norm(self._backbone, summed, SINGLE_PROCESS)}
