"""LoRA files of other programs: which layers they change, by how much, and how they run on a transformer.

Four layouts of safetensors files are read. A layer's name may follow `transformer.` (diffusers' pipelines) or
`base_model.model.` (peft), or stand alone (diffusers' models). Its matrices are called `lora_A` and `lora_B`, or
`lora_down` and `lora_up`. The output of the matrices is multiplied by alpha / rank. Alpha is, in this order: the
layer's tensor `alpha`; that of `adapter_config.json` beside a file in peft's layout; that of the file's header, which
diffusers writes; else the rank, as diffusers and the trainers that write `lora_down` have it.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.api import BenchError, parse_json, read_json
from bench.backbones.folder import read_header
from bench.backbones.lora_products import use_input_dtype

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
HEADER_ENTRY = "lora_adapter_metadata"
"""Entry of a file's header with rank, alpha and layers, as diffusers 0.42 writes and reads it."""
PEFT_PREFIX, PIPELINE_PREFIX = "base_model.model.", "transformer."
"""Start of the keys of peft, whose wrapper is around the transformer, and of diffusers' pipelines."""
MATRIX = re.compile(r"(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_down|lora_up)(\.(?P<adapter>\w+))?\.weight")
ALPHA = ".alpha"
DOWN = ("lora_A", "lora_down")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
NUMBERS = (*FLOATS, torch.float64, torch.int32, torch.int64)
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of peft's `init_lora_weights` that leave the base's weights as they are."""
ADAPTER = "file"
"""Name of the adapter while a file runs."""
AGAIN = "download or copy it again"


@dataclass(frozen=True)
class LoRAFile:
    """A LoRA of linear layers, from one file."""

    path: Path
    layout: str
    """In words."""
    matrices: Mapping[str, tuple[Tensor, Tensor]]
    """Layer to A [rank, inputs] and B [outputs, rank]."""
    alpha: Mapping[str, float]
    """Layer to alpha."""
    root: bool
    """Whether the output is multiplied by alpha / sqrt(rank) (peft's `use_rslora`), in place of alpha / rank."""

    @property
    def rank(self) -> dict[str, int]:
        """Layer to rank."""
        return {layer: len(a) for layer, (a, _) in self.matrices.items()}

    def facts(self) -> dict[str, Any]:
        """Layout, number of layers, ranks and alphas, for a record."""
        ranks = sorted(set(self.rank.values()))
        return {
            "what": f"LoRA in {self.layout}, rank {', '.join(map(str, ranks))}, {len(self.matrices)} layers",
            "layout": self.layout,
            "layers": len(self.matrices),
            "ranks": ranks,
            "alphas": sorted(set(self.alpha.values())),
            "scaled_by_root_of_rank": self.root,
        }

    def config(self) -> Any:
        """The configuration with which peft makes this adapter."""
        from peft import LoraConfig

        ranks, alphas = self.rank, dict(self.alpha)
        layers = sorted(ranks, key=len, reverse=True)  # peft takes the first name that is the end of the layer's
        first = layers[0]
        uneven = len(set(ranks.values())) > 1 or len(set(alphas.values())) > 1
        return LoraConfig(
            r=ranks[first],
            lora_alpha=alphas[first],
            rank_pattern={re.escape(layer): ranks[layer] for layer in layers} if uneven else {},
            alpha_pattern={re.escape(layer): alphas[layer] for layer in layers} if uneven else {},
            use_rslora=self.root,
            target_modules="|".join(map(re.escape, layers)),
        )


def read_lora(path: Path, transformer: Path) -> LoRAFile:
    """The LoRA in a file, or in a folder with one. `transformer`: folder of the transformer's weights, as safetensors.

    `BenchError` for a file that is not whole, that is in another layout, or whose layers are not those of the
    transformer.
    """
    file = _file(path)
    tensors, header = _read(file)
    layout, named = _without_prefix(tensors)
    matrices, alphas = _matrices(file, named)
    _check_layers(file, matrices, transformer)
    settings = _settings(file, layout, header)
    _refuse_changed_base(file, settings)
    stored = {layer: _alpha(file, settings, layer, len(a)) for layer, (a, _) in matrices.items()}
    return LoRAFile(file, layout, matrices, {**stored, **alphas}, bool(settings.get("use_rslora", False)))


@contextmanager
def running_lora(
    transformer: Any, device: torch.device, lora: LoRAFile, in_base_dtype: bool = False
) -> Iterator[None]:
    """Run a diffusers transformer with the LoRA in float32 in place of its other adapters.

    `in_base_dtype`: its products are computed in the type of the base, as the other adapters' (`lora_products`).
    """
    before = list(getattr(transformer, "peft_config", {}))
    # peft draws from the global generator, and warns about a second adapter
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
        transformer.add_adapter(lora.config(), adapter_name=ADAPTER)
    try:
        modules = dict(transformer.named_modules())
        for layer, (a, b) in lora.matrices.items():
            for weights, values in ((modules[layer].lora_A, a), (modules[layer].lora_B, b)):
                weights[ADAPTER].weight.data = values.to(device, torch.float32)
        if in_base_dtype:
            use_input_dtype(transformer, ADAPTER)
        yield
    finally:
        if before:
            transformer.set_adapter(before[0])
        transformer.delete_adapters(ADAPTER)


def _file(path: Path) -> Path:
    """The file of a LoRA: the path itself, or the one in this folder."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise BenchError(f"policy {path} is no safetensors file: save the LoRA as safetensors.")
        return path
    if not path.is_dir():
        raise BenchError(f"policy {path} does not exist: name a LoRA's file or folder, or the folder of a run.")
    for name in (LORA_WEIGHTS, PEFT_WEIGHTS):
        if (path / name).is_file():
            return path / name
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:3]) or "none"
        raise BenchError(
            f"policy {path} is a folder without {LORA_WEIGHTS} or {PEFT_WEIGHTS} (safetensors files: {names}): name "
            "the LoRA's file, or the folder of a finished run."
        )
    return files[0]


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and its header's entries."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  (no mapping)
            header: dict[str, str] = opened.metadata() or {}
    except (OSError, SafetensorError) as cause:
        size = file.stat().st_size if file.is_file() else 0
        raise BenchError(
            f"policy {file} is not a whole safetensors file ({size:,} bytes; {' '.join(str(cause).split())}): {AGAIN}."
        ) from cause
    if not tensors:
        raise BenchError(f"policy {file} has no weights: {AGAIN}.")
    return tensors, header


def _without_prefix(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The layout in words, and the tensors by their names in the transformer."""
    for prefix, layout in ((PEFT_PREFIX, "peft's layout"), (PIPELINE_PREFIX, "the layout of diffusers' pipelines")):
        if all(key.startswith(prefix) for key in tensors):
            return layout, {key.removeprefix(prefix): value for key, value in tensors.items()}
    return "the layout of diffusers' models", dict(tensors)


def _matrices(file: Path, named: Mapping[str, Tensor]) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float]]:
    """A and B of each layer, and the alphas that are stored as tensors."""
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for key, value in named.items():
        match = MATRIX.fullmatch(key)
        if match:
            layer, side = match["layer"], downs if match["part"] in DOWN else ups
            if layer in side:
                raise BenchError(f"policy {file} has two LoRAs of the layer {layer}: save one adapter alone.")
            if value.dtype not in FLOATS or value.ndim != 2:
                raise BenchError(
                    f"policy {file}: {key} is {value.dtype} {list(value.shape)}, and only LoRAs of linear layers in "
                    "float32, bfloat16 or float16 are read."
                )
            side[layer] = value
        elif key.endswith(ALPHA) and value.numel() == 1 and value.dtype in NUMBERS and bool(value.isfinite()):
            alphas[key.removesuffix(ALPHA)] = float(value)
        else:
            raise BenchError(
                f"policy {file} has {key}, which is no matrix of a plain LoRA (LAYER.lora_A.weight and .lora_B, or "
                ".lora_down and .lora_up, and LAYER.alpha): other kinds of adapters are not read; for all weights, "
                "name the folder under backbone.checkpoint."
            )
    single = sorted(downs.keys() ^ ups.keys())
    if single:
        raise BenchError(f"policy {file} has one of the two matrices of the layer {single[0]} only: {AGAIN}.")
    stray = sorted(alphas.keys() - downs.keys())
    if stray:
        raise BenchError(f"policy {file} has an alpha and no matrices of the layer {stray[0]}: {AGAIN}.")
    if not downs:
        raise BenchError(f"policy {file} has no LoRA matrices: name a LoRA's file.")
    return {layer: (a, ups[layer]) for layer, a in downs.items()}, alphas


def _check_layers(file: Path, matrices: Mapping[str, tuple[Tensor, Tensor]], transformer: Path) -> None:
    """Refuse layers that the transformer lacks or has in another size; reads headers only."""
    shapes = _linear_shapes(transformer)
    for layer, (a, b) in sorted(matrices.items()):
        if layer not in shapes:
            near = " (Tencent's names; convert it to diffusers' names)" if "double_blocks" in layer else ""
            raise BenchError(
                f"policy {file} changes the layer {layer[:80]}, which {transformer} does not have{near}: it is a LoRA "
                "of another model."
            )
        if a.shape[0] != b.shape[1] or [b.shape[0], a.shape[1]] != shapes[layer]:
            raise BenchError(
                f"policy {file}: the matrices of {layer} are {list(a.shape)} and {list(b.shape)}, and the weight in "
                f"{transformer} is {shapes[layer]}: it is a LoRA of another model."
            )


def _linear_shapes(folder: Path) -> dict[str, list[int]]:
    """Layer to the shape [outputs, inputs] of its weight, for every weight of two dimensions; reads headers only."""
    headers = (read_header(folder, path) for path in sorted(folder.glob("*.safetensors")))
    shapes = {name: entry["shape"] for header in headers for name, entry in header.items()}
    if not shapes:
        raise BenchError(f"{folder} has no *.safetensors, so its layers are not known: restore the folder.")
    linear = {name: shape for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2}
    return {name.removesuffix(".weight"): shape for name, shape in linear.items()}


def _settings(file: Path, layout: str, header: Mapping[str, str]) -> dict[str, Any]:
    """peft's settings of the adapter, from the file beside it or from its header; {} where there are none."""
    config = file.with_name(PEFT_CONFIG)
    if layout.startswith("peft"):
        if not config.is_file():
            raise BenchError(
                f"policy {file} is in peft's layout and has no {PEFT_CONFIG} beside it, so its alpha is not known: "
                "copy that file too."
            )
        return read_json(config, "LoRA configuration", AGAIN)
    if HEADER_ENTRY not in header:
        return {}
    entries = parse_json(header[HEADER_ENTRY], f"the header of {file}", AGAIN)
    if not isinstance(entries, dict):
        raise BenchError(f"the header of {file} has no mapping under {HEADER_ENTRY}: {AGAIN}.")
    return {key.removeprefix(PIPELINE_PREFIX): value for key, value in entries.items()}


def _refuse_changed_base(file: Path, settings: Mapping[str, Any]) -> None:
    start = settings.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise BenchError(
            f"policy {file} was started with {str(start)[:40]!r}, which changes the weights of the base model too: "
            "save it with peft's path_initial_model_for_weight_conversion."
        )


def _alpha(file: Path, settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """Alpha of a layer by peft's settings; without settings its rank."""
    from peft.utils.other import get_pattern_key

    patterns = settings.get("alpha_pattern") or {}
    try:
        alpha = patterns.get(get_pattern_key(list(patterns), layer), settings.get("lora_alpha", rank))
    except (TypeError, AttributeError, re.error) as cause:
        raise BenchError(
            f"policy {file}: its alpha_pattern is no mapping of layers to numbers ({cause}): {AGAIN}."
        ) from cause
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise BenchError(
            f"policy {file}: alpha of {layer} is {str(alpha)[:40]!r}, which is no finite number: {AGAIN}."
        )
    return float(alpha)
