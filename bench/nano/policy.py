"""Recipe of the nano policy: a small `HunyuanVideo15Transformer3DModel`, flow matching on the noisy world's latents.

Writes the parts of a diffusers pipeline folder other than the VAE: transformer, text encoder and tokenizer (a frozen
tiny Qwen2.5-VL), the empty ByT5 stream, scheduler and `model_index.json`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from bench.backbones.hunyuanvideo15.text_encoders import TextEncoders, system_message
from bench.backbones.hunyuanvideo15.transformer import drop_masks, velocity
from bench.backbones.hunyuanvideo15.vae_mask import allow_batches
from bench.core.rng import stream
from bench.nano import world
from bench.nano.recipe import Timer, num_workers, save_report
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


def save_text_encoders(out: Path) -> TextEncoders:
    """Tiny frozen encoders: random Qwen2.5-VL states tell words and their order apart, which is all that is needed."""
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # initial weights; transformers takes no generator
        encoder, glyph = Qwen2_5_VLTextModel(config).eval(), T5EncoderModel(glyph_config).eval()
    encoder.save_pretrained(out / "text_encoder")
    glyph.save_pretrained(out / "text_encoder_2")
    glyph_tokenizer = ByT5Tokenizer()
    glyph_tokenizer.save_pretrained(out / "tokenizer_2")
    return TextEncoders(encoder, tokenizer, glyph, glyph_tokenizer)


def new_transformer(seed: int) -> Any:
    from diffusers import HunyuanVideo15Transformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights; diffusers takes no generator
        transformer = HunyuanVideo15Transformer3DModel(**TRANSFORMER)
    for module in (
        transformer.context_embedder_2,
        transformer.image_embedder,
    ):  # streams of length 0: never used, zeros pack to nothing
        for parameter in module.parameters():
            parameter.requires_grad_(False).zero_()
    drop_masks(transformer)
    return transformer


def save_pipeline_index(out: Path) -> None:
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
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


class Corpus(Dataset[tuple[Tensor, list[str]]]):
    """The noisy corpus in parts of 64 clips with their captions."""

    def __init__(self, parts: int, seed: int):
        self.parts, self.seed = parts, seed

    def __len__(self) -> int:
        return self.parts

    def __getitem__(self, part: int) -> tuple[Tensor, list[str]]:
        return world.corpus(64, stream(self.seed, "policy", "corpus", part))


@torch.no_grad()
def encode_corpus(out: Path, clips: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Scaled latents [n, c, f, h, w] of the noisy corpus and the index of the caption that each carries."""
    from diffusers import AutoencoderKLHunyuanVideo15

    vae = allow_batches(AutoencoderKLHunyuanVideo15.from_pretrained(out / "vae")).to(device)
    names = {text: i for i, text in enumerate(world.all_captions().texts())}
    latents, captions = [], []
    for pixels, texts in DataLoader(Corpus(clips // 64, seed), batch_size=None, num_workers=num_workers(device)):
        mean = vae.encode(pixels.to(device) * 2 - 1).latent_dist.mean
        latents.append((mean * vae.config.scaling_factor).cpu())
        captions += [names[text] for text in texts]
    return torch.cat(latents), torch.tensor(captions)


def save(out: Path, transformer: Any, average: dict[str, Tensor]) -> None:
    """The averaged weights, the unused glyph projection in half precision (it is zero)."""
    own = {name: value.clone() for name, value in transformer.state_dict().items()}
    transformer.load_state_dict({**own, **average})
    transformer.context_embedder_2.half()
    transformer.save_pretrained(out / "transformer")
    transformer.context_embedder_2.float()
    transformer.load_state_dict(own)


def train(
    out: Path,
    steps: int = 6000,
    seed: int = 0,
    batch: int = 64,
    lr: float = 2e-3,
    clips: int = 24_576,
    device: str = "cpu",
) -> None:
    """Train and save under `out`, where the VAE already lies. Resumes from `out`/state.pt."""
    encoders = save_text_encoders(out)
    save_pipeline_index(out)
    texts = [*world.all_captions().texts(), ""]
    states = encoders.encode(texts)
    watch = Timer("policy", steps)
    latents, captions = encode_corpus(out, clips, seed, device)
    text, glyph = ([state.to(device) for state in rows] for rows in (states.text, states.glyph))
    transformer = new_transformer(seed).to(device)
    trained = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    average = {name: p.detach().clone() for name, p in trained.items()}
    first, saved = 0, out / "state.pt"
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        transformer.load_state_dict(state["transformer"])
        optimizer.load_state_dict(state["optimizer"])
        average, first = state["average"], state["step"]
    losses: list[Tensor] = []
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = (
                lr * min(1.0, (step + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
            )
        rng = stream(seed, "policy", "step", step)
        rows = torch.randint(len(latents), (batch,), generator=rng)
        x0, noise = latents[rows], torch.randn(batch, *latents.shape[1:], generator=rng)
        u = (torch.arange(batch) + torch.rand(batch, generator=rng)) / batch
        sigma = TRAIN_SHIFT * u / (1 + (TRAIN_SHIFT - 1) * u)
        at = sigma[:, None, None, None, None]
        which = captions[rows].tolist()
        if step % round(1 / EMPTY_SHARE) == 0:  # a whole batch, so that one forward pass serves it
            which = [len(texts) - 1] * batch
        got = velocity(
            transformer,
            ((1 - at) * x0 + at * noise).to(device),
            sigma.to(device),
            [text[i] for i in which],
            [glyph[i] for i in which],
        )
        loss = F.mse_loss(got, (noise - x0).to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        keep = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(trained.values()), 1 - keep)
        losses.append(loss.detach())
        watch.line(step, loss=loss)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            torch.save(
                {
                    "transformer": transformer.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average,
                    "step": step + 1,
                },
                saved,
            )
            save(out, transformer, average)
    saved.unlink(missing_ok=True)
    save_report(
        out / "transformer",
        watch,
        {"steps": steps, "seed": seed, "batch": batch, "lr": lr, "clips": clips},
        {"loss_of_last_100": float(torch.stack(losses[-100:]).mean())},
    )
