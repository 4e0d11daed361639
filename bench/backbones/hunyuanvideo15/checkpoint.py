"""A diffusers pipeline folder of HunyuanVideo-1.5: its layout, what it may not be, and loading."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.api import BenchError
from bench.backbones.folder import Layout, damaged, load_model, loading, read_config
from bench.backbones.hunyuanvideo15.text_encoders import TextEncoders
from bench.backbones.hunyuanvideo15.transformer import drop_masks

if TYPE_CHECKING:
    from diffusers import AutoencoderKLHunyuanVideo15

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
TEXT_PARTS = PARTS[2:]
LAYOUT = Layout(
    model="HunyuanVideo-1.5",
    parts=PARTS,
    pipeline="HunyuanVideo15Pipeline",
    classes={
        "transformer": ("_class_name", ("HunyuanVideo15Transformer3DModel",)),
        "vae": ("_class_name", ("AutoencoderKLHunyuanVideo15",)),
        "text_encoder": ("model_type", ("qwen2_5_vl_text", "qwen2_5_vl")),
        "text_encoder_2": ("model_type", ("t5",)),
    },
)


def check_folder(folder: Path) -> None:
    """Refuse a folder of another or a step-distilled model, and weight files that would not load; reads headers."""
    LAYOUT.check(folder)
    if read_config(folder / "transformer" / "config.json").get("use_meanflow"):
        raise BenchError(
            f"checkpoint {folder} is step-distilled (use_meanflow), and its velocity is defined differently: "
            "give a folder that is not step-distilled."
        )
    _check_tokenizers(folder)


def _check_tokenizers(folder: Path) -> None:
    """Refuse tokenizers that would load without a vocabulary and give no tokens."""
    for part in ("tokenizer", "tokenizer_2"):
        read_config(folder / part / "tokenizer_config.json")
    whole = folder / "tokenizer" / "tokenizer.json"
    if whole.is_file():
        model = read_config(whole).get("model")
        if not (isinstance(model, dict) and model.get("vocab")):
            raise damaged(folder, "tokenizer/tokenizer.json has no vocabulary")
        return
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / "tokenizer" / name).is_file()]
    if missing:
        raise damaged(folder, f"tokenizer has neither tokenizer.json nor {missing[0]}")


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


def load_transformer(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The transformer without attention masks."""
    from diffusers import HunyuanVideo15Transformer3DModel

    transformer = load_model(HunyuanVideo15Transformer3DModel, folder, "transformer", device, torch_dtype=dtype)
    drop_masks(transformer)
    return transformer


def load_vae(folder: Path, device: torch.device) -> Any:
    """The VAE in float32, able to decode several videos at once."""
    from diffusers import AutoencoderKLHunyuanVideo15

    return allow_batches(load_model(AutoencoderKLHunyuanVideo15, folder, "vae", device))


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

    encoder = load_model(Qwen2_5_VLTextModel, folder, "text_encoder", device, dtype=dtype)
    glyph = load_model(T5EncoderModel, folder, "text_encoder_2", device, dtype=dtype)
    with loading(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        glyph_tokenizer = ByT5Tokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True)
    return TextEncoders(encoder, tokenizer, glyph, glyph_tokenizer)
