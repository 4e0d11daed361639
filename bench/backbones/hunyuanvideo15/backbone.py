"""HunyuanVideo-1.5 at full size and as the miniature nano: same diffusers pipeline folder, same classes, same code.

The sampling loop belongs to the harness. This class encodes prompts, predicts velocities on valid text tokens only,
decodes latents, and holds the policy and its anchors (`policy`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Conditioning, ModelCost, Shard
from bench.backbones import fsdp
from bench.backbones.hunyuanvideo15 import checkpoint as files
from bench.backbones.hunyuanvideo15.context_parallel import share_context
from bench.backbones.hunyuanvideo15.cost import model_cost
from bench.backbones.hunyuanvideo15.export import exported_files
from bench.backbones.hunyuanvideo15.options import HunyuanOptions, check_sizes, latent_shape, show_options
from bench.backbones.hunyuanvideo15.policy import BLOCKS, LORA_TARGETS, UNTRAINED, fully_trained
from bench.backbones.hunyuanvideo15.prompt_cache import EMPTY, PromptStates
from bench.backbones.hunyuanvideo15.text_encoders import TextEncoders
from bench.backbones.hunyuanvideo15.transformer import velocity
from bench.backbones.lora_files import read_lora, running_lora
from bench.backbones.policy import FullPolicy, LoRAPolicy, Policy


class HunyuanVideo15:
    """A policy on the transformer of a diffusers pipeline folder.

    `checkpoint`: the folder. `shard`: how the transformer's weights are sharded over all processes of the run, which a
    launch decides and not a suite (`fsdp`). `settings`: the fields of `HunyuanOptions`.
    """

    @show_options
    def __init__(self, checkpoint: str | Path, shard: Shard | None = None, **settings: Any) -> None:
        self.folder, options = Path(checkpoint), HunyuanOptions(**settings)
        _check_folder(self.folder, options)
        self.device, self.dtype = _place(options)
        self.prompts = _prompt_states(self.folder, options)
        self.transformer = files.load_transformer(self.folder, self.dtype, self.device)
        self.vae = files.load_vae(self.folder, self.device)
        self.fps, self.decode_batch = float(options.fps), options.decode_batch
        self.convention = options.convention
        self.latent_shape = latent_shape(options.size, self.vae.config)
        share_context(self.transformer, options.parallel, self.latent_shape)
        self.tiling = None if options.vae_tiling is None else tuple(options.vae_tiling)
        if self.tiling is not None:
            self.vae.enable_tiling(*self.tiling)
        if options.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        self.policy = self._make_policy(options, shard)

    def _make_policy(self, options: HunyuanOptions, shard: Shard | None) -> Policy:
        """The policy on the transformer, which this shards."""
        blocks = self.transformer.transformer_blocks
        if options.lora_rank:
            lora = LoRAPolicy(
                self.transformer,
                self.device,
                rank=options.lora_rank,
                alpha=options.lora_alpha or 2 * options.lora_rank,
                blocks=BLOCKS,
                pattern=LORA_TARGETS[options.lora_targets],
            )
            fsdp.shard_model(self.transformer, blocks, shard)  # after the policy: the adapter is sharded too
            return lora
        # before the policy: it copies this process's shards
        fsdp.shard_model(self.transformer, blocks, shard)
        anchor_device = torch.device("cpu") if options.anchors_on == "cpu" else self.device
        untrained = [*UNTRAINED, "last block's text output"]
        return FullPolicy(self.transformer, anchor_device, fully_trained(self.transformer), untrained)

    @classmethod
    def check_suite(cls, checkpoint: Path | None, guidance: float, params: Mapping[str, Any]) -> None:
        """Refuse unfit options, an unfit folder, and guidance on a distilled model, without loading anything.

        `checkpoint`: None if the folder does not exist yet; only the options are checked then.
        """
        options = HunyuanOptions(**params)
        if checkpoint is not None:
            _check_folder(checkpoint, options)
            files.refuse_guidance(checkpoint, guidance)

    @classmethod
    def export_policy(
        cls, policy: Mapping[str, Tensor], fingerprint: Mapping[str, str], checkpoint: Path | None
    ) -> dict[str, bytes]:
        """Files for diffusers and peft (`export`)."""
        settings = json.loads(fingerprint.get("settings", "{}"))
        if "r" not in settings or checkpoint is None:
            raise BenchError("its record contains no LoRA rank, so its policy cannot be exported.")
        return exported_files(policy, settings, checkpoint)

    @classmethod
    def check_policy_file(cls, path: Path, checkpoint: Path | None) -> Mapping[str, Any]:
        """Layout, layers, ranks and alphas of a LoRA of another program (`bench.backbones.lora_files`)."""
        assert checkpoint is not None, "the class needs one, so that a suite without it is refused before"
        return read_lora(path, checkpoint / "transformer").facts()

    def as_policy_file(self, path: Path) -> AbstractContextManager[None]:
        """Run with a LoRA of another program, in float32, in place of the policy."""
        return running_lora(self.transformer, self.device, read_lora(path, self.folder / "transformer"))

    @classmethod
    def model_cost(cls, checkpoint: Path | None, params: Mapping[str, Any], words: float) -> ModelCost:
        """Sizes for `bench plan` (`cost`)."""
        return model_cost(checkpoint, params, words)

    @classmethod
    def encode_first(
        cls, prompts: Sequence[str], checkpoint: Path | None, params: Mapping[str, Any]
    ) -> PromptStates | None:
        """The prompts' states from encoders that are freed again; None if they are resident."""
        options = HunyuanOptions(**params)
        if checkpoint is None or options.text_encoders == "resident":
            return None
        _check_folder(checkpoint, options)
        states = _prompt_states(checkpoint, options)
        states.encode(prompts)
        return states

    def take_states(self, states: PromptStates) -> None:
        """Use states that were encoded before."""
        self.prompts = states

    @property
    def text(self) -> TextEncoders:
        """The text encoders; loaded for this call if they are not resident."""
        return self.prompts.encoders

    def reset(self, rng: torch.Generator) -> None:
        """A fresh policy, equal to the base, drawn from `rng` only."""
        self.policy.reset(rng)

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trained weights, in a fixed order."""
        return self.policy.parameters()

    def refresh_anchor(self, name: str) -> None:
        """Copy the policy into the anchor `name`, which the first refresh creates."""
        self.policy.refresh_anchor(name)

    def blend_anchor(self, name: str, decay: float) -> None:
        """Make each weight of the anchor decay * anchor + (1 - decay) * policy."""
        self.policy.blend_anchor(name, decay)

    def as_anchor(self, name: str) -> AbstractContextManager[None]:
        """Run as a frozen reference: the base ("fixed", or an anchor never refreshed) or a stored copy of the policy.

        It changes neither a graph recorded before nor a backward pass after it.
        """
        return self.policy.as_anchor(name)

    def state_dict(self) -> dict[str, Tensor]:
        """The policy and its stored anchors, as "<name>:<weight>"."""
        return self.policy.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the policy and the anchors of `state`, bit for bit; `BenchError` for other weights."""
        self.policy.load_state_dict(state)

    def stored(self, tensor: Tensor) -> Tensor:
        """A full copy of a tensor that is sharded as the weights are: on process 0, elsewhere without data (meta)."""
        return fsdp.stored(tensor)

    def part_of(self, whole: Tensor, like: Tensor) -> Tensor:
        """This process's shard of `whole`, sharded as the weight `like` is."""
        return fsdp.part_of(whole, like)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """States of each prompt, encoded alone and once."""
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
        text, glyph = ([state.to(self.device) for state in states] for states in (cond.text, cond.more["glyph"]))
        return velocity(self.transformer, x, sigma, text, glyph, self.convention == "tencent")

    def round_latents(self, x: Float[Tensor, "b c f h w"], first: bool) -> Float[Tensor, "b c f h w"]:
        """The first noise, or the latents after a step, rounded as the convention does; float32 in any case."""
        exact = self.convention is None or (self.convention == "tencent" and not first)
        return x if exact else x.to(self.dtype).float()

    @torch.no_grad()
    def decode(self, x0: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b 3 F H W"]:
        """Pixels in [0, 1], `decode_batch` videos at a time."""
        scaled = x0.to(self.device, self.vae.dtype) / self.vae.config.scaling_factor
        pixels = torch.cat([self.vae.decode(part, return_dict=False)[0] for part in scaled.split(self.decode_batch)])
        return (pixels.float() / 2 + 0.5).clamp(0, 1).to(x0.device)

    def fingerprint(self) -> dict[str, str]:
        """sha256 over the weight files, and the settings that change a number.

        `vae_tiling` and `convention` were added later and are left out if they are None.
        """
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


def _check_folder(folder: Path, options: HunyuanOptions) -> None:
    """Refuse a folder that would not load, or that does not fit the options."""
    files.check_folder(folder)
    check_sizes(folder, options)


def _place(options: HunyuanOptions) -> tuple[torch.device, torch.dtype]:
    """Device of the models, and type of the transformer and of the text encoders."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return device, getattr(torch, options.dtype)


def _prompt_states(folder: Path, options: HunyuanOptions) -> PromptStates:
    """The text states of a folder's encoders, which are loaded now if they are resident, else for new prompts."""
    device, dtype = _place(options)
    return PromptStates(
        lambda: files.load_text(folder, dtype, device),
        keep=options.text_encoders == "resident",
        cache=None if options.text_cache is None else Path(options.text_cache),
        key=lambda: f"{files.files_digest(folder, files.TEXT_PARTS)} {dtype}",
    )
