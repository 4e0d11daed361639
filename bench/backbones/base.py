"""What backbones on a diffusers pipeline folder share: prompts, guidance, decoding, the policy and its anchors.

A model's package has its own class, which derives from `PipelineBackbone` and says how its parts are loaded, how a
velocity is computed, and what scales latents for the VAE.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Conditioning, Shard
from bench.backbones import fsdp
from bench.backbones.export import exported_files
from bench.backbones.folder import files_digest
from bench.backbones.lora_files import read_lora, running_lora
from bench.backbones.options import TrainingOptions
from bench.backbones.policy import FullPolicy, LoRAPolicy, Policy
from bench.backbones.prompt_cache import Loaded, PromptStates


class PipelineBackbone(ABC, Generic[Loaded]):
    """A policy on the transformer of a diffusers pipeline folder.

    A constructor calls `_set_up`.
    """

    options: ClassVar[type[TrainingOptions]]
    """The settings under `backbone.train` of a suite."""
    parts: ClassVar[tuple[str, ...]]
    """Folders of the checkpoint whose files count for the fingerprint."""
    text_parts: ClassVar[tuple[str, ...]]
    """Those of them that the text states depend on."""
    blocks: ClassVar[str]
    """Name of the transformer's list of blocks."""
    lora_targets: ClassVar[Mapping[str, str]]
    """Patterns of the layers in a block, by the value of `lora_targets`."""
    untrained: ClassVar[tuple[str, ...]] = ()
    """Weights that full training leaves out, in words."""
    lora_prefix: ClassVar[str] = ""
    """Start of the keys of an exported LoRA."""

    folder: Path
    device: torch.device
    dtype: torch.dtype
    transformer: Any
    vae: Any
    prompts: PromptStates[Loaded]
    policy: Policy
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
        if checkpoint is not None:
            cls._check_folder(checkpoint, options)

    def _set_up(self, folder: Path, options: TrainingOptions, shard: Shard | None) -> None:
        """Check the folder, load its models, and make the policy."""
        self._check_folder(folder, options)
        self.folder = folder
        self.device, self.dtype = _device_and_dtype(options)
        self.uncond_prompt = self._uncond_prompt(options)
        self.prompts = self._prompt_states(folder, options)
        self.transformer, self.vae = self._load_models()
        self.fps, self.decode_batch = float(options.fps), options.decode_batch
        self.latent_shape = self._latent_shape(options)
        self._share_context(options)
        self.tiling = None if options.vae_tiling is None else tuple(options.vae_tiling)
        if self.tiling is not None:
            self.vae.enable_tiling(*self.tiling)
        self._set_up_policy(options, shard)

    def _set_up_policy(self, options: TrainingOptions, shard: Shard | None) -> None:
        """Make the policy on the transformer, and shard this."""
        if options.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        blocks = getattr(self.transformer, self.blocks)
        if options.lora_rank:
            self.policy = LoRAPolicy(
                self.transformer,
                self.device,
                rank=options.lora_rank,
                alpha=options.lora_alpha or 2 * options.lora_rank,
                blocks=self.blocks,
                pattern=self.lora_targets[options.lora_targets],
            )
            fsdp.shard_model(self.transformer, blocks, shard)  # after the policy: the adapter is sharded too
            return
        # before the policy: it copies this process's shards
        fsdp.shard_model(self.transformer, blocks, shard)
        anchor_device = torch.device("cpu") if options.anchors_on == "cpu" else self.device
        self.policy = FullPolicy(self.transformer, anchor_device, self._fully_trained(), self.untrained)

    @abstractmethod
    def _load_models(self) -> tuple[Any, Any]:
        """The transformer and the VAE, on the device."""

    @abstractmethod
    def _latent_shape(self, options: Any) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of a latent; the VAE is loaded."""

    @abstractmethod
    def _share_context(self, options: Any) -> None:
        """Install the context parallelism of the options in the transformer."""

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
    def export_policy(
        cls, policy: Mapping[str, Tensor], fingerprint: Mapping[str, str], checkpoint: Path | None
    ) -> dict[str, bytes]:
        """Files for diffusers and peft (`export`)."""
        settings = json.loads(fingerprint.get("settings", "{}"))
        if "r" not in settings or checkpoint is None:
            raise BenchError("its record contains no LoRA rank, so its policy cannot be exported.")
        return exported_files(policy, settings, checkpoint, cls.blocks, cls.lora_prefix)

    @classmethod
    def check_policy_file(cls, path: Path, checkpoint: Path | None) -> Mapping[str, Any]:
        """Layout, layers, ranks and alphas of a LoRA of another program (`bench.backbones.lora_files`)."""
        assert checkpoint is not None, "the class needs one, so that a suite without it is refused before"
        return read_lora(path, checkpoint / "transformer").facts()

    def as_policy_file(self, path: Path) -> AbstractContextManager[None]:
        """Run with a LoRA of another program, in float32, in place of the policy."""
        return running_lora(self.transformer, self.device, read_lora(path, self.folder / "transformer"))

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
        """v = noise - x0 in float32; above guidance 1, uncond + guidance * (cond - uncond) with `uncond_prompt`."""
        home, x, sigma = x.device, x.to(self.device), sigma.to(self.device)
        v = self._branch(x, sigma, cond)
        if guidance == 1:
            return v.to(home)
        with torch.set_grad_enabled(torch.is_grad_enabled() and uncond_grad):
            base = self._branch(x, sigma, self.encode([self.uncond_prompt]).take([0] * len(x)))
        return (base + guidance * (v - base)).to(home)

    @torch.no_grad()
    def decode(self, x0: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b 3 F H W"]:
        """Pixels in [0, 1], `decode_batch` videos at a time."""
        scaled = self._vae_latents(x0.to(self.device, self.vae.dtype))
        pixels = torch.cat([self.vae.decode(part, return_dict=False)[0] for part in scaled.split(self.decode_batch)])
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
