"""A diffusers pipeline folder of HunyuanVideo-1.5: checks that read headers only, digests, and loading."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.api import BenchError, parse_json, read_json
from bench.backbones.hunyuanvideo15.text_encoders import TextEncoders
from bench.backbones.hunyuanvideo15.transformer import drop_masks

if TYPE_CHECKING:
    from diffusers import AutoencoderKLHunyuanVideo15

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
TEXT_PARTS = PARTS[2:]
DTYPES = ("float32", "bfloat16")
"""Types in which the transformer and the text encoders can be loaded."""
WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
CLASSES = {
    "transformer": ("_class_name", ("HunyuanVideo15Transformer3DModel",)),
    "vae": ("_class_name", ("AutoencoderKLHunyuanVideo15",)),
    "text_encoder": ("model_type", ("qwen2_5_vl_text", "qwen2_5_vl")),
    "text_encoder_2": ("model_type", ("t5",)),
}
"""Key of each part's config.json that identifies the model, and its accepted values."""
PIPELINE = "HunyuanVideo15Pipeline"
STORED_DTYPES = ("F32", "BF16", "F16")
"""Accepted types of stored weights, by safetensors' names. fp8 or int8 weights would load without an error."""


RESTORE = "restore the folder from its source"
HEADER_BYTES = 100_000_000
"""Largest header of a weight file, which is safetensors' own limit."""


def _damaged(folder: Path, reason: str) -> BenchError:
    return BenchError(f"checkpoint {folder} does not load ({reason}): {RESTORE}.")


def check_folder(folder: Path) -> None:
    """Refuse a folder of another model, and missing, truncated or quantized weight files; reads headers only."""
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise BenchError(
            f"checkpoint {folder} has no folder {missing[0]!r}: give a diffusers pipeline folder of HunyuanVideo-1.5 "
            "under backbone.checkpoint."
        )
    index = folder / "model_index.json"
    kind = read_config(index).get("_class_name", PIPELINE) if index.is_file() else PIPELINE
    if kind != PIPELINE:
        raise BenchError(
            f"checkpoint {folder} is a {str(kind)[:60]}, and only the text-to-video {PIPELINE} is supported: "
            "give a t2v folder."
        )
    for part, (key, expected) in CLASSES.items():
        value = read_config(folder / part / "config.json").get(key)
        if value not in expected:
            raise BenchError(
                f"checkpoint {folder}/{part}/config.json has {key} {str(value)[:60]!r}, expected {expected[0]!r}: "
                "give a diffusers pipeline folder of HunyuanVideo-1.5 under backbone.checkpoint."
            )
        _check_weights(folder, part)
    if read_config(folder / "transformer" / "config.json").get("use_meanflow"):
        raise BenchError(
            f"checkpoint {folder} is step-distilled (use_meanflow), and its velocity is defined differently: "
            "give a folder that is not step-distilled."
        )


def read_config(path: Path) -> dict[str, Any]:
    """The object in a JSON file of the checkpoint's folder."""
    return read_json(path, "checkpoint file", RESTORE)


def _check_weights(folder: Path, part: str) -> None:
    """Refuse a missing or truncated weight file, or one that lacks weights which the index lists for it."""
    single = folder / part / WEIGHTS[part]
    index = single.with_name(f"{single.name}.index.json")
    if not index.is_file():
        _header(folder, single)
        return
    listed: dict[str, set[str]] = {}
    weight_map = read_config(index).get("weight_map")
    for key, shard in weight_map.items() if isinstance(weight_map, dict) else ():
        listed.setdefault(str(shard), set()).add(key)
    if not listed:
        raise _damaged(folder, f"{index.relative_to(folder)} lists no weights")
    missing = [shard for shard in sorted(listed) if not (single.parent / shard).is_file()]
    if missing:
        raise _damaged(folder, f"{len(missing)} of {len(listed)} shards of {part} are missing, first {missing[0]}")
    for shard, keys in sorted(listed.items()):
        absent = sorted(keys - _header(folder, single.parent / shard).keys())
        if absent:
            raise _damaged(folder, f"{part}/{shard} lacks {absent[0]}, which the index lists for it")


def _header(folder: Path, path: Path) -> dict[str, Any]:
    """Tensors of a safetensors file by name (dtype, shape, offsets), after a check of the file's length.

    The format is 8 bytes with the header's size, the header in JSON, and the data.
    """
    name = path.relative_to(folder)
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            fits = size < min(path.stat().st_size, HEADER_BYTES)
            header = parse_json(file.read(size), f"checkpoint file {path}", RESTORE) if fits else None
        entries = {key: value for key, value in (header or {}).items() if key != "__metadata__"}
        end = 8 + size + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        unsupported = sorted({entry["dtype"] for entry in entries.values()} - set(STORED_DTYPES))
    except OSError as cause:
        raise _damaged(folder, f"{name} cannot be read: {cause.strerror}") from cause
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise _damaged(folder, f"{name} is not a safetensors file") from cause
    if not entries or end != path.stat().st_size:
        raise _damaged(
            folder, f"{name} has {path.stat().st_size} bytes, its header requires {end if entries else 'more'}"
        )
    if unsupported:
        raise BenchError(
            f"checkpoint file {path} holds weights of dtype {unsupported[0]}: give the folder with "
            f"{' or '.join(STORED_DTYPES)} weights."
        )
    return entries


def is_distilled(folder: Path) -> bool:
    """Whether the model is guidance-distilled: its folder has a guider of scale 1."""
    path = folder / "guider" / "guider_config.json"
    return path.is_file() and read_config(path).get("guidance_scale") == 1


def refuse_guidance(folder: Path, guidance: float) -> None:
    """Refuse guidance on a guidance-distilled model, which would apply it twice."""
    if guidance != 1 and is_distilled(folder):
        raise BenchError(
            f"checkpoint {folder} is distilled (its guider has scale 1.0), but budget.guidance is {guidance}: "
            "set budget.guidance to 1."
        )


def files_digest(folder: Path, parts: Sequence[str]) -> str:
    """sha256 over the names and contents of the parts' files."""
    files = sorted(
        path for part in parts for path in (folder / part).rglob("*") if path.is_file() and path.name != "report.json"
    )
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        total.update(path.relative_to(folder).as_posix().encode() + content)
    return total.hexdigest()


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Hide progress bars, and turn the libraries' errors on a damaged folder into one `BenchError`."""
    from diffusers.utils import logging as diffusers_logging
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as cause:
        raise _damaged(folder, " ".join(str(cause).split())[:200]) from cause


def _check_exact(folder: Path, part: str, loaded: tuple[Any, Mapping[str, Any]], device: torch.device) -> Any:
    """The module in evaluation mode, frozen and on its device; refuse a checkpoint that lacks or adds weights."""
    module, report = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            key = next(iter(report[kind]))
            raise BenchError(
                f"checkpoint {folder}/{part} has {kind.replace('_', ' ')}, first {key!r}: "
                "it is not a checkpoint of this model."
            )
    return module.eval().requires_grad_(False).to(device)


def load_transformer(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The transformer without attention masks."""
    from diffusers import HunyuanVideo15Transformer3DModel

    with _loading(folder):
        loaded = HunyuanVideo15Transformer3DModel.from_pretrained(
            folder / "transformer", torch_dtype=dtype, output_loading_info=True, local_files_only=True
        )
    transformer = _check_exact(folder, "transformer", loaded, device)
    drop_masks(transformer)
    return transformer


def load_vae(folder: Path, device: torch.device) -> Any:
    """The VAE in float32, able to decode several videos at once."""
    from diffusers import AutoencoderKLHunyuanVideo15

    with _loading(folder):
        loaded = AutoencoderKLHunyuanVideo15.from_pretrained(
            folder / "vae", output_loading_info=True, local_files_only=True
        )
    return allow_batches(_check_exact(folder, "vae", loaded, device))


def causal_mask(
    n_frame: int, n_hw: int, dtype: torch.dtype, device: torch.device, batch_size: int | None = None
) -> Tensor:
    """[1, 1, s, s] additive mask for `n_frame` frames of `n_hw` tokens: each token attends to its and earlier frames.

    It broadcasts over the batch; `batch_size` is an argument because diffusers passes it.
    """
    frame = torch.arange(n_frame * n_hw, device=device) // n_hw
    mask = torch.zeros(n_frame * n_hw, n_frame * n_hw, dtype=dtype, device=device)
    return mask.masked_fill_(frame[None] > frame[:, None], float("-inf"))[None, None]


def allow_batches(vae: AutoencoderKLHunyuanVideo15) -> AutoencoderKLHunyuanVideo15:
    """Let `vae` encode and decode several videos in one call, with `causal_mask` in its attention blocks.

    diffusers 0.42 builds a three-dimensional mask that scaled_dot_product_attention refuses for more than one video,
    and fills it in a Python loop over the tokens. Slicing one video at a time costs five times the training time at
    nano's size.
    """
    for module in vae.modules():
        if type(module).__name__ == "HunyuanVideo15AttnBlock":
            module.prepare_causal_attention_mask = causal_mask
    return vae


def load_text(folder: Path, dtype: torch.dtype, device: torch.device) -> TextEncoders:
    """Both text encoders in `dtype`, with their tokenizers."""
    from transformers import AutoTokenizer, ByT5Tokenizer, Qwen2_5_VLTextModel, T5EncoderModel

    local = {"local_files_only": True}
    with _loading(folder):
        encoder = Qwen2_5_VLTextModel.from_pretrained(
            folder / "text_encoder", dtype=dtype, output_loading_info=True, **local
        )
        glyph = T5EncoderModel.from_pretrained(
            folder / "text_encoder_2", dtype=dtype, output_loading_info=True, **local
        )
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", **local)
        glyph_tokenizer = ByT5Tokenizer.from_pretrained(folder / "tokenizer_2", **local)
    return TextEncoders(
        _check_exact(folder, "text_encoder", encoder, device),
        tokenizer,
        _check_exact(folder, "text_encoder_2", glyph, device),
        glyph_tokenizer,
    )
