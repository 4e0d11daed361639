"""The parts of the nano checkpoints. Nothing here imports torch."""

from __future__ import annotations

from typing import Literal, get_args

Part = Literal[
    "vae",
    "policy",
    "videoreward-start",
    "videoreward",
    "clip",
    "pickscore",
    "wan-vae",
    "wan-policy",
    "manifest",
    "golden",
    "measure",
    "wan-measure",
]
"""PART of `bench nano PART`: the first eight are trained in this order; the others write or measure files."""
PARTS: tuple[Part, ...] = get_args(Part)
