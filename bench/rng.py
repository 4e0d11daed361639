"""Named random streams: every random number is a pure function of (seed, name), never of a global generator."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def stream(seed: int, *name: str | int) -> torch.Generator:
    """A CPU generator keyed by `seed` and `name`; equal keys give equal streams on every machine and process.

    The key is the first 8 bytes of the SHA-256 of the parts, each with its type and length, so ("a", "b") and ("ab",)
    or "1" and 1 are different names.
    """
    key = hashlib.sha256()
    for part in (seed, *name):
        text = repr(part).encode()
        key.update(f"{type(part).__name__}:{len(text)}:".encode() + text)
    return torch.Generator().manual_seed(int.from_bytes(key.digest()[:8], "little") >> 1)


def normal(seed: int, names: Sequence[tuple[str | int, ...]], shape: Sequence[int]) -> Float[Tensor, "b ..."]:
    """Standard normal tensors [len(names), *shape], each drawn from its own stream: no draw depends on the batch."""
    return torch.stack([torch.randn(tuple(shape), generator=stream(seed, *name)) for name in names])
