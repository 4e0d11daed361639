"""Options of HunyuanVideo-1.5, and the checks of them that need no model in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from bench.api import BenchError, context_degree
from bench.backbones.context_parallel import check_even_split
from bench.backbones.folder import check_counts, read_config
from bench.backbones.options import TrainingOptions, frame_size

TRANSFORMER = {"patch_size": 1, "patch_size_t": 1, "num_attention_heads": 16}
"""Defaults of diffusers' class for keys that a config.json leaves out."""
COMPRESSION = ("latent_channels", "temporal_compression_ratio", "spatial_compression_ratio")
"""Whole numbers that the VAE's config.json has."""


@dataclass(frozen=True, kw_only=True)
class HunyuanOptions(TrainingOptions):
    """The settings under `backbone.train` of a suite with the backbone `hunyuanvideo15`, beside the shared ones."""

    choices: ClassVar = {**TrainingOptions.choices, "convention": (None, "tencent", "diffusers")}

    size: tuple[int, int, int] = (13, 16, 16)
    """Frames, height and width of the videos in pixels.

    Frames are 4 n + 1; height and width are multiples of the VAE's spatial compression (16 for the released VAE, 4 for
    nano). A latent token covers up to 4 frames of such a square. Linear layers cost time in proportion to the tokens,
    attention in proportion to their square.
    """
    fps: float = 8.0
    """Frames per second of the videos, above 0: passed to the evaluators and written into video files."""
    vae_tiling: tuple[int, int, int, int] | None = None
    """Tiles for decoding: height and width in pixels, then in latents, for example [256, 256, 16, 16].

    The pixel sizes are the latent sizes times the VAE's spatial compression, and the latent sizes are multiples of 4.
    null decodes whole latents. Tiles bound the memory of decoding; they overlap by a quarter, which costs about 1.6
    times the FLOPs, and they change pixels slightly.
    """
    convention: Literal["tencent", "diffusers"] | None = None
    """Which values a sampler rounds to `dtype`. Two samplers of this model differ; in float32 all three are equal.

    |           | timestep | first noise | latents after each step |
    |-----------|----------|-------------|-------------------------|
    | null      | rounded  | float32     | float32                 |
    | tencent   | float32  | rounded     | float32                 |
    | diffusers | rounded  | rounded     | rounded                 |
    """


def check_sizes(folder: Path, options: HunyuanOptions) -> None:
    """Refuse a video size, tiles or a degree of context parallelism that the folder's models cannot do."""
    vae = read_config(folder / "vae" / "config.json")
    net = TRANSFORMER | read_config(folder / "transformer" / "config.json")
    check_counts(folder, "vae", vae, COMPRESSION)
    check_counts(folder, "transformer", net, tuple(TRANSFORMER))
    shape = latent_shape(options.size, vae)
    if options.vae_tiling is not None:
        check_tiles(options.vae_tiling, vae["spatial_compression_ratio"])
    check_even_split(context_degree(options.parallel), latent_tokens(net, shape), net["num_attention_heads"])


def latent_shape(size: Sequence[int], vae: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """(c, f, h, w) of a video of `size` (frames, height, width) in pixels. `vae`: its config."""
    time, space = vae["temporal_compression_ratio"], vae["spatial_compression_ratio"]
    return (vae["latent_channels"], *frame_size(size, time=time, space=space))


def latent_tokens(net: Mapping[str, Any], shape: tuple[int, int, int, int]) -> int:
    """Tokens of a latent (c, f, h, w). `net`: the transformer's config."""
    _, f, h, w = shape
    return int((f // net["patch_size_t"]) * (h // net["patch_size"]) * (w // net["patch_size"]))


def check_tiles(tiles: Sequence[int], space: int) -> None:
    """Refuse tiles with which diffusers would return larger pictures.

    Its tiles overlap by a quarter, rounded down to whole latents. It does not derive latent sizes from pixel sizes.
    `space`: the VAE's spatial compression, in pixels per latent.
    """
    valid = len(tiles) == 4 and min(tiles) > 0 and tiles[2] % 4 == tiles[3] % 4 == 0
    if not valid or tuple(tiles[:2]) != (space * tiles[2], space * tiles[3]):
        raise BenchError(
            f"backbone.train.vae_tiling is {list(tiles)}: give four sizes, tile height and width in pixels and "
            f"then in latents, the pixel sizes {space} times the latent ones and those multiples of 4."
        )
