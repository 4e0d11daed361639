"""HunyuanVideo-1.5, at full size and as the nano miniature: same diffusers pipeline folder, same classes, same code.

The sampling loop is the harness's; this class encodes prompts, predicts velocities on valid text tokens only, decodes
latents, and holds the policy and its anchors (`hunyuan_policy`).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import Conditioning
from bench.backbones.hunyuanvideo15 import checkpoint as files
from bench.backbones.hunyuanvideo15 import fsdp as shards
from bench.backbones.hunyuanvideo15 import options as checks
from bench.backbones.hunyuanvideo15.context_parallel import share_context
from bench.backbones.hunyuanvideo15.policy import FullPolicy, LoRAPolicy, Policy
from bench.backbones.hunyuanvideo15.prompt_cache import EMPTY, PromptStates
from bench.backbones.hunyuanvideo15.text_encoders import TextEncoders
from bench.backbones.hunyuanvideo15.transformer import velocity

Tiles = tuple[int, int, int, int]


class HunyuanVideo15:
    """A policy on the transformer of a diffusers pipeline folder.

    `size` is (frames, height, width) in pixels. `dtype` is that of the base; LoRA weights, latents and guidance are
    float32. `device` holds the models, by default the GPU where there is one; latents come and go on the caller's.

    `lora_rank` 0 trains all weights; `anchors_on` then says where their copies wait ("cpu", or "model": beside it).
    `convention` fixes what two samplers of this model round differently, in the dtype of the base:

    |           | timestep | first noise | latents after each step |
    |-----------|----------|-------------|-------------------------|
    | None      | rounded  | float32     | float32                 |
    | tencent   | float32  | rounded     | float32                 |
    | diffusers | rounded  | rounded     | rounded                 |

    `vae_tiling` is None (whole latents) or four sizes: tile height and width in pixels, then in latents.
    `text_encoders` stay in memory ("resident") or are loaded for new prompts only ("released"); `text_cache` is a
    folder that keeps the prompts' states between runs. `gradient_checkpointing` trades time for memory, bit for bit.
    `parallel: {context: n}` spreads the latent tokens of a sample over n processes. `shard` spreads the transformer
    over all of them (`hunyuan_shards`); it belongs to a run's launch, not to its suite.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        size: tuple[int, int, int] = (13, 16, 16),
        fps: float = 8.0,
        dtype: Literal["float32", "bfloat16"] = "float32",
        lora_rank: int = 8,
        lora_alpha: int | None = None,
        lora_targets: Literal["attention", "attention+ff"] = "attention+ff",
        decode_batch: int = 16,
        device: str | None = None,
        vae_tiling: Tiles | None = None,
        convention: Literal["tencent", "diffusers"] | None = None,
        gradient_checkpointing: bool = False,
        anchors_on: Literal["cpu", "model"] = "cpu",
        text_encoders: Literal["resident", "released"] = "resident",
        text_cache: str | Path | None = None,
        parallel: Mapping[str, int] | None = None,
        shard: shards.Shard | None = None,
    ):
        self.folder = Path(checkpoint)
        given = {"size": size, "lora_rank": lora_rank, "lora_targets": lora_targets, "vae_tiling": vae_tiling}
        given |= {"convention": convention, "anchors_on": anchors_on, "text_encoders": text_encoders}
        _check(self.folder, {**given, "dtype": dtype, "parallel": parallel})
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.transformer = files.load_transformer(self.folder, self.dtype, self.device)
        self.vae = files.load_vae(self.folder, self.device)
        cache = None if text_cache is None else Path(text_cache)
        self.prompts = PromptStates(self._load_text, text_encoders == "resident", cache, self._text_key)
        self.fps, self.decode_batch, self.convention = float(fps), decode_batch, convention
        self.latent_shape = checks.latent_shape(tuple(size), self.vae.config)
        share_context(self.transformer, parallel or {}, self.latent_shape)
        self.tiling = None if vae_tiling is None else self._tile(tuple(vae_tiling))
        if gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        self.policy: Policy
        if lora_rank:
            alpha = lora_alpha or 2 * lora_rank
            self.policy = LoRAPolicy(self.transformer, self.device, lora_rank, alpha, lora_targets)
            shards.shard_model(self.transformer, shard)  # the adapter with its base
        else:
            shards.shard_model(self.transformer, shard)  # first: the policy copies what this process holds
            self.policy = FullPolicy(self.transformer, torch.device("cpu") if anchors_on == "cpu" else self.device)

    @classmethod
    def check_suite(cls, checkpoint: Path | None, guidance: float, params: Mapping[str, Any]) -> None:
        """Refuse what would fail after minutes of loading: options, the folder, guidance on a distilled model.

        `checkpoint`: None where the folder is not there yet; only the options are looked at.
        """
        defaults = {p.name: p.default for p in inspect.signature(cls).parameters.values()}
        _check(checkpoint, {**defaults, **params})
        if checkpoint is not None:
            files.refuse_guidance(checkpoint, guidance)

    def _load_text(self) -> TextEncoders:
        return files.load_text(self.folder, self.dtype, self.device)

    def _text_key(self) -> str:
        return f"{files.files_digest(self.folder, files.TEXT_PARTS)} {self.dtype}"

    @property
    def text(self) -> TextEncoders:
        """The text encoders; loaded for this call where they are not resident."""
        return self.prompts.encoders

    def _tile(self, tiles: tuple[int, ...]) -> tuple[int, ...]:
        """Switch tiling on."""
        checks.check_tiles(tiles, self.vae.spatial_compression_ratio)
        self.vae.enable_tiling(*tiles)
        return tiles

    # the policy and its anchors ---------------------------------------------------------------------------------
    def reset(self, rng: torch.Generator) -> None:
        """A fresh policy, equal to the base, drawn from `rng` only."""
        self.policy.reset(rng)

    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained, in a fixed order."""
        return self.policy.parameters()

    def refresh_anchor(self, name: str) -> None:
        """Copy the policy into the anchor `name`, which comes into being on its first refresh."""
        self.policy.refresh_anchor(name)

    def as_anchor(self, name: str) -> AbstractContextManager[None]:
        """Run as a frozen reference: the base ("fixed", or an anchor never refreshed) or a stored copy of the policy.

        Neither a graph made before nor a backward pass after it is touched.
        """
        return self.policy.as_anchor(name)

    def state_dict(self) -> dict[str, Tensor]:
        """The policy and its stored anchors, as "<name>:<weight>"."""
        return self.policy.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The policy and the anchors of `state`, bit for bit; other weights are refused."""
        self.policy.load_state_dict(state)

    def stored(self, tensor: Tensor) -> Tensor:
        """A whole copy of a tensor that is spread as the weights are: on process 0, elsewhere without data (meta)."""
        return shards.stored(tensor)

    def part_of(self, whole: Tensor, like: Tensor) -> Tensor:
        """`whole` as this process holds the weight `like`."""
        return shards.part_of(whole, like)

    # the calls of the harness -----------------------------------------------------------------------------------
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """States of each prompt alone, encoded once."""
        return self.prompts.encode(prompts)

    def velocity(
        self,
        x: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, "b"],
        cond: Conditioning,
        guidance: float,
        uncond_grad: bool = True,
    ) -> Float[Tensor, "b c f h w"]:
        """v = noise - x0 in float32; above guidance 1, uncond + guidance * (cond - uncond) with the empty prompt."""
        home, x, sigma = x.device, x.to(self.device), sigma.to(self.device)
        v = self._branch(x, sigma, cond)
        if guidance == 1:
            return v.to(home)
        files.refuse_guidance(self.folder, guidance)
        with torch.set_grad_enabled(torch.is_grad_enabled() and uncond_grad):
            base = self._branch(x, sigma, self.encode([EMPTY]).take([0] * len(x)))
        return (base + guidance * (v - base)).to(home)

    def _branch(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        text, glyph = ([state.to(self.device) for state in states] for states in (cond.text, cond.glyph))
        return velocity(self.transformer, x, sigma, text, glyph, self.convention == "tencent")

    def round_latents(self, x: Float[Tensor, "b c f h w"], first: bool) -> Float[Tensor, "b c f h w"]:
        """The first noise, or the latents after a step, as the convention keeps them; float32 in any case."""
        kept = self.convention is None or (self.convention == "tencent" and not first)
        return x if kept else x.to(self.dtype).float()

    @torch.no_grad()
    def decode(self, x0: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b 3 F H W"]:
        """Pixels in [0, 1], `decode_batch` videos at a time."""
        scaled = x0.to(self.device, self.vae.dtype) / self.vae.config.scaling_factor
        pixels = torch.cat([self.vae.decode(part, return_dict=False)[0] for part in scaled.split(self.decode_batch)])
        return (pixels.float() / 2 + 0.5).clamp(0, 1).to(x0.device)

    def fingerprint(self) -> dict[str, str]:
        """sha256 over the weight files and the settings that change a number; later ones only where they are set."""
        settings = {
            **self.policy.settings(),
            "dtype": str(self.dtype),
            "latent_shape": self.latent_shape,
            "fps": self.fps,
            "decode_batch": self.decode_batch,
        }
        for name, value in {"vae_tiling": self.tiling, "convention": self.convention}.items():
            if value is not None:
                settings[name] = value
        digest = files.files_digest(self.folder, files.PARTS)
        return {"weights_sha256": digest, "settings": json.dumps(settings, sort_keys=True)}


def _check(folder: Path | None, options: Mapping[str, Any]) -> None:
    """Everything that can be known before loading."""
    checks.check_options(options)
    if folder is not None:
        files.check_folder(folder, options["dtype"])
        checks.check_sizes(folder, options)
