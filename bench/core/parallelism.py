"""How many processes do one run, and who holds the weights. Nothing here imports torch, unlike `bench.core.world`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, get_args

from bench.core.errors import BenchError

Shard = Literal["full", "grads"]
"""Each process keeps one shard of every weight, gradient and optimizer state. "full" gathers a block's weights for its
forward pass and again for its backward pass; "grads" keeps them gathered in between: faster, with more memory."""
SHARDS: tuple[Shard, ...] = get_args(Shard)
COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others in a collective call: longer than any update, and than writing a checkpoint.
The end of a process is noticed at once; this limits the wait for a process that hangs."""


@dataclass(frozen=True)
class ProcessLayout:
    """The processes of one run. Its results depend on them only through the order in which sums are added up."""

    nproc: int = 1
    """Processes on each node."""
    shard: Shard | None = None
    """How the weights are sharded over the processes; None: each process holds all of them."""
    nodes: int = 1
    """Number of machines."""

    @property
    def size(self) -> int:
        """Number of processes of the run."""
        return self.nproc * self.nodes


def context_degree(parallel: Any) -> int:
    """Degree of context parallelism: n of `backbone.train.parallel`, {context: n}; 1 where it is empty or None."""
    settings = parallel or {}
    degree = settings.get("context", 1) if isinstance(settings, Mapping) else None
    if not isinstance(degree, int) or degree < 1:
        raise BenchError(
            f"backbone.train.parallel is {parallel!r}: write it as {{context: 2}}, a number of processes."
        )
    return degree
