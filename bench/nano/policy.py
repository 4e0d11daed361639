"""Recipe of the nano policy: a small `HunyuanVideo15Transformer3DModel`, flow matching on the noisy world's latents.

Writes the parts of a diffusers pipeline folder other than the VAE: transformer, text encoder and tokenizer (a frozen
tiny Qwen2.5-VL), the empty ByT5 stream, scheduler and `model_index.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.backbones.hunyuanvideo15.text_encoders import TextEncoders, system_message
from bench.backbones.hunyuanvideo15.transformer import drop_masks, velocity
from bench.nano import flow_matching, vae, world
from bench.nano.flow_matching import Model, PolicyRecipe, encode_corpus
from bench.nano.recipe import Timer, seeded, write_json
from bench.nano.vocabulary import save_qwen_tokenizer

TEXT_DIM = 64
TRANSFORMER: dict[str, Any] = {
    "in_channels": 17,
    "out_channels": 8,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "num_layers": 3,
    "num_refiner_layers": 1,
    "text_embed_dim": TEXT_DIM,
    "text_embed_2_dim": 32,
    "image_embed_dim": 8,
    "rope_axes_dim": (8, 12, 12),
    "target_size": 16,
    "task_type": "t2v",
}


def save_text_encoders(out: Path) -> TextEncoders:
    """Tiny frozen encoders: random Qwen2.5-VL states differ between words and their orders, which suffices."""
    from transformers import ByT5Tokenizer, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, T5Config, T5EncoderModel

    tokenizer = save_qwen_tokenizer(
        out / "tokenizer", [*world.all_captions().texts(), system_message(), "assistant user system"]
    )
    config = Qwen2_5_VLTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_DIM,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
    )
    glyph_config = T5Config(vocab_size=384, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    with seeded(0):
        encoder, glyph = Qwen2_5_VLTextModel(config).eval(), T5EncoderModel(glyph_config).eval()
    encoder.save_pretrained(out / "text_encoder")
    glyph.save_pretrained(out / "text_encoder_2")
    glyph_tokenizer = ByT5Tokenizer()
    glyph_tokenizer.save_pretrained(out / "tokenizer_2")
    return TextEncoders(encoder, tokenizer, glyph, glyph_tokenizer)


def new_transformer(seed: int) -> Any:
    """A transformer with random weights; the parameters of unused streams are zero and frozen."""
    from diffusers import HunyuanVideo15Transformer3DModel

    with seeded(seed):
        transformer = HunyuanVideo15Transformer3DModel(**TRANSFORMER)
    for module in (transformer.context_embedder_2, transformer.image_embedder):
        for parameter in module.parameters():
            parameter.requires_grad_(False).zero_()  # streams of length 0: never used, zeros compress well
    drop_masks(transformer)
    return transformer


def save_pipeline_index(out: Path) -> None:
    """Scheduler and `model_index.json`."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    FlowMatchEulerDiscreteScheduler(shift=5.0).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "HunyuanVideo15Pipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "tokenizer_2": ["transformers", "ByT5Tokenizer"],
        "transformer": ["diffusers", "HunyuanVideo15Transformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLHunyuanVideo15"],
    }
    write_json(out / "model_index.json", index)


def save(out: Path, transformer: Any) -> None:
    """Save the weights; the unused glyph projection, which is zero, in half precision."""
    transformer.context_embedder_2.half()
    transformer.save_pretrained(out / "transformer")
    transformer.context_embedder_2.float()


def train(out: Path, config: PolicyRecipe) -> None:
    """Train and save to `out`, which holds the VAE. An interrupted run resumes from `out`/state.pt."""
    encoders = save_text_encoders(out)
    save_pipeline_index(out)
    states = encoders.encode([*world.all_captions().texts(), ""])
    progress = Timer("policy", config.steps)
    autoencoder = vae.load(out / "vae").to(config.device)
    scale = autoencoder.config.scaling_factor
    latents, captions = encode_corpus(lambda clips: vae.encode(autoencoder, clips) * scale, config)
    text, glyph = ([state.to(config.device) for state in rows] for rows in (states.text, states.more["glyph"]))
    transformer = new_transformer(config.seed).to(config.device)

    def predict(x: Tensor, sigma: Tensor, prompts: Sequence[int]) -> Tensor:
        return velocity(transformer, x, sigma, [text[i] for i in prompts], [glyph[i] for i in prompts])

    model = Model(transformer=transformer, velocity=predict, save=lambda: save(out, transformer))
    flow_matching.train(out, config, model, latents, captions, progress)
