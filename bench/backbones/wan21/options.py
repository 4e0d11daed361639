"""Options of Wan2.1, and the checks of them that need no model in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.api import BenchError, context_degree
from bench.backbones.context_parallel import check_even_split
from bench.backbones.folder import RESTORE, check_counts, read_config
from bench.backbones.options import TrainingOptions, frame_size

ATTENTION = r"(attn1|attn2)\.(to_q|to_k|to_v|to_out\.0)"
LORA_TARGETS = {"attention": ATTENTION, "attention+ff": rf"({ATTENTION}|ffn\.net\.(0\.proj|2))"}
"""Patterns of a block's layers: self-attention, cross-attention, feed-forward."""
BLOCKS = "blocks"
"""The transformer's list of blocks."""
TEXT_ROWS, TEXT_WIDTH = 512, 4096
"""Rows of text that the released models attend to, and the width of their text states."""
TRANSFORMER = {
    **{"num_attention_heads": 40, "attention_head_dim": 128, "num_layers": 40, "ffn_dim": 13824},
    **{"in_channels": 16, "text_dim": 4096, "freq_dim": 256},
}
"""Defaults of diffusers' class for whole numbers that a config.json leaves out."""
PATCH = (1, 2, 2)
"""Frames, height and width of a token in latents, of every Wan2.1 model."""


@dataclass(frozen=True, kw_only=True)
class WanOptions(TrainingOptions):
    """The settings under `backbone.train` of a suite with the backbone `wan21`, beside the shared ones."""

    size: tuple[int, int, int] = (33, 240, 416)
    """Frames, height and width of the videos in pixels.

    Frames are 4 n + 1; height and width are multiples of 16: 8 pixels per latent, 2 latents per token. Linear layers
    cost time in proportion to the tokens, self-attention in proportion to their square.
    """
    fps: float = 16.0
    """Frames per second of the videos, above 0: passed to the evaluators and written into video files. The released
    models were trained for 16."""
    vae_tiling: tuple[int, int, int, int] | None = None
    """Tiles for decoding in pixels: height and width, then the distances from one tile to the next, for example
    [256, 256, 192, 192].

    All are multiples of 8, and the distances are at most the sizes. null decodes whole frames. Tiles bound the memory
    of decoding, cost about 1.6 times the FLOPs, and change pixels slightly.
    """
    negative_prompt: str = ""
    """Prompt of the unconditional branch of guidance, encoded like any other.

    The empty one is what other RL trainers use. Wan's own sampler has a Chinese list of faults here.
    """
    text_rows: int = 512
    """Rows of text that cross-attention attends to: a prompt's states, then zeros, which have an influence.

    The released models were trained with 512 and refuse any other number. A small model of one's own may have fewer.
    """

    def _check_numbers(self) -> None:
        super()._check_numbers()
        if self.text_rows < 1:
            raise BenchError(f"backbone.train.text_rows is {self.text_rows}: set it to at least 1.")


def check_sizes(folder: Path, options: WanOptions) -> None:
    """Refuse a size, tiles, rows of text or a degree of context parallelism that the folder's models cannot do."""
    vae, net = read_config(folder / "vae" / "config.json"), transformer_config(folder)
    check_vae(folder, vae)
    shape = latent_shape(options.size, vae)
    if options.vae_tiling is not None:
        check_tiles(options.vae_tiling, compression(vae)[1])
    if net["text_dim"] == TEXT_WIDTH and options.text_rows != TEXT_ROWS:
        raise BenchError(
            f"backbone.train.text_rows is {options.text_rows}, but the released models attend to {TEXT_ROWS} rows, "
            "zeros included: leave the key out."
        )
    check_even_split(context_degree(options.parallel), latent_tokens(shape), net["num_attention_heads"])


def transformer_config(folder: Path) -> dict[str, Any]:
    """The transformer's config.json with the class's defaults; refused where it is no model of this shape."""
    net = TRANSFORMER | read_config(folder / "transformer" / "config.json")
    check_counts(folder, "transformer", net, tuple(TRANSFORMER))
    if net.get("patch_size", list(PATCH)) != list(PATCH):
        raise BenchError(
            f"checkpoint file {folder}/transformer/config.json: patch_size is {str(net['patch_size'])[:60]}, and "
            f"Wan2.1 has {list(PATCH)}: {RESTORE}."
        )
    return net


def check_vae(folder: Path, vae: Mapping[str, Any]) -> None:
    """Refuse a VAE's config.json without the numbers that scale latents and pixels."""
    check_counts(folder, "vae", vae, ("z_dim", "base_dim"))
    path, channels = f"checkpoint file {folder}/vae/config.json", vae["z_dim"]
    for key in ("latents_mean", "latents_std"):
        values = vae.get(key)
        numbers = [value for value in values if isinstance(value, int | float)] if isinstance(values, list) else []
        if len(numbers) != channels or values != numbers:
            raise BenchError(f"{path}: {key} does not have {channels} numbers, one for each channel: {RESTORE}.")
    for key in ("dim_mult", "temperal_downsample"):
        if not isinstance(vae.get(key), list) or not vae[key]:
            raise BenchError(f"{path}: {key} is {str(vae.get(key))[:60]!r}: {RESTORE}.")
    for key, value in zip(("scale_factor_temporal", "scale_factor_spatial"), compression(vae), strict=True):
        if vae.get(key, value) != value:
            raise BenchError(f"{path}: {key} is {str(vae[key])[:60]}, and its stages give {value}: {RESTORE}.")


def compression(vae: Mapping[str, Any]) -> tuple[int, int]:
    """Frames per latent frame and pixels per latent, from the stages of the VAE: its config states neither."""
    return int(2 ** sum(map(bool, vae["temperal_downsample"]))), int(2 ** (len(vae["dim_mult"]) - 1))


def latent_shape(size: Sequence[int], vae: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """(c, f, h, w) of a video of `size` (frames, height, width) in pixels. `vae`: its config."""
    time, space = compression(vae)
    return (vae["z_dim"], *frame_size(size, time=time, space=space, multiple=space * PATCH[1]))


def latent_tokens(shape: tuple[int, int, int, int]) -> int:
    """Tokens of a latent (c, f, h, w)."""
    _, f, h, w = shape
    return (f // PATCH[0]) * (h // PATCH[1]) * (w // PATCH[2])


def check_tiles(tiles: Sequence[int], space: int) -> None:
    """Refuse tiles with which diffusers would shift the picture. `space`: pixels per latent."""
    valid = len(tiles) == 4 and min(tiles) > 0 and not any(tile % space for tile in tiles)
    if not valid or tiles[2] > tiles[0] or tiles[3] > tiles[1]:
        raise BenchError(
            f"backbone.train.vae_tiling is {list(tiles)}: give height and width of a tile and the distances to the "
            f"next one, all in pixels, multiples of {space}, and no distance above the tile's size."
        )
