"""HunyuanVideo-1.5, at full size and as the nano miniature: same diffusers pipeline folder, same classes, same code.

The sampling loop is the harness's; this class encodes prompts, predicts velocities on valid text tokens only, decodes
latents, and holds the LoRA policy and its anchors on one frozen base.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Conditioning
from bench.backbones.causal_mask import allow_batches
from bench.backbones.hunyuan_forward import drop_masks, velocity
from bench.backbones.hunyuan_parallel import share_context
from bench.backbones.hunyuan_text import TextEncoders

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
POLICY = "policy"
_ATTENTION = r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_FEED_FORWARD = r"(ff|ff_context)\.net\.(0\.proj|2)"
LORA_TARGETS = {"attention": _ATTENTION, "attention+ff": f"({_ATTENTION}|{_FEED_FORWARD})"}
"""Layers of the joint blocks, both streams.

Bare names such as `to_q` would also hit the text refiner, hence the pattern.
"""


class HunyuanVideo15:
    """A LoRA policy on a frozen base, loaded from a diffusers pipeline folder.

    `size` is (frames, height, width) in pixels. `dtype` is that of the base; LoRA weights, latents and guidance are
    float32. `device` holds the models, by default the GPU where there is one; latents come and go on the caller's.
    `parallel: {context: n}` spreads the latent tokens of a sample over n processes.
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
        parallel: Mapping[str, int] | None = None,
    ):
        self.folder = Path(checkpoint)
        self._check_parts()
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.transformer, self.vae, self.text = self._load(getattr(torch, dtype))
        self.fps, self.decode_batch = float(fps), decode_batch
        self.latent_shape = self._latent_shape(tuple(size))
        share_context(self.transformer, parallel or {}, self.latent_shape)
        if lora_targets not in LORA_TARGETS:
            raise BenchError(f"lora_targets is {lora_targets!r}: choose one of {', '.join(LORA_TARGETS)}.")
        self._lora = {"r": lora_rank, "lora_alpha": lora_alpha or 2 * lora_rank, "pattern": LORA_TARGETS[lora_targets]}
        self._add_adapter(POLICY)
        self._empty: Conditioning | None = None

    # loading ----------------------------------------------------------------------------------------------------
    def _check_parts(self) -> None:
        missing = [part for part in PARTS if not (self.folder / part).is_dir()]
        if missing:
            raise BenchError(
                f"checkpoint {self.folder} has no folder {missing[0]!r}: "
                "give a diffusers pipeline folder of HunyuanVideo-1.5 "
                "under backbone.checkpoint."
            )

    def _load(self, dtype: torch.dtype) -> tuple[Any, Any, TextEncoders]:
        from diffusers import AutoencoderKLHunyuanVideo15, HunyuanVideo15Transformer3DModel
        from diffusers.utils import logging as diffusers_logging
        from safetensors import SafetensorError
        from transformers import AutoTokenizer, ByT5Tokenizer, Qwen2_5_VLTextModel, T5EncoderModel
        from transformers.utils import logging as transformers_logging

        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        local = {"local_files_only": True}
        try:
            transformer, found = HunyuanVideo15Transformer3DModel.from_pretrained(
                self.folder / "transformer", torch_dtype=dtype, output_loading_info=True, **local
            )
            self._refuse_inexact("transformer", found)
            vae, found = AutoencoderKLHunyuanVideo15.from_pretrained(
                self.folder / "vae", output_loading_info=True, **local
            )
            self._refuse_inexact("vae", found)
            encoder, found = Qwen2_5_VLTextModel.from_pretrained(
                self.folder / "text_encoder", dtype=dtype, output_loading_info=True, **local
            )
            self._refuse_inexact("text_encoder", found)
            glyph, found = T5EncoderModel.from_pretrained(
                self.folder / "text_encoder_2", dtype=dtype, output_loading_info=True, **local
            )
            self._refuse_inexact("text_encoder_2", found)
            tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer", **local)
            glyph_tokenizer = ByT5Tokenizer.from_pretrained(self.folder / "tokenizer_2", **local)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as cause:
            reason = " ".join(str(cause).split())[:200]
            raise BenchError(
                f"checkpoint {self.folder} does not load ({reason}): restore the folder from its source."
            ) from cause
        for module in (transformer, vae, encoder, glyph):
            module.eval().requires_grad_(False).to(self.device)
        drop_masks(transformer)
        return transformer, allow_batches(vae), TextEncoders(encoder, tokenizer, glyph, glyph_tokenizer)

    def _refuse_inexact(self, part: str, found: Mapping[str, Any]) -> None:
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if found.get(kind):
                key = next(iter(found[kind]))
                raise BenchError(
                    f"checkpoint {self.folder}/{part} has {kind.replace('_', ' ')}, first {key!r}: "
                    "it is not a checkpoint of this model."
                )

    def _latent_shape(self, size: tuple[int, ...]) -> tuple[int, int, int, int]:
        frames, height, width = size
        time, space = self.vae.temporal_compression_ratio, self.vae.spatial_compression_ratio
        if (frames - 1) % time or height % space or width % space:
            raise BenchError(
                f"size {list(size)}: frames must be {time} n + 1, height and width multiples of {space}; "
                "set backbone.train or size accordingly."
            )
        return (self.vae.config.latent_channels, (frames - 1) // time + 1, height // space, width // space)

    # adapters ---------------------------------------------------------------------------------------------------
    def _add_adapter(self, name: str) -> None:
        """A LoRA adapter equal to the base; `reset` and `refresh_anchor` give it its weights."""
        from peft import LoraConfig

        config = LoraConfig(
            r=self._lora["r"],
            lora_alpha=self._lora["lora_alpha"],
            target_modules=rf"transformer_blocks\.\d+\.{self._lora['pattern']}",
            init_lora_weights=True,
        )
        # peft draws from the global generator (`reset` overwrites what it drew) and warns of any second adapter
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
            self.transformer.add_adapter(config, adapter_name=name)
        for parameter in self._adapter(name).values():
            parameter.data = parameter.data.to(
                self.device, torch.float32
            )  # peft makes them in the base's dtype; bfloat16 would lose updates
        if name != POLICY:
            self.transformer.set_adapter(POLICY)

    def reset(self, rng: torch.Generator) -> None:
        """Fresh policy from `rng` only: B zero, A uniform as in peft (Kaiming, a = sqrt 5: bound 1 / sqrt(inputs))."""
        with torch.no_grad():
            for name, parameter in self._adapter(POLICY).items():
                if "lora_A" in name:
                    bound = 1 / math.sqrt(parameter.shape[1])
                    parameter.copy_((torch.rand(parameter.shape, generator=rng) * 2 - 1) * bound)
                else:
                    parameter.zero_()

    def _adapter(self, name: str) -> dict[str, torch.nn.Parameter]:
        """Weights of one adapter by their name without the adapter's own."""
        mark = f".{name}."
        return {
            key.replace(mark, "."): p
            for key, p in self.transformer.named_parameters()
            if "lora_" in key and mark in key
        }

    def _adapters(self) -> list[str]:
        return list(self.transformer.peft_config)

    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained: the policy's LoRA weights, in a fixed order."""
        return list(self._adapter(POLICY).values())

    def refresh_anchor(self, name: str) -> None:
        """Copy the policy into the anchor `name`, which comes into being on its first refresh."""
        if name not in self._adapters():
            self._add_adapter(name)
        with torch.no_grad():
            for anchor, policy in zip(self._adapter(name).values(), self._adapter(POLICY).values(), strict=True):
                anchor.copy_(policy)

    @contextmanager
    def as_anchor(self, name: str) -> Iterator[None]:
        """Run as a frozen reference: the base ("fixed", or an anchor never refreshed) or a stored copy of the policy.

        Switches attributes only, so `requires_grad` of the policy stays as it is (peft's own switch clears it,
        and a backward pass after it would silently give the policy no gradient).
        """
        from peft.tuners.lora import LoraLayer

        layers = [module for module in self.transformer.modules() if isinstance(module, LoraLayer)]
        stored = name in self._adapters()
        before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
        for layer in layers:
            if stored:
                layer._active_adapter = [name]
            else:
                layer._disable_adapters = True
        try:
            with torch.no_grad():
                yield
        finally:
            for layer, (active, disabled) in zip(layers, before, strict=True):
                layer._active_adapter, layer._disable_adapters = active, disabled

    def state_dict(self) -> dict[str, Tensor]:
        """All adapters, as "<adapter>:<weight>"."""
        return {
            f"{name}:{key}": p.detach().clone() for name in self._adapters() for key, p in self._adapter(name).items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in dict.fromkeys(key.partition(":")[0] for key in state):
            if name not in self._adapters():
                self._add_adapter(name)
        own = {f"{name}:{key}": p for name in self._adapters() for key, p in self._adapter(name).items()}
        if own.keys() != state.keys() or any(own[key].shape != state[key].shape for key in own):
            raise BenchError(
                "a stored policy has other LoRA weights than this suite's backbone: "
                "it belongs to another rank or target set."
            )
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(state[key])

    # the three calls of the harness -----------------------------------------------------------------------------
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return self.text.encode(prompts)

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
        v = velocity(self.transformer, x, sigma, cond.text, cond.glyph)
        if guidance == 1:
            return v.to(home)
        if self._empty is None:
            self._empty = self.encode([""])
        text, glyph = self._empty.text * len(x), self._empty.glyph * len(x)
        with torch.set_grad_enabled(torch.is_grad_enabled() and uncond_grad):
            base = velocity(self.transformer, x, sigma, text, glyph)
        return (base + guidance * (v - base)).to(home)

    @torch.no_grad()
    def decode(self, x0: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b 3 F H W"]:
        """Pixels in [0, 1], `decode_batch` videos at a time."""
        scaled = x0.to(self.device, self.vae.dtype) / self.vae.config.scaling_factor
        pixels = torch.cat([self.vae.decode(part, return_dict=False)[0] for part in scaled.split(self.decode_batch)])
        return (pixels.float() / 2 + 0.5).clamp(0, 1).to(x0.device)

    def fingerprint(self) -> dict[str, str]:
        """sha256 over the weight files and the settings that change a number."""
        files = sorted(
            path
            for part in PARTS
            for path in (self.folder / part).rglob("*")
            if path.is_file() and path.name != "report.json"
        )
        total = hashlib.sha256()
        for path in files:
            with path.open("rb") as file:
                total.update(
                    path.relative_to(self.folder).as_posix().encode() + hashlib.file_digest(file, "sha256").digest()
                )
        settings = {
            **self._lora,
            "dtype": str(self.transformer.dtype),
            "latent_shape": self.latent_shape,
            "fps": self.fps,
            "decode_batch": self.decode_batch,
        }
        return {"weights_sha256": total.hexdigest(), "settings": json.dumps(settings, sort_keys=True)}
