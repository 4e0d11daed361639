"""What a backbone may do beyond `bench.api.Backbone`; one that does not is used without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from bench.api import Backbone
from bench.processes import World


@runtime_checkable
class RoundsLatents(Protocol):
    """A backbone whose sampling convention keeps latents coarser than float32."""

    def round_latents(self, x: Float[Tensor, "b ..."], first: bool) -> Float[Tensor, "b ..."]: ...


@runtime_checkable
class ChecksSuite(Protocol):
    """A backbone class that refuses an unfit suite from its files' headers, before anything is loaded.

    Without a checkpoint it looks at the settings alone.
    """

    @classmethod
    def check_suite(cls, checkpoint: Path | None, guidance: float, params: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Spreads(Protocol):
    """A backbone that can spread its weights over the processes of a run: its constructor takes `shard`."""

    def stored(self, tensor: Tensor) -> Tensor: ...
    def part_of(self, whole: Tensor, like: Tensor) -> Tensor: ...


def kept_latents(backbone: Backbone, x: Float[Tensor, "b ..."], first: bool = False) -> Float[Tensor, "b ..."]:
    """Latents as the sampler hands them on: the first noise, or the result of a step.

    A log-probability is that of what this returns, so that rollout and update score the same numbers.
    """
    return backbone.round_latents(x, first) if isinstance(backbone, RoundsLatents) else x


def spread_over(backbone: Backbone, world: World) -> Spreads | None:
    """The backbone where it has spread its weights over the processes, else None."""
    return backbone if world.shard is not None and isinstance(backbone, Spreads) else None
