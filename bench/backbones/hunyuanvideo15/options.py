"""Options of HunyuanVideo-1.5 that do not fit, to each other or to a checkpoint's configs: refused before loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.api import BenchError
from bench.backbones.hunyuanvideo15.checkpoint import DTYPES, read_json
from bench.backbones.hunyuanvideo15.policy import LORA_TARGETS

CHOICES: dict[str, tuple[str | None, ...]] = {
    "dtype": DTYPES,
    "convention": (None, "tencent", "diffusers"),
    "anchors_on": ("cpu", "model"),
    "text_encoders": ("resident", "released"),
    "lora_targets": tuple(LORA_TARGETS),
}
"""Options of a few values; a misspelt one would otherwise count as the other."""
TRANSFORMER = {"patch_size": 1, "patch_size_t": 1, "num_attention_heads": 16}
"""What diffusers' class takes where a config.json does not say."""


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse an option that no checkpoint would take. `options`: all arguments of the backbone's constructor."""
    for name, allowed in CHOICES.items():
        if options[name] not in allowed:
            known = ", ".join("null" if choice is None else choice for choice in allowed)
            raise BenchError(f"backbone.train.{name} is {options[name]!r}: choose one of {known}.")
    rank = options["lora_rank"]
    if not isinstance(rank, int) or rank < 0:
        raise BenchError(f"backbone.train.lora_rank is {rank}: give a rank of at least 1, or 0 to train all weights.")
    if rank == 0 and options["dtype"] != "float32":
        raise BenchError(
            f"backbone.train.lora_rank 0 trains all weights, and {options['dtype']} weights lose small updates to "
            "rounding: set backbone.train.dtype to float32."
        )
    cp_degree(options["parallel"] or {})


def check_sizes(folder: Path, options: Mapping[str, Any]) -> None:
    """Refuse a video size, tiles or a degree of context parallelism that the folder's models cannot do."""
    vae = read_json(folder, folder / "vae" / "config.json")
    net = TRANSFORMER | read_json(folder, folder / "transformer" / "config.json")
    shape = latent_shape(options["size"], vae)
    if options["vae_tiling"] is not None:
        check_tiles(options["vae_tiling"], vae["spatial_compression_ratio"])
    check_even_split(net, cp_degree(options["parallel"] or {}), shape)


def latent_shape(size: Sequence[int], vae: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """(c, f, h, w) of a video of `size` (frames, height, width) in pixels. `vae`: its config."""
    time, space = vae["temporal_compression_ratio"], vae["spatial_compression_ratio"]
    whole = len(size) == 3 and min(size) > 0
    if not whole or (size[0] - 1) % time or size[1] % space or size[2] % space:
        raise BenchError(
            f"size {list(size)}: frames must be {time} n + 1, height and width multiples of {space}; "
            "set backbone.train or size accordingly."
        )
    frames, height, width = size
    return (vae["latent_channels"], (frames - 1) // time + 1, height // space, width // space)


def check_tiles(tiles: Sequence[int], space: int) -> None:
    """diffusers' tiles overlap by a quarter, cut off to whole latents: else the picture would grow.

    `space`: pixels of a latent's side. diffusers does not derive the latent sizes from the pixel sizes.
    """
    whole = len(tiles) == 4 and min(tiles) > 0 and tiles[2] % 4 == tiles[3] % 4 == 0
    if not whole or tuple(tiles[:2]) != (space * tiles[2], space * tiles[3]):
        raise BenchError(
            f"backbone.train.vae_tiling is {list(tiles)}: give four sizes, tile height and width in pixels and "
            f"then in latents, the pixel sizes {space} times the latent ones and those multiples of 4."
        )


def cp_degree(parallel: Mapping[str, int]) -> int:
    """Processes that share a sample."""
    odd = sorted(parallel.keys() - {"context"}) if isinstance(parallel, Mapping) else []
    if odd:
        raise BenchError(f"backbone.train.parallel has no key {odd[0]!r}: it takes context, a number of processes.")
    n = parallel.get("context", 1) if isinstance(parallel, Mapping) else None
    if not isinstance(n, int) or n < 1:
        raise BenchError(
            f"backbone.train.parallel is {parallel!r}: write it as {{context: 2}}, a number of processes."
        )
    return n


def check_even_split(net: Mapping[str, Any], n: int, shape: tuple[int, int, int, int]) -> None:
    """Refuse n processes that cannot share the tokens of a latent (c, f, h, w), or the heads, evenly."""
    _, f, h, w = shape
    tokens = (f // net["patch_size_t"]) * (h // net["patch_size"]) * (w // net["patch_size"])
    for count, what, mend in (
        (tokens, "latent tokens", "choose another degree, or a backbone.train.size with a multiple of it"),
        (net["num_attention_heads"], "attention heads", "choose another degree"),
    ):
        if count % n:
            raise BenchError(
                f"backbone.train.parallel.context is {n}, which does not divide the {count} {what}: {mend}."
            )
