"""HunyuanVideo-1.5 at full size and as the miniature nano: same diffusers pipeline folder, same classes, same code.

The sampling loop belongs to the harness. This class encodes prompts, predicts velocities on valid text tokens only,
decodes latents, and holds the policy and its anchors (`policy`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import Conditioning, ModelCost, Shard
from bench.backbones.base import PipelineBackbone
from bench.backbones.hunyuanvideo15 import checkpoint as files
from bench.backbones.hunyuanvideo15.context_parallel import share_context
from bench.backbones.hunyuanvideo15.cost import model_cost
from bench.backbones.hunyuanvideo15.options import HunyuanOptions, check_sizes, latent_shape
from bench.backbones.hunyuanvideo15.policy import BLOCKS, LORA_TARGETS, UNTRAINED, fully_trained
from bench.backbones.hunyuanvideo15.text_encoders import TextEncoders
from bench.backbones.hunyuanvideo15.transformer import use_attention, velocity
from bench.backbones.options import show_options


class HunyuanVideo15(PipelineBackbone[TextEncoders]):
    """A policy on the transformer of a diffusers pipeline folder.

    `checkpoint`: the folder. `shard`: how the transformer's weights are sharded over all processes of the run, which a
    launch decides and not a suite (`fsdp`). `settings`: the fields of `HunyuanOptions`.
    """

    options = HunyuanOptions
    parts, text_parts = files.PARTS, files.TEXT_PARTS
    blocks, lora_targets = BLOCKS, LORA_TARGETS
    untrained = (*UNTRAINED, "last block's text output")

    @show_options(HunyuanOptions)
    def __init__(self, checkpoint: str | Path, shard: Shard | None = None, **settings: Any) -> None:
        options = HunyuanOptions(**settings)
        self.convention = options.convention
        self._set_up(Path(checkpoint), options, shard)

    @classmethod
    def check_suite(cls, checkpoint: Path | None, guidance: float, params: Mapping[str, Any]) -> None:
        """Refuse unfit options, an unfit folder, and guidance on a distilled model, without loading anything.

        `checkpoint`: None if the folder does not exist yet; only the options are checked then.
        """
        super().check_suite(checkpoint, guidance, params)
        if checkpoint is not None:
            files.refuse_guidance(checkpoint, guidance)

    @classmethod
    def model_cost(cls, checkpoint: Path | None, params: Mapping[str, Any], words: float) -> ModelCost:
        """Sizes for `bench plan` (`cost`)."""
        return model_cost(checkpoint, params, words)

    def _load_network(self, device: torch.device) -> Any:
        return files.load_transformer(self.folder, self.dtype, device)

    def _load_vae(self, device: torch.device) -> Any:
        return files.load_vae(self.folder, device)

    def _latent_shape(self, options: HunyuanOptions) -> tuple[int, int, int, int]:
        return latent_shape(options.size, self.vae.config)

    def _share_context(self, options: HunyuanOptions) -> None:
        share_context(self.transformer, options.parallel, self.latent_shape)

    def _use_attention(self, backend: str) -> None:
        use_attention(self.transformer, backend)

    @classmethod
    def _load_text(
        cls, folder: Path, options: HunyuanOptions, dtype: torch.dtype, device: torch.device
    ) -> TextEncoders:
        return files.load_text(folder, dtype, device)

    @classmethod
    def _check_folder(cls, folder: Path, options: HunyuanOptions) -> None:
        files.check_folder(folder)
        check_sizes(folder, options)

    def _fully_trained(self) -> dict[str, torch.nn.Parameter]:
        return fully_trained(self.transformer)

    @cached_property
    def _distilled(self) -> bool:
        return files.is_distilled(self.folder)

    def velocity(
        self,
        x: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, "b"],
        cond: Conditioning,
        guidance: float,
        uncond_grad: bool = True,
    ) -> Float[Tensor, "b c f h w"]:
        """As `PipelineBackbone.velocity`; guidance on a distilled model is refused."""
        if self._distilled:
            files.refuse_guidance(self.folder, guidance)
        return super().velocity(x, sigma, cond, guidance, uncond_grad)

    def _branch(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        text, glyph = ([state.to(self.device) for state in states] for states in (cond.text, cond.more["glyph"]))
        return velocity(self.transformer, x, sigma, text, glyph, self.convention == "tencent")

    def round_latents(self, x: Float[Tensor, "b c f h w"], first: bool) -> Float[Tensor, "b c f h w"]:
        """The first noise, or the latents after a step, rounded as the convention does; float32 in any case."""
        exact = self.convention is None or (self.convention == "tencent" and not first)
        return x if exact else x.to(self.dtype).float()

    def _vae_latents(self, x0: Tensor) -> Tensor:
        scaled: Tensor = x0 / self.vae.config.scaling_factor
        return scaled

    def _more_settings(self) -> dict[str, Any]:
        """`vae_tiling` and `convention` were added later and are left out if they are None."""
        later = {"vae_tiling": self.tiling, "convention": self.convention}
        return {name: value for name, value in later.items() if value is not None}
