"""A diffusers pipeline folder: checks that read headers only, digests, and what loading of any model needs.

Shared by the backbones. A backbone states its parts and classes as a `Layout`, and adds checks of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.api import BenchError, parse_json, read_json

DTYPES = ("float32", "bfloat16")
"""Types in which the transformer and the text encoders can be loaded."""
STORED_DTYPES = ("F32", "BF16", "F16")
"""Accepted types of stored weights, by safetensors' names. fp8 or int8 weights would load without an error."""
WEIGHTS = {"_class_name": "diffusion_pytorch_model.safetensors", "model_type": "model.safetensors"}
"""Name of a part's weight file, by the key of its config.json that identifies the model: diffusers', transformers'."""
RESTORE = "restore the folder from its source"
HEADER_BYTES = 100_000_000
"""Largest header of a weight file, which is safetensors' own limit."""


@dataclass(frozen=True)
class Layout:
    """The parts of a model's pipeline folder."""

    model: str
    """Name of the model, for messages."""
    parts: tuple[str, ...]
    """Folders of all parts."""
    pipeline: str
    """Class of the text-to-video pipeline in model_index.json."""
    classes: Mapping[str, tuple[str, tuple[str, ...]]]
    """Parts with weights: the key of the part's config.json that identifies the model, and its accepted values."""

    def check(self, folder: Path) -> None:
        """Refuse a folder of another model, and missing, truncated or quantized weight files; reads headers only."""
        missing = [part for part in self.parts if not (folder / part).is_dir()]
        if missing:
            raise BenchError(
                f"checkpoint {folder} has no folder {missing[0]!r}: give a diffusers pipeline folder of {self.model} "
                "under backbone.checkpoint."
            )
        index = folder / "model_index.json"
        kind = read_config(index).get("_class_name", self.pipeline) if index.is_file() else self.pipeline
        if kind != self.pipeline:
            raise BenchError(
                f"checkpoint {folder} is a {str(kind)[:60]}, and only the text-to-video {self.pipeline} is supported: "
                "give a t2v folder."
            )
        for part, (key, expected) in self.classes.items():
            config = read_config(folder / part / "config.json")
            if config.get("quantization_config") is not None:
                raise BenchError(
                    f"checkpoint {folder}/{part}/config.json has a quantization_config, so its weights are quantized: "
                    f"give the folder with {' or '.join(STORED_DTYPES)} weights."
                )
            value = config.get(key)
            if value not in expected:
                raise BenchError(
                    f"checkpoint {folder}/{part}/config.json has {key} {str(value)[:60]!r}, expected "
                    f"{expected[0]!r}: give a diffusers pipeline folder of {self.model} under backbone.checkpoint."
                )
            _check_weights(folder, part, WEIGHTS[key])


def damaged(folder: Path, reason: str) -> BenchError:
    """The error of a folder that does not load."""
    return BenchError(f"checkpoint {folder} does not load ({reason}): {RESTORE}.")


def read_config(path: Path) -> dict[str, Any]:
    """The object in a JSON file of the checkpoint's folder."""
    return read_json(path, "checkpoint file", RESTORE)


def part_config(folder: Path | None, part: str) -> dict[str, Any] | None:
    """config.json of one part of a pipeline folder; None if it does not exist."""
    path = None if folder is None else folder / part / "config.json"
    return read_config(path) if path is not None and path.is_file() else None


def check_counts(folder: Path, part: str, config: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Refuse a part's config.json where one of these keys is no whole number above 0."""
    for key in keys:
        value = config.get(key)
        if type(value) is not int or value < 1:
            raise BenchError(f"checkpoint file {folder}/{part}/config.json: {key} is {str(value)[:60]!r}: {RESTORE}.")


def _check_weights(folder: Path, part: str, name: str) -> None:
    """Refuse a missing or truncated weight file, or one that lacks weights which the index lists for it."""
    single = folder / part / name
    index = single.with_name(f"{single.name}.index.json")
    if not index.is_file():
        _header(folder, single)
        return
    listed: dict[str, set[str]] = {}
    weight_map = read_config(index).get("weight_map")
    for key, shard in weight_map.items() if isinstance(weight_map, dict) else ():
        listed.setdefault(str(shard), set()).add(key)
    if not listed:
        raise damaged(folder, f"{index.relative_to(folder)} lists no weights")
    missing = [shard for shard in sorted(listed) if not (single.parent / shard).is_file()]
    if missing:
        raise damaged(folder, f"{len(missing)} of {len(listed)} shards of {part} are missing, first {missing[0]}")
    for shard, keys in sorted(listed.items()):
        absent = sorted(keys - _header(folder, single.parent / shard).keys())
        if absent:
            raise damaged(folder, f"{part}/{shard} lacks {absent[0]}, which the index lists for it")


def _header(folder: Path, path: Path) -> dict[str, Any]:
    """Tensors of a safetensors file by name (dtype, shape, offsets), after checks of its length and of its types."""
    entries = read_header(folder, path)
    unsupported = sorted({str(entry.get("dtype")) for entry in entries.values()} - set(STORED_DTYPES))
    if unsupported:
        raise BenchError(
            f"checkpoint file {path} holds weights of dtype {unsupported[0]}: give the folder with "
            f"{' or '.join(STORED_DTYPES)} weights."
        )
    return entries


def read_header(folder: Path, path: Path) -> dict[str, Any]:
    """Tensors of a safetensors file below `folder` by name; a file of another length than its header says is refused.

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
        _ = [math.prod(entry["shape"]) for entry in entries.values()]  # for its errors
    except OSError as cause:
        raise damaged(folder, f"{name} cannot be read: {cause.strerror}") from cause
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise damaged(folder, f"{name} is not a safetensors file") from cause
    if not entries or end != path.stat().st_size:
        raise damaged(
            folder, f"{name} has {path.stat().st_size} bytes, its header requires {end if entries else 'more'}"
        )
    return entries


def stored_parameters(folder: Path) -> int:
    """Parameters in a folder's safetensors files, read from their headers."""
    headers = (read_header(folder, path) for path in sorted(folder.glob("*.safetensors")))
    return sum(math.prod(entry["shape"]) for header in headers for entry in header.values())


def files_digest(folder: Path, parts: Sequence[str]) -> str:
    """sha256 over the names and contents of the parts' files."""
    paths = (path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    files = sorted(path for path in paths if path.name != "report.json" and not path.name.startswith("."))
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        total.update(path.relative_to(folder).as_posix().encode() + content)
    return total.hexdigest()


@contextmanager
def loading(folder: Path) -> Iterator[None]:
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
        raise damaged(folder, " ".join(str(cause).split())[:200]) from cause


def check_exact(folder: Path, part: str, loaded: tuple[Any, Mapping[str, Any]], device: torch.device) -> Any:
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


def load_model(model_class: Any, folder: Path, part: str, device: torch.device, **options: Any) -> Any:
    """A part of the folder by its class's `from_pretrained`, exact (`check_exact`); nothing is downloaded."""
    with loading(folder):
        loaded = model_class.from_pretrained(folder / part, output_loading_info=True, local_files_only=True, **options)
    return check_exact(folder, part, loaded, device)
