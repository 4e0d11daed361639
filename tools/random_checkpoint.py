"""`python -m tools.random_checkpoint FOLDER`: a pipeline folder of HunyuanVideo-1.5 with random weights.

The folder has the layout and the sizes of the released one (34 GB in bfloat16): parts, classes, shards with an
index, a guider. So loading, memory and time can be measured without a download; its videos are noise. The tokenizers
and the scheduler are nano's: texts have more tokens, and only a part of the embedding's rows is used.

Weights are drawn and written shard by shard, in at most about 3 GB of memory. Exit code 2 on an error.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.api import BenchError
from bench.backbones.folder import WEIGHTS
from bench.backbones.hunyuanvideo15.checkpoint import LAYOUT
from bench.backbones.hunyuanvideo15.cost import RELEASED_VAE, Transformer
from bench.core.provenance import ROOT
from tools.speed.random_model import rope_axes

NANO = ROOT / "bench" / "nano" / "checkpoints" / "hunyuanvideo15"
COPIED = ("scheduler", "tokenizer", "tokenizer_2")
"""Folders that are nano's."""
GUIDER = {"_class_name": "ClassifierFreeGuidance", "guidance_scale": 6.0}
DTYPE = torch.bfloat16
SHARD_BYTES = 1_000_000_000
"""Largest shard, unless one tensor alone is larger: the token embedding of the text encoder has 1.09 GB."""
DRAWN = 2**24 - 3
"""Numbers that are drawn. Larger weights repeat them, each from a place of its own: 1.7e10 draws take minutes."""
MARGIN = 1_000_000_000
"""Bytes that stay free on the disk."""


@dataclass(frozen=True)
class Configs:
    """Settings of the four models, as in their config.json."""

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    text_encoder_2: Mapping[str, Any]


def released(layers: int | None = None) -> Configs:
    """The released sizes. `layers`: blocks of the transformer, where fewer than the released 54 are wanted."""
    sizes = Transformer() if layers is None else Transformer(num_layers=layers)
    return Configs(
        {**asdict(sizes), "rope_axes_dim": rope_axes(sizes.attention_head_dim), "task_type": "t2v"},
        {**RELEASED_VAE, "layers_per_block": 2},
        {
            "hidden_size": sizes.text_embed_dim,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152_064,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"mrope_section": [16, 24, 24], "rope_theta": 1e6, "rope_type": "default"},
        },
        {
            "d_model": sizes.text_embed_2_dim,
            "d_ff": 3584,
            "d_kv": 64,
            "num_layers": 12,
            "num_heads": 6,
            "vocab_size": 384,
            "feed_forward_proj": "gated-gelu",
            "dropout_rate": 0.0,
        },
    )


def mini() -> Configs:
    """Nano's sizes, for tests."""
    configs = {part: json.loads((NANO / part / "config.json").read_text()) for part in Configs.__dataclass_fields__}
    plain = {part: {k: v for k, v in config.items() if k[0] != "_"} for part, config in configs.items()}
    plain["text_encoder"] |= {"bos_token_id": None, "eos_token_id": None}  # they are not in so small a vocabulary
    return Configs(**plain)


def empty_models(configs: Configs) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each part with a function that makes its model without weights (on the meta device)."""
    from diffusers import AutoencoderKLHunyuanVideo15, HunyuanVideo15Transformer3DModel
    from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, T5Config, T5EncoderModel

    yield "transformer", lambda: HunyuanVideo15Transformer3DModel(**configs.transformer)
    yield "vae", lambda: AutoencoderKLHunyuanVideo15(**configs.vae)
    text, glyph = (
        {k: v for k, v in config.items() if k != "dtype"} for config in (configs.text_encoder, configs.text_encoder_2)
    )
    yield "text_encoder", lambda: Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**text, dtype=DTYPE))
    yield "text_encoder_2", lambda: T5EncoderModel(T5Config(**glyph, dtype=DTYPE))


class RandomWeights:
    """Random weights in bfloat16, which depend on the seed and on the order of the calls."""

    def __init__(self, seed: int):
        self.rng = torch.Generator().manual_seed(seed)
        self.drawn = torch.randn(DRAWN, generator=self.rng).repeat(2)  # twice: read in a circle

    def weight(self, name: str, shape: Sequence[int]) -> Tensor:
        """Norms are 1 and biases 0; a matrix or a kernel keeps the variance of its input."""
        if len(shape) == 1 or math.prod(shape) == shape[0]:
            return torch.zeros(*shape, dtype=DTYPE) if name.endswith("bias") else torch.ones(*shape, dtype=DTYPE)
        start = int(torch.randint(DRAWN, (), generator=self.rng))
        numbers = self.drawn[start : start + min(math.prod(shape), DRAWN)]
        scaled = (numbers / math.sqrt(math.prod(shape[1:]))).to(DTYPE)
        weight = torch.empty(*shape, dtype=DTYPE)
        for part in weight.view(-1).split(DRAWN):
            part.copy_(scaled[: len(part)])
        return weight


def split_into_shards(shapes: Mapping[str, Sequence[int]], limit: int) -> list[list[str]]:
    """Names of the weights of each shard, in order; a shard has at most `limit` bytes or one weight."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * DTYPE.itemsize
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def write_weights(folder: Path, stem: str, shapes: Mapping[str, Sequence[int]], weights: RandomWeights) -> None:
    """Draw and write the weights, one shard after another, with an index of several shards."""
    from safetensors.torch import save_file

    shards = split_into_shards(shapes, SHARD_BYTES)
    count, ending = len(shards), ".safetensors"
    names = [f"{stem}-{i:05}-of-{count:05}{ending}" for i in range(1, count + 1)] if count > 1 else [stem + ending]
    for path, keys in zip(names, shards, strict=True):
        save_file({key: weights.weight(key, shapes[key]) for key in keys}, folder / path, {"format": "pt"})
    if count > 1:
        total = sum(math.prod(shape) for shape in shapes.values()) * DTYPE.itemsize
        weight_map = {key: path for path, keys in zip(names, shards, strict=True) for key in keys}
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}{ending}.index.json").write_text(json.dumps(content, indent=1) + "\n")


def write_checkpoint(folder: Path, configs: Configs, seed: int = 0) -> dict[str, int]:
    """Write the folder. Returns the number of weights by part.

    `BenchError` if the folder exists, or if the disk has too little room.
    """
    if folder.exists():
        raise BenchError(f"random checkpoint: {folder} exists: name a folder that does not.")
    models = {}
    with torch.device("meta"):
        for part, make in empty_models(configs):
            models[part] = make()
    # tied weights are one parameter and are stored once
    shapes = {part: {name: p.shape for name, p in model.named_parameters()} for part, model in models.items()}
    counts = {part: sum(math.prod(shape) for shape in each.values()) for part, each in shapes.items()}
    need = sum(counts.values()) * DTYPE.itemsize + MARGIN
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < need:
        raise BenchError(
            f"random checkpoint: {folder.parent} has {free / 1e9:.1f} GB free, and {need / 1e9:.1f} GB are needed: "
            "name a folder on another disk."
        )
    for part in COPIED:
        shutil.copytree(NANO / part, folder / part)
    index = json.loads((NANO / "model_index.json").read_text())
    index["guider"] = ["diffusers", GUIDER["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")
    (folder / "guider").mkdir()
    (folder / "guider" / "guider_config.json").write_text(json.dumps(GUIDER) + "\n")
    weights = RandomWeights(seed)
    for part, model in models.items():
        key, _ = LAYOUT.classes[part]
        if key == "model_type":
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(folder / part)
        else:
            model.save_config(folder / part)
        write_weights(folder / part, Path(WEIGHTS[key]).stem, shapes[part], weights)
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Write a folder, and say what it has."""
    parser = argparse.ArgumentParser(prog="tools.random_checkpoint", description=__doc__)
    parser.add_argument("folder", type=Path, help="the new folder")
    parser.add_argument("--layers", type=int, help="blocks of the transformer (default: the released 54)")
    parser.add_argument("--mini", action="store_true", help="nano's sizes, 8 MB, instead of the released ones")
    args = parser.parse_args(argv)
    try:
        counts = write_checkpoint(args.folder, mini() if args.mini else released(args.layers))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for part, count in counts.items():
        print(f"{args.folder / part}: {count:,} weights, {count * DTYPE.itemsize / 1e9:.1f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
