"""Named random streams: every random number is a pure function of a seed and a name. No global generator is used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def _key(seed: int, name: tuple[str | int, ...]) -> bytes:
    """sha256 of the parts with type and length, so that ("a", "b") differs from ("ab",), and "1" from 1.

    Each part is exactly a str or an int: a numpy integer or a bool would name another stream than the equal int.
    """
    key = hashlib.sha256()
    for part in (seed, *name):
        if type(part) not in (str, int):
            raise TypeError(f"stream {(seed, *name)!r} has the part {part!r}, a {type(part).__name__}: use str or int")
        text = repr(part).encode()
        key.update(f"{type(part).__name__}:{len(text)}:".encode() + text)
    return key.digest()


def stream(seed: int, *name: str | int) -> torch.Generator:
    """A torch CPU generator keyed by `seed` and `name`, for permutations, choices and initial weights.

    The seed has 32 bits, enough for the few streams of a run; the many noise tensors come from `normal`.
    """
    return torch.Generator().manual_seed(int.from_bytes(_key(seed, name)[:4], "little"))


def normal(seed: int, names: Sequence[tuple[str | int, ...]], shape: Sequence[int]) -> Float[Tensor, "b ..."]:
    """Standard normal float32 tensors [len(names), *shape], one per name.

    Each comes from a counter-based generator (Philox) whose 128-bit key is made from its name, so no draw depends on
    the batch, on the device or on another draw.
    """
    draws = []
    for name in names:
        philox = np.random.Philox(key=int.from_bytes(_key(seed, name)[:16], "little"))
        draws.append(np.random.Generator(philox).standard_normal(tuple(shape), dtype=np.float32))
    return torch.from_numpy(np.stack(draws))
