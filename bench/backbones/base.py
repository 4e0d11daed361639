"""What backbones on a diffusers pipeline folder share: prompts, guidance, decoding, the policy and its anchors.

A model's package has its own class, which derives from `PipelineBackbone` and says how its parts are loaded, how a
velocity is computed, and what scales latents for the VAE.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Conditioning, Shard, context_degree
from bench.backbones import fsdp
from bench.backbones.attention import BACKENDS, NATIVE, check_attention
from bench.backbones.compilation import check_compiler, compile_blocks
from bench.backbones.folder import files_digest
from bench.backbones.holder import HoldsPolicy
from bench.backbones.options import TrainingOptions
from bench.backbones.policy import FullPolicy, LoRAPolicy
from bench.backbones.prompt_cache import Loaded, PromptStates
from bench.backbones.quantization import quantize_blocks


class PipelineBackbone(HoldsPolicy, ABC, Generic[Loaded]):
    """A policy on the transformer of a diffusers pipeline folder.

    A constructor calls `_set_up`.
    """

    options: ClassVar[type[TrainingOptions]]
    """The settings under `backbone.train` of a suite."""
    parts: ClassVar[tuple[str, ...]]
    """Folders of the checkpoint whose files count for the fingerprint."""
    text_parts: ClassVar[tuple[str, ...]]
    """Those of them that the text states depend on."""
    lora_targets: ClassVar[Mapping[str, str]]
    """Patterns of the layers in a block, by the value of `lora_targets`."""
    untrained: ClassVar[tuple[str, ...]] = ()
    """Weights that full training leaves out, in words."""

    dtype: torch.dtype
    base_weights: str
    numeric_options: Mapping[str, str]
    """The options that change numbers and are not at their default."""
    vae: Any
    prompts: PromptStates[Loaded]
    latent_shape: tuple[int, int, int, int]
    fps: float
    decode_batch: int
    tiling: tuple[int, ...] | None
    uncond_prompt: str = ""
    """Prompt of the unconditional branch of guidance."""

    @classmethod
    def check_suite(cls, checkpoint: Path | None, guidance: float, params: Mapping[str, Any]) -> None:
        """Refuse unfit options and an unfit folder, without loading anything.

        `checkpoint`: None if the folder does not exist yet; only the options are checked then.
        """
        options = cls.options(**params)
        cls._check_abilities(options)
        if checkpoint is not None:
            cls._check_folder(checkpoint, options)

    @classmethod
    def check_machine(cls, params: Mapping[str, Any]) -> None:
        """Refuse options that this machine lacks something for: a GPU, a package."""
        cls._check_machine(cls.options(**params))

    @classmethod
    def _check_machine(cls, options: TrainingOptions) -> None:
        device, _ = _device_and_dtype(options)
        check_attention(options.attention, device)
        if options.execution == "compiled":
            check_compiler(device)

    @classmethod
    def _check_abilities(cls, options: TrainingOptions) -> None:
        """Refuse options for which the model has no method."""
        for option, is_set, method in (
            ("parallel", context_degree(options.parallel) > 1, "_share_context"),
            ("attention", options.attention != NATIVE, "_use_attention"),
        ):
            if is_set and getattr(cls, method) is getattr(PipelineBackbone, method):
                raise BenchError(
                    f"backbone.train.{option} is {getattr(options, option)!r}, but {cls.__name__} has no `{method}`: "
                    f"write it, or leave out backbone.train.{option}."
                )

    def _set_up(self, folder: Path, options: TrainingOptions, shard: Shard | None) -> None:
        """Check the folder and the machine, load the models, and make the policy.

        `_latent_shape` finds `folder`, `device`, `dtype`, `transformer`, `vae` and `fps`.
        """
        self._check_abilities(options)
        if options.execution == "compiled" and shard is not None:
            raise BenchError(
                "backbone.train.execution compiled does not work on a sharded model: leave out --shard, or set "
                "backbone.train.execution to eager."
            )
        self._check_folder(folder, options)
        self._check_machine(options)
        self.folder, self.lora_in_base_dtype = folder, options.lora_products == "base_dtype"
        self.device, self.dtype = _device_and_dtype(options)
        self.uncond_prompt = self._uncond_prompt(options)
        self.prompts = self._prompt_states(folder, options)
        self.base_weights, self.numeric_options = options.base_weights, options.numeric()
        self._joint = options.guidance_branches == "joint"
        self._vae_home = torch.device("cpu") if options.idle_models == "cpu" else self.device
        self.transformer, self.vae = self._load_transformer(), self._load_vae(self._vae_home)
        self.fps, self.decode_batch = float(options.fps), options.decode_batch
        self.latent_shape = self._latent_shape(options)
        self._share_context(options)
        if options.attention != NATIVE:
            self._use_attention(BACKENDS[options.attention])
        self.tiling = None if options.vae_tiling is None else tuple(options.vae_tiling)
        if self.tiling is not None:
            self._tile_vae(self.tiling)
        self._set_up_policy(options, shard)

    def _set_up_policy(self, options: TrainingOptions, shard: Shard | None) -> None:
        """Make the policy on the transformer, and shard this."""
        blocks = self._checked_blocks(options)
        if options.execution == "compiled":
            compile_blocks(blocks)
        if options.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if options.lora_rank:
            self.policy = LoRAPolicy(
                self.transformer,
                self.device,
                rank=options.lora_rank,
                alpha=options.lora_alpha or 2 * options.lora_rank,
                blocks=self.blocks,
                pattern=self.lora_targets[options.lora_targets],
                in_base_dtype=self.lora_in_base_dtype,
            )
            fsdp.shard_model(self.transformer, blocks, shard)  # after the policy: the adapter is sharded too
            return
        # before the policy: it copies this process's shards
        fsdp.shard_model(self.transformer, blocks, shard)
        anchor_device = torch.device("cpu") if options.anchors_on == "cpu" else self.device
        self.policy = FullPolicy(self.transformer, anchor_device, self._fully_trained(), self.untrained)

    def _checked_blocks(self, options: TrainingOptions) -> Any:
        """The transformer's list of blocks; refuses class attributes that do not name its layers."""
        cls, blocks = type(self).__name__, getattr(self.transformer, self.blocks, None)
        if blocks is None:
            raise BenchError(
                f"{cls}.blocks is {self.blocks!r}, which {type(self.transformer).__name__} does not have: give the "
                "name of its list of blocks."
            )
        layers = [name for block in blocks for name, _ in block.named_modules()]
        counts = {key: sum(bool(re.fullmatch(p, name)) for name in layers) for key, p in self.lora_targets.items()}
        missing = [key for key in options.choices["lora_targets"] if not counts.get(str(key))]
        if missing:
            raise BenchError(
                f"{cls}.lora_targets has no pattern {missing[0]!r} that matches a layer in a block: give a regular "
                "expression of names such as attn.to_q."
            )
        if counts["attention+ff"] <= counts["attention"]:
            raise BenchError(
                f"{cls}.lora_targets: 'attention+ff' matches {counts['attention+ff']} layers and 'attention' "
                f"{counts['attention']}: add the feed-forward layers to the first."
            )
        return blocks

    def _load_transformer(self) -> Any:
        """The transformer on the device; with int8 weights it is quantized on the CPU, and only these move."""
        if self.base_weights == "as_dtype":
            return self._load_network(self.device)
        transformer = self._load_network(torch.device("cpu"))
        quantize_blocks(getattr(transformer, self.blocks))
        return transformer.to(self.device)

    @abstractmethod
    def _load_network(self, device: torch.device) -> Any:
        """The transformer in the dtype of the options."""

    @abstractmethod
    def _load_vae(self, device: torch.device) -> Any:
        """The VAE."""

    @abstractmethod
    def _latent_shape(self, options: Any) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of a latent; the VAE is loaded."""

    def _share_context(self, options: Any) -> None:
        """Install the context parallelism of the options in the transformer; a model without it is never asked to."""

    def _use_attention(self, backend: str) -> None:
        """Compute the blocks' attention with diffusers' implementation `backend`, as a model does that has others."""

    def _tile_vae(self, tiling: tuple[int, ...]) -> None:
        """Decode in tiles of the four numbers of `vae_tiling`, in the order of the VAE's `enable_tiling`."""
        self.vae.enable_tiling(*tiling)

    @classmethod
    @abstractmethod
    def _load_text(cls, folder: Path, options: Any, dtype: torch.dtype, device: torch.device) -> Loaded:
        """The text encoders of a folder, on the device. `options`: an instance of `cls.options`."""

    @classmethod
    @abstractmethod
    def _check_folder(cls, folder: Path, options: Any) -> None:
        """Refuse a folder that would not load, or that does not fit the options."""

    @classmethod
    def _prompt_states(cls, folder: Path, options: TrainingOptions) -> PromptStates[Loaded]:
        """The text states of a folder's encoders, which are loaded now if they are resident, else for new prompts."""
        device, dtype = _device_and_dtype(options)
        return PromptStates(
            lambda: cls._load_text(folder, options, dtype, device),
            unconditional=cls._uncond_prompt(options),
            keep=options.text_encoders == "resident",
            cache=None if options.text_cache is None else Path(options.text_cache),
            key=lambda: f"{files_digest(folder, cls.text_parts)} {dtype}{cls._text_settings(options)}",
        )

    @classmethod
    def _uncond_prompt(cls, options: Any) -> str:
        """Prompt of the unconditional branch of guidance."""
        return ""

    @abstractmethod
    def _branch(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """The velocity of one branch of guidance; `x` and `sigma` are on the device."""

    @abstractmethod
    def _vae_latents(self, x0: Tensor) -> Tensor:
        """What the VAE decodes; `x0` is on the device in the VAE's type."""

    def _fully_trained(self) -> dict[str, torch.nn.Parameter]:
        """The weights that full training trains, by name: all, unless a model has some without a gradient."""
        return dict(self.transformer.named_parameters())

    @classmethod
    def _text_settings(cls, options: Any) -> str:
        """What the text states depend on beside the files and the type, for the name of their cache."""
        return ""

    @classmethod
    def encode_first(
        cls, prompts: Sequence[str], checkpoint: Path | None, params: Mapping[str, Any]
    ) -> PromptStates[Loaded] | None:
        """The prompts' states from encoders that are freed again; None if they are resident."""
        options = cls.options(**params)
        if checkpoint is None or options.text_encoders == "resident":
            return None
        cls._check_folder(checkpoint, options)
        states = cls._prompt_states(checkpoint, options)
        states.encode(prompts)
        return states

    def take_states(self, states: PromptStates[Loaded]) -> None:
        """Use states that were encoded before."""
        self.prompts = states

    @property
    def text(self) -> Loaded:
        """The text encoders; loaded for this call if they are not resident."""
        return self.prompts.encoders

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
        """v = noise - x0 in float32; above guidance 1, uncond + guidance * (cond - uncond) with `uncond_prompt`."""
        home, x, sigma = x.device, x.to(self.device), sigma.to(self.device)
        if guidance == 1:
            return self._branch(x, sigma, cond).to(home)
        v, base = self._both_branches(x, sigma, cond, uncond_grad)
        return (base + guidance * (v - base)).to(home)

    def _both_branches(self, x: Tensor, sigma: Tensor, cond: Conditioning, uncond_grad: bool) -> tuple[Tensor, Tensor]:
        """Velocities with the prompts and with `uncond_prompt`; without `uncond_grad` no gradient flows to the latter.

        A joint pass computes both with gradients even so: rollouts and updates then have equal shapes, and a ratio 1.
        """
        uncond = self.encode([self.uncond_prompt]).take([0] * len(x))
        if self._joint:
            more = {name: [*states, *uncond.more[name]] for name, states in cond.more.items()}
            both = Conditioning([*cond.text, *uncond.text], more)
            v, base = self._branch(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
            return v, base if uncond_grad else base.detach()
        v = self._branch(x, sigma, cond)
        with torch.set_grad_enabled(torch.is_grad_enabled() and uncond_grad):
            return v, self._branch(x, sigma, uncond)

    @torch.no_grad()
    def decode(self, x0: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b 3 F H W"]:
        """Pixels in [0, 1], `decode_batch` videos at a time."""
        self.vae.to(self.device)
        scaled = self._vae_latents(x0.to(self.device, self.vae.dtype))
        pixels = torch.cat([self.vae.decode(part, return_dict=False)[0] for part in scaled.split(self.decode_batch)])
        self.vae.to(self._vae_home)
        return (pixels.float() / 2 + 0.5).clamp(0, 1).to(x0.device)

    def fingerprint(self) -> dict[str, str]:
        """sha256 over the weight files, and the settings that change a number."""
        settings = {
            **self.policy.settings(),
            "dtype": str(self.dtype),
            "latent_shape": self.latent_shape,
            "fps": self.fps,
            "decode_batch": self.decode_batch,
            **self._more_settings(),
            **self.numeric_options,
        }
        digest = files_digest(self.folder, self.parts)
        return {"weights_sha256": digest, "settings": json.dumps(settings, sort_keys=True)}

    def _more_settings(self) -> dict[str, Any]:
        """Settings of this model for the fingerprint."""
        return {}


def _device_and_dtype(options: TrainingOptions) -> tuple[torch.device, torch.dtype]:
    """Device of the models, and type of the transformer and of the text encoders."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return device, getattr(torch, options.dtype)
