"""LTX-Video as a backbone on the parts that HunyuanVideo-1.5 and Wan2.1 share: an example, tested on random weights.

Text to video, from a folder of diffusers' LTXPipeline whose VAE is not conditioned on a timestep; without context
parallelism and other implementations of attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.api import BenchError, Conditioning, Shard
from bench.backbones import fsdp
from bench.backbones.base import PipelineBackbone
from bench.backbones.folder import Layout, load_model, loading, read_config
from bench.backbones.options import TrainingOptions, frame_size, show_options
from bench.flow import TIMESTEPS

ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0)"
LAYOUT = Layout(
    model="LTX-Video",
    parts=("transformer", "vae", "text_encoder", "tokenizer"),
    pipeline="LTXPipeline",
    classes={
        "transformer": ("_class_name", ("LTXVideoTransformer3DModel",)),
        "vae": ("_class_name", ("AutoencoderKLLTXVideo",)),
        "text_encoder": ("model_type", ("t5",)),
    },
)


@dataclass(frozen=True, kw_only=True)
class LTXOptions(TrainingOptions):
    """Settings under `backbone.train`."""

    size: tuple[int, int, int] = (33, 256, 384)
    fps: float = 25.0
    """Frames per second, above 0. It is in the rotary tables, so that it changes velocities."""
    vae_tiling: tuple[int, int, int, int] | None = None
    text_rows: int = 128
    """Tokens to which the input of the text encoder is padded, at least 1."""

    def _check_numbers(self) -> None:
        super()._check_numbers()
        if self.text_rows < 1:
            raise BenchError(f"backbone.train.text_rows is {self.text_rows}: set it to at least 1.")


@dataclass(frozen=True, eq=False)
class T5:
    """The text encoder. It sees padding without a mask, as in diffusers' pipeline; states are of a prompt's tokens."""

    encoder: Any
    tokenizer: Any
    rows: int

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning([self._states(prompt) for prompt in prompts])

    def _states(self, prompt: str) -> Tensor:
        ids = self.tokenizer(prompt).input_ids
        if len(ids) > self.rows:
            raise BenchError(
                f"prompt {prompt[:40]!r} has {len(ids)} tokens and {self.rows} fit: shorten it, or raise "
                "backbone.train.text_rows."
            )
        padded = [*ids, *[self.tokenizer.pad_token_id] * (self.rows - len(ids))]
        states: Tensor = self.encoder(torch.tensor([padded], device=self.encoder.device))[0]
        return states[0, : len(ids)]


class LTXVideo(PipelineBackbone[T5]):
    """A policy on the transformer of LTX-Video."""

    options = LTXOptions
    parts, text_parts = LAYOUT.parts, ("text_encoder", "tokenizer")
    blocks = "transformer_blocks"
    lora_targets: ClassVar[dict[str, str]] = {
        "attention": ATTENTION,
        "attention+ff": rf"({ATTENTION}|ff\.net\.(0\.proj|2))",
    }
    lora_prefix = "transformer."

    @show_options(LTXOptions)
    def __init__(self, checkpoint: str | Path, shard: Shard | None = None, **settings: Any) -> None:
        options = LTXOptions(**settings)
        self.text_rows = options.text_rows
        self._set_up(Path(checkpoint), options, shard)

    @classmethod
    def _check_folder(cls, folder: Path, options: LTXOptions) -> None:
        LAYOUT.check(folder)
        vae = read_config(folder / "vae" / "config.json")
        if vae.get("timestep_conditioning"):
            raise BenchError(f"checkpoint {folder} has a VAE with timestep_conditioning: give a folder without it.")
        frame_size(options.size, **_compression(vae))

    def _load_network(self, device: torch.device) -> Any:
        from diffusers import LTXVideoTransformer3DModel

        return load_model(LTXVideoTransformer3DModel, self.folder, "transformer", device, torch_dtype=self.dtype)

    def _load_vae(self, device: torch.device) -> Any:
        from diffusers import AutoencoderKLLTXVideo

        return load_model(AutoencoderKLLTXVideo, self.folder, "vae", device, torch_dtype=torch.float32)

    def _tile_vae(self, tiling: tuple[int, ...]) -> None:
        names = (f"tile_sample_{what}" for what in ("min_height", "min_width", "stride_height", "stride_width"))
        self.vae.enable_tiling(**dict(zip(names, tiling, strict=True)))

    @classmethod
    def _load_text(cls, folder: Path, options: LTXOptions, dtype: torch.dtype, device: torch.device) -> T5:
        from transformers import AutoTokenizer, T5EncoderModel

        encoder = load_model(T5EncoderModel, folder, "text_encoder", device, dtype=dtype)
        with loading(folder):
            tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        return T5(encoder, tokenizer, options.text_rows)

    @classmethod
    def _text_settings(cls, options: LTXOptions) -> str:
        return f" padded to {options.text_rows}"

    def _latent_shape(self, options: LTXOptions) -> tuple[int, int, int, int]:
        factors = _compression(self.vae.config)
        self._scale = factors["time"] / self.fps, factors["space"], factors["space"]
        return (self.vae.config.latent_channels, *frame_size(options.size, **factors))

    def _branch(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """The text is padded after the encoder, and the padding is masked."""
        dtype, (b, _, frames, height, width) = self.transformer.proj_in.weight.dtype, x.shape
        text = torch.zeros(b, self.text_rows, cond.text[0].shape[1], dtype=dtype, device=self.device)
        mask = torch.zeros(b, self.text_rows, dtype=torch.bool, device=self.device)
        for i, states in enumerate(cond.text):
            text[i, : len(states)], mask[i, : len(states)] = states.to(self.device, dtype), True
        fsdp.keep_gathered(self.transformer)
        predicted: Tensor = self.transformer(
            hidden_states=x.flatten(2).transpose(1, 2).to(dtype),
            encoder_hidden_states=text,
            timestep=TIMESTEPS * sigma.float(),
            encoder_attention_mask=mask,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=self._scale,
            return_dict=False,
        )[0]
        return predicted.float().transpose(1, 2).unflatten(2, (frames, height, width))

    def _vae_latents(self, x0: Tensor) -> Tensor:
        mean, std = (values.reshape(1, -1, 1, 1, 1) for values in (self.vae.latents_mean, self.vae.latents_std))
        scaled: Tensor = x0 * std / self.vae.config.scaling_factor + mean
        return scaled

    def _more_settings(self) -> dict[str, Any]:
        return {"text_rows": self.text_rows, "vae_tiling": self.tiling}


def _compression(vae: Any) -> dict[str, int]:
    """Frames per latent frame after the first, and pixels along a side of a latent, from the VAE's config."""
    halvings = 2 ** sum(map(bool, vae["spatio_temporal_scaling"]))
    return {"time": vae["patch_size_t"] * halvings, "space": vae["patch_size"] * halvings}
