"""Options that the backbones share, and how a backbone's options become the arguments of its constructor."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

from bench.api import BenchError, context_degree
from bench.backbones.attention import BACKENDS, NATIVE
from bench.backbones.folder import DTYPES

Constructor = TypeVar("Constructor", bound=Callable[..., None])

NUMERIC = ("base_weights", "attention", "lora_products", "guidance_branches", "execution")
"""Options that change numbers, beside those that every fingerprint has. The first of their choices is the default."""
LONGEST_SIDE = 10_000
"""Largest number of frames, and of pixels along a side."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The settings under `backbone.train` that every backbone on a diffusers pipeline folder has.

    `BenchError` for a value that no checkpoint accepts.
    """

    choices: ClassVar[dict[str, tuple[str | None, ...]]] = {
        "dtype": DTYPES,
        "anchors_on": ("cpu", "model"),
        "text_encoders": ("resident", "released"),
        "lora_targets": ("attention", "attention+ff"),
        "base_weights": ("as_dtype", "int8"),
        "attention": tuple(BACKENDS),
        "lora_products": ("float32", "base_dtype"),
        "guidance_branches": ("separate", "joint"),
        "execution": ("eager", "compiled"),
        "idle_models": ("resident", "cpu"),
    }
    """Options that take one of a few values."""

    size: tuple[int, int, int]
    """Frames, height and width of the videos in pixels."""
    fps: float
    """Frames per second of the videos, above 0: passed to the evaluators and written into video files."""
    vae_tiling: tuple[int, int, int, int] | None
    """Tiles for decoding; null decodes whole frames."""
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
    """Layers with a LoRA in every block: the projections of all attention, or the feed-forward layers too."""
    decode_batch: int = 16
    """Videos that the VAE decodes at once, at least 1. Memory of decoding grows in proportion."""
    device: str | None = None
    """Device of the models, such as `cpu` or `cuda`. null: the GPU if there is one.

    Latents are accepted from any device, and results are returned on it.
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
    """`resident` keeps the text encoders in memory.

    `released` loads them for new prompts only and frees them afterwards; a run encodes all prompts before the other
    models are loaded. They have 7.3e9 weights in HunyuanVideo-1.5, 5.7e9 in Wan2.1.
    """
    text_cache: str | Path | None = None
    """Folder of files that keep the text states of prompts between runs. null: no files."""
    parallel: Mapping[str, int] | None = None
    """Context parallelism: {context: n} splits the latent tokens of each sample over n processes. null: n = 1.

    n divides the latent tokens, the attention heads and the number of processes. Activations per process shrink n
    times; attention exchanges tokens in every block.
    """

    base_weights: Literal["as_dtype", "int8"] = "as_dtype"
    """Storage of the frozen transformer's weights. `int8` halves them once more than `bfloat16`, and changes numbers.

    The linear layers of the blocks have one byte per weight and one scale per row; products take the weights back into
    `dtype`. LoRA, latents and guidance are as before. It needs a LoRA. Such a base is another base: its fingerprint
    says so, and its runs are in no table with runs of the plain one.
    """

    attention: Literal["native", "cudnn", "flash", "flash3", "sage"] = "native"
    """Implementation of the blocks' attention. `native`: what PyTorch chooses.

    `cudnn`: cuDNN's kernel. `flash`, `flash3`, `sage`: FlashAttention 2 or 3, SageAttention 2, packages that you
    install. All need a GPU and `dtype: bfloat16`; `flash3` needs a Hopper GPU. Numbers change by rounding; `sage`
    also rounds queries and keys to 8 bits. `flash3` and `sage` have no backward pass here: the gradient is that of
    `native` at the same queries, keys and values.
    """

    lora_products: Literal["float32", "base_dtype"] = "float32"
    """Type of the LoRA's matrix products. `base_dtype`: that of the base, `dtype`.

    The weights and their optimizer stay in float32 and are rounded for each product. With a bfloat16 base this takes
    less time and memory, and changes numbers by rounding.
    """
    guidance_branches: Literal["separate", "joint"] = "separate"
    """`joint` computes both branches of guidance in one forward pass where their texts have equal lengths.

    They do in Wan2.1, whose text is padded. In HunyuanVideo-1.5 the empty prompt is shorter than any other, so that
    the passes stay separate. A pass has twice the samples: fewer launches of kernels, more memory, numbers changed by
    rounding.
    """
    execution: Literal["eager", "compiled"] = "eager"
    """`compiled`: `torch.compile` of the transformer's blocks, which fuses small operations.

    Each new shape and adapter costs seconds to minutes at its first use. Numbers change by rounding. It needs Triton
    on a GPU, a C++ compiler on a CPU, and works in one process per model: neither sharded nor with context
    parallelism.
    """
    idle_models: Literal["resident", "cpu"] = "resident"
    """`cpu` keeps the VAE in the host's memory and takes it to the GPU for decoding only. No number changes."""

    def __post_init__(self) -> None:
        for name, allowed in self.choices.items():
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
        if rank == 0 and self.base_weights == "int8":
            raise BenchError(
                "backbone.train.base_weights int8 freezes the base, and lora_rank 0 trains all weights: set "
                "backbone.train.lora_rank to at least 1, or backbone.train.base_weights to as_dtype."
            )
        if self.attention != NATIVE and self.dtype != "bfloat16":
            raise BenchError(
                f"backbone.train.attention {self.attention} computes in bfloat16 only, and dtype is {self.dtype}: set "
                "backbone.train.dtype to bfloat16, or backbone.train.attention to native."
            )
        if self.execution == "compiled" and context_degree(self.parallel) > 1:
            raise BenchError(
                "backbone.train.execution compiled has no context parallelism: set backbone.train.execution to eager, "
                "or backbone.train.parallel to null."
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

    @property
    def tile(self) -> tuple[int, int] | None:
        """Height and width of a tile in pixels; None where whole frames are decoded."""
        return None if self.vae_tiling is None else (self.vae_tiling[0], self.vae_tiling[1])

    def numeric(self) -> dict[str, str]:
        """Options that change numbers, where they differ from the default, for the fingerprint: they came later."""
        values = {name: getattr(self, name) for name in NUMERIC}
        return {name: value for name, value in values.items() if value != self.choices[name][0]}

    @property
    def dtype_bytes(self) -> int:
        """Bytes of a number in `dtype`."""
        return 4 if self.dtype == "float32" else 2

    def cost_settings(self) -> dict[str, Any]:
        """The fields of `ModelCost` that are options, or follow from them alone."""
        full = self.lora_rank == 0
        return {
            "size": (self.size[0], self.size[1], self.size[2]),
            "trains": "all weights" if full else f"LoRA of rank {self.lora_rank}",
            "dtype": self.dtype,
            "gradient_checkpointing": self.gradient_checkpointing,
            "resident_text": self.text_encoders == "resident",
            "copies_on_gpu": not full or self.anchors_on == "model",
            "tile": self.tile,
            "idle_vae": self.idle_models == "cpu",
            "decode_batch": self.decode_batch,
        }

    def lora_copies(self, attention: float, ratio: float) -> float:
        """Bytes per token and unit of width that `lora_products: base_dtype` takes off a block's activations.

        They are float32 copies of the layers' inputs beside a bfloat16 base. `attention`: those of the attention's
        layers. `ratio`: width of the feed-forward layers over the model's. Measured as the tensors that autograd
        stores for a block of the released sizes.
        """
        if self.lora_products == "float32" or self.dtype == "float32" or self.lora_rank == 0:
            return 0.0
        return attention + (1.8 + 2 * ratio if self.lora_targets == "attention+ff" else 0.0)

    def savings(self, tiles: list[int]) -> dict[str, Any]:
        """Options with which a run takes less memory, for `bench plan`: first those that change no number.

        `tiles`: a value of `vae_tiling` that suits the model.
        """
        lora = self.lora_rank > 0
        smaller = {
            "gradient_checkpointing": (not self.gradient_checkpointing, True),
            "text_encoders": (self.text_encoders != "released", "released"),
            "anchors_on": (not lora and self.anchors_on != "cpu", "cpu"),
            "decode_batch": (self.decode_batch > 1, 1),
            "idle_models": (self.idle_models != "cpu", "cpu"),
            "vae_tiling": (self.vae_tiling is None, tiles),
            "base_weights": (lora and self.base_weights != "int8", "int8"),
            "lora_products": (lora and self.dtype == "bfloat16" and self.lora_products != "base_dtype", "base_dtype"),
        }
        return {name: value for name, (helps, value) in smaller.items() if helps}


def show_options(options: type[TrainingOptions]) -> Callable[[Constructor], Constructor]:
    """Show the fields of `options` in a constructor's signature, instead of its `**settings`.

    The harness reads names and defaults of `backbone.train` from this signature.
    """

    def show(constructor: Constructor) -> Constructor:
        signature = inspect.signature(constructor)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        types = get_type_hints(options)
        fields = inspect.signature(options).parameters.values()
        parameters = [*own, *(field.replace(annotation=types[field.name]) for field in fields)]
        constructor.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return constructor

    return show


def frame_size(size: Sequence[int], *, time: int, space: int, multiple: int | None = None) -> tuple[int, int, int]:
    """Frames, height and width of a latent of a video of `size` (frames, height, width) in pixels.

    `time`, `space`: compression of the VAE. `multiple`: what height and width must be multiples of; None: `space`.
    """
    step = multiple or space
    positive = len(size) == 3 and min(size) > 0
    if not positive or (size[0] - 1) % time or size[1] % step or size[2] % step:
        raise BenchError(
            f"size {list(size)}: frames must be {time} n + 1, height and width multiples of {step}; "
            "set backbone.train.size accordingly."
        )
    frames, height, width = size
    return (frames - 1) // time + 1, height // space, width // space
