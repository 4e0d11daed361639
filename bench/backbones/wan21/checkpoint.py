"""A diffusers pipeline folder of Wan2.1: its layout, what it may not be, and loading."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.api import BenchError
from bench.backbones.folder import Layout, load_model, loading, read_config
from bench.backbones.wan21.text_encoder import UMT5

PARTS = ("transformer", "vae", "text_encoder", "tokenizer")
TEXT_PARTS = PARTS[2:]
LAYOUT = Layout(
    model="Wan2.1",
    parts=PARTS,
    pipeline="WanPipeline",
    classes={
        "transformer": ("_class_name", ("WanTransformer3DModel",)),
        "vae": ("_class_name", ("AutoencoderKLWan",)),
        "text_encoder": ("model_type", ("umt5",)),
    },
)
WAN22 = ("transformer_2", "boundary_ratio", "expand_timesteps")
"""Keys of model_index.json that only Wan2.2 sets."""
SPECIAL_IDS = {"<pad>": 0, "</s>": 1, "<unk>": 3}
"""Tokens of UMT5's vocabulary with their ids, which a tokenizer rebuilt by newer libraries does not keep."""
UNKNOWN = "<unk>"


def check_folder(folder: Path) -> None:
    """Refuse another model or layout, weight files that would not load, or a rebuilt tokenizer; reads headers."""
    original = folder / "config.json"
    if original.is_file() and read_config(original).get("_class_name") == "WanModel":
        raise BenchError(
            f"checkpoint {folder} is in Wan's own layout: give the folder for diffusers, such as "
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers, under backbone.checkpoint."
        )
    LAYOUT.check(folder)
    net, vae = (read_config(folder / part / "config.json") for part in ("transformer", "vae"))
    index = read_config(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    other = _other_model(folder, index, net, vae)
    if other is not None:
        raise BenchError(f"checkpoint {folder} is {other}: give a folder of Wan2.1 text to video.")
    _check_tokenizer(folder / "tokenizer" / "tokenizer.json")


def _other_model(folder: Path, index: Mapping[str, Any], net: Mapping[str, Any], vae: Mapping[str, Any]) -> str | None:
    """What the folder's model is, if its configs are not those of Wan2.1 text to video; None if they are."""
    second = [key for key in WAN22 if index.get(key) not in (None, False, [None, None])]
    if second or (folder / "transformer_2").is_dir():
        return f"a model of Wan2.2 (model_index.json has {second[0]})" if second else "a model of Wan2.2"
    if vae.get("is_residual") or vae.get("z_dim") == 48:
        return "the 5B model of Wan2.2 (its VAE is residual or has 48 channels)"
    if net.get("image_dim") is not None or net.get("added_kv_proj_dim") is not None:
        return "an image-to-video model (its transformer has image_dim or added_kv_proj_dim)"
    if net.get("in_channels", 16) != vae.get("z_dim", 16):
        return (
            f"no text-to-video model: its transformer takes {str(net.get('in_channels'))[:20]} channels and its VAE "
            f"has {str(vae.get('z_dim'))[:20]}"
        )
    return None


def _check_tokenizer(path: Path) -> None:
    """Refuse a tokenizer.json that does not keep UMT5's ids or does not end a prompt with </s>."""
    config = read_config(path)
    model, post, added = config.get("model"), config.get("post_processor"), config.get("added_tokens")
    tokens = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    ids = {str(token.get("content")): token.get("id") for token in tokens}
    reasons = [f"{token} is not token {number}" for token, number in SPECIAL_IDS.items() if ids.get(token) != number]
    if not isinstance(model, dict) or model.get("unk_id") != SPECIAL_IDS[UNKNOWN]:
        reasons.append(f"unknown characters are not {UNKNOWN}")
    if "</s>" not in str(post):
        reasons.append("prompts do not end with </s>")
    if reasons:
        raise BenchError(
            f"checkpoint file {path} is not the released tokenizer ({reasons[0]}), as if newer libraries had rebuilt "
            "it: restore the file from its source."
        )


def load_transformer(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The transformer in `dtype`, with the parts in float32 that diffusers' class keeps so (norms, time, tables).

    `.to(dtype)` on the module would convert these too.
    """
    from diffusers import WanTransformer3DModel

    return load_model(WanTransformer3DModel, folder, "transformer", device, torch_dtype=dtype)


def load_vae(folder: Path, device: torch.device) -> Any:
    """The VAE in float32."""
    from diffusers import AutoencoderKLWan

    return load_model(AutoencoderKLWan, folder, "vae", device, torch_dtype=torch.float32)


def load_text(folder: Path, dtype: torch.dtype, device: torch.device, longest: int) -> UMT5:
    """The text encoder in `dtype`, with the tokenizer of tokenizer.json, verbatim."""
    from tokenizers import Tokenizer
    from transformers import UMT5EncoderModel

    encoder = load_model(UMT5EncoderModel, folder, "text_encoder", device, dtype=dtype)
    if encoder.shared.weight is not encoder.encoder.embed_tokens.weight:
        raise BenchError(
            f"checkpoint {folder}/text_encoder: the installed transformers leaves its embedding uninitialised: "
            "install transformers 5.23 or newer."
        )
    with loading(folder):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return UMT5(encoder, tokenizer, longest)
