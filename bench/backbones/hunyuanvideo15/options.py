"""Options of HunyuanVideo-1.5, and the checks of them that need no model in memory."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from bench.api import BenchError, context_degree
from bench.backbones.hunyuanvideo15.checkpoint import DTYPES, RESTORE, read_config
from bench.backbones.hunyuanvideo15.policy import LORA_TARGETS

Constructor = TypeVar("Constructor", bound=Callable[..., None])

CHOICES: dict[str, tuple[str | None, ...]] = {
    "dtype": DTYPES,
    "convention": (None, "tencent", "diffusers"),
    "anchors_on": ("cpu", "model"),
    "text_encoders": ("resident", "released"),
    "lora_targets": tuple(LORA_TARGETS),
}
"""Options that take one of a few values."""
LONGEST_SIDE = 10_000
"""Largest number of frames, and of pixels along a side."""
TRANSFORMER = {"patch_size": 1, "patch_size_t": 1, "num_attention_heads": 16}
"""Defaults of diffusers' class for keys that a config.json leaves out."""
COMPRESSION = ("latent_channels", "temporal_compression_ratio", "spatial_compression_ratio")
"""Whole numbers that the VAE's config.json has."""


@dataclass(frozen=True, kw_only=True)
class HunyuanOptions:
    """The settings under `backbone.train` of a suite with the backbone `hunyuanvideo15`.

    `BenchError` for a value that no checkpoint accepts.
    """

    size: tuple[int, int, int] = (13, 16, 16)
    """Frames, height and width of the videos in pixels.

    Frames are 4 n + 1; height and width are multiples of the VAE's spatial compression (16 for the released VAE, 4 for
    nano). A latent token covers up to 4 frames of such a square. Linear layers cost time in proportion to the tokens,
    attention in proportion to their square.
    """
    fps: float = 8.0
    """Frames per second of the videos, above 0: passed to the evaluators and written into video files."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen transformer and of the text encoders. `bfloat16` halves their memory.

    LoRA weights, latents and guidance are float32 in both cases; so is the VAE. `lora_rank: 0` needs `float32`.
    """
    lora_rank: int = 8
    """Rank of the LoRA, at least 1; 0 trains all weights.

    A trained weight takes 16 bytes: itself, its gradient and AdamW's two moments in float32.
    """
    lora_alpha: int | None = None
    """Scale of the LoRA: its output is multiplied by lora_alpha / lora_rank. null: twice the rank."""
    lora_targets: Literal["attention", "attention+ff"] = "attention+ff"
    """Layers with a LoRA in every joint block, in the latent and in the text stream.

    `attention`: the projections of attention; `attention+ff`: the feed-forward layers too, 2.25 times the weights.
    """
    decode_batch: int = 16
    """Videos that the VAE decodes at once, at least 1. Memory of decoding grows in proportion."""
    device: str | None = None
    """Device of the models, such as `cpu` or `cuda`. null: the GPU if there is one.

    Latents are accepted from any device, and results are returned on it.
    """
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
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of storing them.

    Gradients are bitwise identical. A trained step costs one more forward pass and stores one tensor per block.
    """
    anchors_on: Literal["cpu", "model"] = "cpu"
    """Where copies of all weights are stored with `lora_rank: 0`: the base and each refreshed anchor.

    `model` stores them on the models' device: 4 bytes per weight and copy. `cpu` costs a transfer of all weights
    whenever an anchor runs. A LoRA's anchors are small and always on the models' device.
    """
    text_encoders: Literal["resident", "released"] = "resident"
    """`resident` keeps the text encoders in memory: 7.3e9 weights in the released model.

    `released` loads them for new prompts only and frees them afterwards. A run encodes all prompts before the other
    models are loaded.
    """
    text_cache: str | Path | None = None
    """Folder of files that keep the text states of prompts between runs. null: no files."""
    parallel: Mapping[str, int] | None = None
    """Context parallelism: {context: n} splits the latent tokens of each sample over n processes. null: n = 1.

    n divides the latent tokens, the attention heads and the number of processes. Activations per process shrink n
    times; attention exchanges tokens in every block.
    """

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                known = ", ".join("null" if choice is None else choice for choice in allowed)
                raise BenchError(f"backbone.train.{name} is {value!r}: choose one of {known}.")
        rank = self.lora_rank
        if not isinstance(rank, int) or rank < 0:
            raise BenchError(
                f"backbone.train.lora_rank is {rank}: give a rank of at least 1, or 0 to train all weights."
            )
        if rank == 0 and self.dtype != "float32":
            raise BenchError(
                f"backbone.train.lora_rank 0 trains all weights, and {self.dtype} weights lose small updates to "
                "rounding: set backbone.train.dtype to float32."
            )
        self._check_numbers()
        if isinstance(self.parallel, Mapping) and (unknown := sorted(self.parallel.keys() - {"context"})):
            raise BenchError(
                f"backbone.train.parallel has no key {unknown[0]!r}: it takes context, a number of processes."
            )
        context_degree(self.parallel)

    def _check_numbers(self) -> None:
        if not 0 < self.fps < math.inf:
            raise BenchError(f"backbone.train.fps is {self.fps}: set it to a finite value above 0.")
        for name in ("decode_batch", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BenchError(f"backbone.train.{name} is {value}: set it to at least 1.")
        if max(self.size, default=0) > LONGEST_SIDE:
            raise BenchError(f"backbone.train.size is {list(self.size)}: each number is at most {LONGEST_SIDE:,}.")


def show_options(constructor: Constructor) -> Constructor:
    """Show the fields of `HunyuanOptions` in a constructor's signature, instead of its `**settings`.

    The harness reads names and defaults of `backbone.train` from this signature.
    """
    signature = inspect.signature(constructor)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    types = get_type_hints(HunyuanOptions)
    options = inspect.signature(HunyuanOptions).parameters.values()
    parameters = [*own, *(option.replace(annotation=types[option.name]) for option in options)]
    constructor.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return constructor


def check_sizes(folder: Path, options: HunyuanOptions) -> None:
    """Refuse a video size, tiles or a degree of context parallelism that the folder's models cannot do."""
    vae = read_config(folder / "vae" / "config.json")
    net = TRANSFORMER | read_config(folder / "transformer" / "config.json")
    numbers = (("vae", vae, COMPRESSION), ("transformer", net, TRANSFORMER))
    for part, key, value in ((part, key, config.get(key)) for part, config, keys in numbers for key in keys):
        if type(value) is not int or value < 1:
            raise BenchError(f"checkpoint file {folder}/{part}/config.json: {key} is {str(value)[:60]!r}: {RESTORE}.")
    shape = latent_shape(options.size, vae)
    if options.vae_tiling is not None:
        check_tiles(options.vae_tiling, vae["spatial_compression_ratio"])
    check_even_split(net, context_degree(options.parallel), shape)


def latent_shape(size: Sequence[int], vae: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """(c, f, h, w) of a video of `size` (frames, height, width) in pixels. `vae`: its config."""
    time, space = vae["temporal_compression_ratio"], vae["spatial_compression_ratio"]
    positive = len(size) == 3 and min(size) > 0
    if not positive or (size[0] - 1) % time or size[1] % space or size[2] % space:
        raise BenchError(
            f"size {list(size)}: frames must be {time} n + 1, height and width multiples of {space}; "
            "set backbone.train.size accordingly."
        )
    frames, height, width = size
    return (vae["latent_channels"], (frames - 1) // time + 1, height // space, width // space)


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


def check_even_split(net: Mapping[str, Any], n: int, shape: tuple[int, int, int, int]) -> None:
    """Refuse n processes that cannot share the tokens of a latent (c, f, h, w), or the heads, evenly."""
    _, f, h, w = shape
    tokens = (f // net["patch_size_t"]) * (h // net["patch_size"]) * (w // net["patch_size"])
    for count, unit, fix in (
        (tokens, "latent tokens", "choose another degree, or a backbone.train.size with a multiple of it"),
        (net["num_attention_heads"], "attention heads", "choose another degree"),
    ):
        if count % n:
            raise BenchError(
                f"backbone.train.parallel.context is {n}, which does not divide the {count} {unit}: {fix}."
            )
