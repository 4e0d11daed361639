"""Wan2.1 text to video, 1.3B and 14B: one code for both diffusers pipeline folders and for small ones.

The sampling loop and the schedule belong to the harness: the folder's UniPC schedule starts below 1, where some noise
kernels explode, and differs between versions of diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.api import Conditioning, ModelCost, Shard
from bench.backbones.base import PipelineBackbone
from bench.backbones.options import show_options
from bench.backbones.wan21 import checkpoint as files
from bench.backbones.wan21.attention import use_attention
from bench.backbones.wan21.context_parallel import share_context
from bench.backbones.wan21.cost import model_cost
from bench.backbones.wan21.options import BLOCKS, LORA_TARGETS, WanOptions, check_sizes, latent_shape
from bench.backbones.wan21.text_encoder import UMT5
from bench.backbones.wan21.transformer import velocity


class Wan21(PipelineBackbone[UMT5]):
    """A policy on the transformer of a diffusers pipeline folder.

    `checkpoint`: the folder. `shard`: how the transformer's weights are sharded over all processes of the run, which a
    launch decides and not a suite (`fsdp`). `settings`: the fields of `WanOptions`.
    """

    options = WanOptions
    parts, text_parts = files.PARTS, files.TEXT_PARTS
    blocks, lora_targets = BLOCKS, LORA_TARGETS
    lora_prefix = "transformer."

    @show_options(WanOptions)
    def __init__(self, checkpoint: str | Path, shard: Shard | None = None, **settings: Any) -> None:
        options = WanOptions(**settings)
        self.text_rows = options.text_rows
        self._set_up(Path(checkpoint), options, shard)
        self._mean, self._std = (
            torch.tensor(values, device=self.device).reshape(1, -1, 1, 1, 1)
            for values in (self.vae.config.latents_mean, self.vae.config.latents_std)
        )

    @classmethod
    def model_cost(cls, checkpoint: Path | None, params: Mapping[str, Any], words: float) -> ModelCost:
        """Sizes for `bench plan` (`cost`). The text has a fixed number of rows, so `words` does not count."""
        return model_cost(checkpoint, params)

    def _load_network(self, device: torch.device) -> Any:
        return files.load_transformer(self.folder, self.dtype, device)

    def _load_vae(self, device: torch.device) -> Any:
        return files.load_vae(self.folder, device)

    def _latent_shape(self, options: WanOptions) -> tuple[int, int, int, int]:
        return latent_shape(options.size, self.vae.config)

    def _share_context(self, options: WanOptions) -> None:
        share_context(self.transformer, options.parallel, self.latent_shape)

    def _use_attention(self, backend: str) -> None:
        use_attention(self.transformer, backend)

    @classmethod
    def _load_text(cls, folder: Path, options: WanOptions, dtype: torch.dtype, device: torch.device) -> UMT5:
        return files.load_text(folder, dtype, device, options.text_rows)

    @classmethod
    def _check_folder(cls, folder: Path, options: WanOptions) -> None:
        files.check_folder(folder)
        check_sizes(folder, options)

    @classmethod
    def _uncond_prompt(cls, options: WanOptions) -> str:
        return options.negative_prompt

    @classmethod
    def _text_settings(cls, options: WanOptions) -> str:
        return f" ftfy {metadata.version('ftfy')}, at most {options.text_rows} tokens"

    def _branch(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        text = [states.to(self.device) for states in cond.text]
        return velocity(self.transformer, x, sigma, text, self.text_rows)

    def _vae_latents(self, x0: Tensor) -> Tensor:
        return x0 * self._std + self._mean

    def _more_settings(self) -> dict[str, Any]:
        return {
            "negative_prompt": self.uncond_prompt,
            "text_rows": self.text_rows,
            "vae_tiling": self.tiling,
            "ftfy": metadata.version("ftfy"),
        }
