"""Shared by the evaluators: checks of their input, reading of weights, hashes, devices."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, TypeVar

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor, nn

from bench.api import BenchError, read_json

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of CLIP's training pixels (OpenAI CLIP, `clip.py`), in [0, 1] RGB."""

M = TypeVar("M", bound=nn.Module)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Count = Annotated[int, Field(ge=1, description="a whole number of at least 1")]
Rate = Annotated[float, Field(gt=0, description="a number above 0")]
Dtype = Annotated[str, Field(pattern=f"^({'|'.join(DTYPES)})$", description=f"one of {', '.join(DTYPES)}")]
Device = Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:\d+)?)$", description="cpu, mps, cuda or cuda:N")]
"""Types of parameters, which are checked before anything is loaded."""


def check_batch(videos: Float[Tensor, "b 3 f h w"], prompts: Sequence[str], fps: float) -> None:
    """Check for a batch of finite videos in [0, 1], with one prompt each and a positive frame rate."""
    if videos.ndim != 5 or videos.shape[1] != 3 or 0 in videos.shape or not videos.is_floating_point():
        raise BenchError(
            f"the evaluator got videos of shape {tuple(videos.shape)} and type {videos.dtype}: "
            "pass a non-empty float tensor [batch, 3, frames, height, width]."
        )
    if isinstance(prompts, str) or len(prompts) != len(videos):
        raise BenchError(
            f"the evaluator got {len(prompts)} prompts for {len(videos)} videos: pass a list, one prompt per video."
        )
    if not (0 < fps < float("inf")):
        raise BenchError(f"the evaluator got fps={fps}: pass the positive frame rate at which the videos were made.")
    low, high = (bound.item() for bound in videos.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BenchError(
            "the evaluator got videos with NaN or infinite pixels: fix the generator, such videos have no score."
        )
    if low < 0 or high > 1:
        raise BenchError(f"the evaluator got pixels from {low:.4g} to {high:.4g}: clamp the decoded videos to [0, 1].")


def to_uint8(videos: Float[Tensor, "*n"]) -> UInt8[Tensor, "*n"]:
    """Pixels in [0, 1] as the nearest of 256 levels, as in a lossless file."""
    return (videos.detach().float() * 255).round_().to(torch.uint8)


def uniform_indices(total: int, count: int) -> list[int]:
    """`count` frame indices spread evenly over `total` frames, both ends included (rounded, not truncated)."""
    return [int(i) for i in torch.linspace(0, total - 1, count).round().long()]


def check_finite(name: str, scores: Tensor) -> None:
    """A score that is not finite is an error."""
    if not torch.isfinite(scores).all():
        raise BenchError(
            f"{name} gave a score that is not finite: use dtype='float32' and check that the weights are finite."
        )


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file of a checkpoint (`bench.core.hashing` is not open to plug-ins)."""
    if not path.is_file():
        raise BenchError(f"file {path} is missing: point the evaluator at a complete checkpoint folder.")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def building_model(config: Path) -> Iterator[None]:
    """Context in which a model is built from a configuration file: an error of the library is one sentence."""
    try:
        yield
    except BenchError:
        raise
    except Exception as error:  # a wrong value fails wherever the library first uses it
        reason = " ".join(str(error).split())
        raise BenchError(
            f"{config} does not describe a model ({type(error).__name__}: {reason}): use the file of these weights."
        ) from error


def read_weights(path: Path, state_key: str | None = None) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a torch file, which is read with `weights_only=True`.

    `state_key`: key of the state dict in a torch file; None: the file is the state dict.
    """
    if not path.is_file():
        raise BenchError(f"weight file {path} is missing: point the evaluator at a complete checkpoint folder.")
    from safetensors import SafetensorError

    try:
        state = _read_state(path, state_key)
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise BenchError(f"weight file {path} cannot be read ({reason}): fetch it again.") from None
    other = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise BenchError(f"weight file {path} holds '{other}', which is not a tensor: pass a plain state dict.")
    return state


def _read_state(path: Path, state_key: str | None) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if state_key is not None and isinstance(state, dict):
        if state_key not in state:
            raise BenchError(f"weight file {path} has no '{state_key}': pass the checkpoint file as it was released.")
        state = state[state_key]
    if not isinstance(state, dict):
        raise BenchError(f"weight file {path} does not hold a state dict: pass a dict from names to tensors.")
    return dict(state)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a Hugging Face folder: one safetensors file, its shards, or one torch file."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (folder / "model.safetensors.index.json").is_file():
        return _shards(folder / "model.safetensors.index.json")
    if (folder / "pytorch_model.bin").is_file():
        return [folder / "pytorch_model.bin"]
    raise BenchError(
        f"folder {folder} holds neither model.safetensors nor pytorch_model.bin: pass a folder with weights."
    )


def _is_file_name(name: object) -> bool:
    """Whether this is a text that a file can be called."""
    return isinstance(name, str) and 0 < len(name.encode("utf-8", "replace")) < 256 and "\0" not in name


def _shards(index: Path) -> list[Path]:
    """The weight files that an index names, in its own folder."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(map(_is_file_name, names.values())):
        raise BenchError(f"file {index} names no weights (weight_map): fetch it again.")
    files = sorted(set(names.values()))
    other = next((name for name in files if Path(name).name != name), None)
    if other is not None:
        raise BenchError(f"file {index} names {other!r}, which is no file of its folder: fetch it again.")
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise BenchError(
            f"folder {index.parent} lacks {missing[0]} ({len(missing)} of {len(files)} weight files): fetch it again."
        )
    return [index.parent / name for name in files]


def merge_disjoint(parts: Sequence[Mapping[str, Tensor]], source: Path) -> dict[str, Tensor]:
    """One state dict from several files; a name in two of them is an error."""
    merged: dict[str, Tensor] = {}
    for part in parts:
        repeated = sorted(merged.keys() & part.keys())
        if repeated:
            raise BenchError(f"the weight files under {source} hold '{repeated[0]}' twice: keep one copy.")
        merged.update(part)
    return merged


def load_exact(module: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Copy weights into a module; names and shapes must be the same on both sides."""
    wanted = module.state_dict()
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or extra:
        kind, names = ("lacks", missing) if missing else ("has the unexpected", extra)
        raise BenchError(
            f"checkpoint {source} {kind} weight '{names[0]}' ({len(missing)} missing, {len(extra)} unexpected): "
            "use the checkpoint and the model configuration that belong together."
        )
    for name, value in wanted.items():
        if value.shape != weights[name].shape:
            raise BenchError(
                f"weight '{name}' of checkpoint {source} has shape {tuple(weights[name].shape)}, its configuration "
                f"needs {tuple(value.shape)}: use the checkpoint and the model configuration that belong together."
            )
    module.load_state_dict(weights)


def float_type(dtype: str) -> torch.dtype:
    """The torch type of a parameter `dtype`."""
    if dtype not in DTYPES:
        raise BenchError(f"dtype '{dtype}' is not supported: choose one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def pick_device(device: str | None) -> torch.device:
    """The named device; None: the GPU if there is one, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def freeze(module: M, dtype: torch.dtype, device: torch.device) -> M:
    """Evaluation mode, no gradients, parameters in `dtype`; buffers (rotary frequencies, positions) do not change."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(False)
    return module.eval().to(device)


@contextmanager
def scoring(module: nn.Module, device: torch.device, idle: torch.device) -> Iterator[None]:
    """Context without gradients and without TF32 in convolutions, so that float32 is the same on every device.

    The module is on `device` within the context, and on `idle` afterwards.
    """
    cudnn = torch.backends.cudnn
    module.to(device)
    try:
        with torch.no_grad(), cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False):
            yield
    finally:
        module.to(idle)
