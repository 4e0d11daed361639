"""Recipe of the second nano policy: a small `WanTransformer3DModel`, trained like the first one on the same corpus.

Writes the parts of a diffusers pipeline folder other than the VAE: transformer, text encoder and tokenizer (a frozen
tiny UMT5), scheduler and `model_index.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.backbones.wan21.checkpoint import load_text
from bench.backbones.wan21.text_encoder import UMT5
from bench.backbones.wan21.transformer import velocity
from bench.nano import flow_matching, world
from bench.nano.flow_matching import Model, PolicyRecipe, encode_corpus
from bench.nano.recipe import Timer, seeded, write_json
from bench.nano.vocabulary import save_umt5_tokenizer
from bench.nano.wan_vae import Teacher

TEXT_DIM = 64
TEXT_ROWS = 16
"""Rows of text that the transformer attends to: `backbone.train.text_rows` of a suite has to be this number."""
TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 3,
    "attention_head_dim": 32,
    "in_channels": 8,
    "out_channels": 8,
    "text_dim": TEXT_DIM,
    "freq_dim": 128,
    "ffn_dim": 256,
    "num_layers": 4,
    "rope_max_seq_len": 64,
}


def save_text_encoder(out: Path) -> UMT5:
    """A tiny frozen encoder: random UMT5 states differ between words, which suffices."""
    from transformers import UMT5Config, UMT5EncoderModel

    size = save_umt5_tokenizer(out / "tokenizer", world.all_captions().texts())
    config = UMT5Config(
        vocab_size=size,
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    with seeded(0):
        encoder = UMT5EncoderModel(config).eval()
    encoder.save_pretrained(out / "text_encoder")
    return load_text(out, torch.float32, torch.device("cpu"), TEXT_ROWS)


def new_transformer(seed: int) -> Any:
    """A transformer with random weights."""
    from diffusers import WanTransformer3DModel

    with seeded(seed):
        return WanTransformer3DModel(**TRANSFORMER)


def save_pipeline_index(out: Path) -> None:
    """Scheduler and `model_index.json`."""
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    scheduler.save_pretrained(out / "scheduler")
    index = {
        "_class_name": "WanPipeline",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    write_json(out / "model_index.json", index)


def train(out: Path, config: PolicyRecipe, teacher: Path) -> None:
    """Train and save to `out`. An interrupted run resumes from `out`/state.pt.

    `teacher`: folder of the VAE whose latents the Wan VAE reproduces, so that this part does not wait for that one.
    """
    encoder = save_text_encoder(out)
    save_pipeline_index(out)
    states = encoder.encode([*world.all_captions().texts(), ""])
    progress = Timer("wan-policy", config.steps)
    latents, captions = encode_corpus(Teacher(teacher, config.seed, config.device).latents, config)
    text = [state.to(config.device) for state in states.text]
    transformer = new_transformer(config.seed).to(config.device)

    def predict(x: Tensor, sigma: Tensor, prompts: Sequence[int]) -> Tensor:
        return velocity(transformer, x, sigma, [text[i] for i in prompts], TEXT_ROWS)

    save = partial(transformer.save_pretrained, out / "transformer")
    model = Model(transformer=transformer, velocity=predict, save=save)
    flow_matching.train(out, config, model, latents, captions, progress)
