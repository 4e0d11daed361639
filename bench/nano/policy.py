"""Recipe of the nano policy: a small `HunyuanVideo15Transformer3DModel`, flow matching on the noisy world's latents.

Writes the parts of a diffusers pipeline folder other than the VAE: transformer, text encoder and tokenizer (a frozen
tiny Qwen2.5-VL), the empty ByT5 stream, scheduler and `model_index.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from bench.backbones.hunyuanvideo15.text_encoders import TextEncoders, system_message
from bench.backbones.hunyuanvideo15.transformer import drop_masks, velocity
from bench.core.rng import stream
from bench.nano import vae, world
from bench.nano.recipe import (
    RecipeConfig,
    Timer,
    learning_rate,
    num_workers,
    optimizer_step,
    save_report,
    seeded,
    write_json,
)
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
TRAIN_SHIFT = 3.0
"""Noise levels of pre-training: u uniform, sigma = 3 u / (1 + 2 u), Tencent's shift for this model."""
EMPTY_SHARE = 0.05
"""Share of samples trained with the empty prompt, for classifier-free guidance."""
SAVE_EVERY = 500
"""Steps between two saved states."""


@dataclass(frozen=True, kw_only=True)
class PolicyRecipe(RecipeConfig):
    """Options of the recipe of the policy."""

    clips: int = 24_576
    """Clips of the training corpus, in units of 64."""


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


class Corpus(Dataset[tuple[Tensor, list[str]]]):
    """The noisy corpus in batches of 64 clips with their captions."""

    def __init__(self, batches: int, seed: int):
        self.batches, self.seed = batches, seed

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> tuple[Tensor, list[str]]:
        return world.corpus(64, stream(self.seed, "policy", "corpus", index))


@torch.no_grad()
def encode_corpus(out: Path, config: PolicyRecipe) -> tuple[Tensor, Tensor]:
    """Scaled latents [n, c, f, h, w] of the noisy corpus, and the index of each one's caption."""
    model = vae.load(out / "vae").to(config.device)
    names = {text: i for i, text in enumerate(world.all_captions().texts())}
    latents, captions = [], []
    corpus = Corpus(config.clips // 64, config.seed)
    for pixels, texts in DataLoader(corpus, batch_size=None, num_workers=num_workers(config.device)):
        mean = vae.encode(model, pixels.to(config.device))
        latents.append((mean * model.config.scaling_factor).cpu())
        captions += [names[text] for text in texts]
    return torch.cat(latents), torch.tensor(captions)


def save(out: Path, transformer: Any, average: dict[str, Tensor]) -> None:
    """Save the averaged weights; the unused glyph projection, which is zero, in half precision."""
    own = {name: value.clone() for name, value in transformer.state_dict().items()}
    transformer.load_state_dict({**own, **average})
    transformer.context_embedder_2.half()
    transformer.save_pretrained(out / "transformer")
    transformer.context_embedder_2.float()
    transformer.load_state_dict(own)


def train(out: Path, config: PolicyRecipe) -> None:
    """Train and save to `out`, which holds the VAE. An interrupted run resumes from `out`/state.pt."""
    encoders = save_text_encoders(out)
    save_pipeline_index(out)
    texts = [*world.all_captions().texts(), ""]
    states = encoders.encode(texts)
    progress = Timer("policy", config.steps)
    latents, captions = encode_corpus(out, config)
    device, batch = config.device, config.batch
    text, glyph = ([state.to(device) for state in rows] for rows in (states.text, states.more["glyph"]))
    transformer = new_transformer(config.seed).to(device)
    trained = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=config.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    average = {name: p.detach().clone() for name, p in trained.items()}
    first, state_file = 0, out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        transformer.load_state_dict(state["transformer"])
        optimizer.load_state_dict(state["optimizer"])
        average, first = state["average"], state["step"]
    losses: list[Tensor] = []
    for step in range(first, config.steps):
        rng = stream(config.seed, "policy", "step", step)
        rows = torch.randint(len(latents), (batch,), generator=rng)
        x0, noise = latents[rows], torch.randn(batch, *latents.shape[1:], generator=rng)
        u = (torch.arange(batch) + torch.rand(batch, generator=rng)) / batch
        sigma = TRAIN_SHIFT * u / (1 + (TRAIN_SHIFT - 1) * u)
        at = sigma[:, None, None, None, None]
        prompts = captions[rows].tolist()
        if step % round(1 / EMPTY_SHARE) == 0:  # a whole batch, so that one forward pass serves it
            prompts = [len(texts) - 1] * batch
        v = velocity(
            transformer,
            ((1 - at) * x0 + at * noise).to(device),
            sigma.to(device),
            [text[i] for i in prompts],
            [glyph[i] for i in prompts],
        )
        loss = F.mse_loss(v, (noise - x0).to(device))
        rate = learning_rate(config, step, warmup=200, floor=0.01)
        optimizer_step(optimizer, loss, trained.values(), rate)
        decay = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(trained.values()), 1 - decay)
        losses.append(loss.detach())
        progress.line(step, loss=loss)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == config.steps:
            state = {"transformer": transformer.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "average": average, "step": step + 1}, state_file)
            save(out, transformer, average)
    state_file.unlink(missing_ok=True)
    arguments = {name: getattr(config, name) for name in ("steps", "seed", "batch", "lr", "clips")}
    measured = {"loss_of_last_100": float(torch.stack(losses[-100:]).mean())}
    save_report(out / "transformer", progress, arguments, measured)
