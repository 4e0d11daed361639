"""How the processes of one run share its work. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Shard = Literal["full", "grads"]
"""Each process keeps its part of every weight, gradient and optimizer state. "full" gathers a block's weights for its
forward and again for its backward pass; "grads" keeps them gathered in between: faster, and more memory."""


@dataclass(frozen=True)
class ProcessLayout:
    """How one run is spread over processes; none of its numbers depends on it but by the order of sums."""

    nproc: int = 1
    """Processes on each node."""
    shard: Shard | None = None
    """How the model's weights are spread over the processes; None: each holds them all."""
    nodes: int = 1

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.nproc * self.nodes
