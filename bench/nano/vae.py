"""Recipe of the nano VAE: `AutoencoderKLHunyuanVideo15` at 4x space and 4x time, trained on the noisy world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo15
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from bench.backbones.hunyuanvideo15.checkpoint import allow_batches
from bench.core.rng import stream
from bench.nano import world
from bench.nano.recipe import (
    RecipeConfig,
    Timer,
    learning_rate,
    num_workers,
    optimizer_step,
    save_report,
    seeded,
)

CONFIG: dict[str, Any] = {
    "latent_channels": 8,
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "spatial_compression_ratio": 4,
    "temporal_compression_ratio": 4,
}
KL_WEIGHT = 1e-4
"""Weight of the latent's KL (nats per element) against the pixel loss: keeps the latent near unit scale and smooth."""
CHUNK = 64
"""Clips per forward pass outside training."""


class Renders(Dataset[Tensor]):
    """The clips of each training step, pixels in [-1, 1]; every other step without corruption."""

    def __init__(self, steps: int, seed: int, batch: int):
        self.steps, self.seed, self.batch = steps, seed, batch

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Tensor:
        rng = stream(self.seed, "vae", step)
        truth = world.random_captions(world.all_captions(), self.batch, rng)
        clean = step % 2 == 0  # gold scores of a round trip are measured on renders without corruption
        corruption = world.Corruption.none(self.batch) if clean else world.random_corruption(self.batch, rng)
        return world.render(truth, corruption, rng) * 2 - 1


def pixel_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean of absolute and squared error on pixels in [-1, 1].

    The moving shape covers a tenth of a clip, so squares matter.
    """
    return F.l1_loss(output, target) + 10 * F.mse_loss(output, target)


def load(folder: Path) -> AutoencoderKLHunyuanVideo15:
    """A saved VAE."""
    return allow_batches(AutoencoderKLHunyuanVideo15.from_pretrained(folder))


def encode(vae: AutoencoderKLHunyuanVideo15, clips: Tensor) -> Tensor:
    """Mean latents, not scaled, of clips [n, 3, f, h, w] in [0, 1]."""
    return torch.cat([vae.encode(chunk * 2 - 1).latent_dist.mean for chunk in clips.split(CHUNK)])


def train(out: Path, config: RecipeConfig) -> None:
    """Train and save to `out`/vae in the layout of a diffusers pipeline folder, with the report beside it."""
    progress = Timer("vae", config.steps)
    seed = config.seed
    with seeded(seed):
        vae = allow_batches(AutoencoderKLHunyuanVideo15(**CONFIG, scaling_factor=1.0)).to(config.device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.lr, weight_decay=1e-4, betas=(0.9, 0.95))
    renders = Renders(config.steps, seed, config.batch)
    loader = DataLoader(renders, batch_size=None, num_workers=num_workers(config.device))
    for step, batch in enumerate(loader):
        clips = batch.to(config.device)
        posterior = vae.encode(clips).latent_dist
        fresh = torch.randn(posterior.mean.shape, generator=stream(seed, "vae", "posterior", step))
        latent = posterior.mean + posterior.std * fresh.to(config.device)
        output = vae.decode(latent).sample
        rec, kl = pixel_loss(output, clips), posterior.kl().mean() / posterior.mean[0].numel()
        optimizer_step(optimizer, rec + KL_WEIGHT * kl, vae.parameters(), learning_rate(config, step, floor=0.02))
        progress.line(step, rec=rec, kl=kl, mse=F.mse_loss(output, clips), latent_std=posterior.mean.std())
    vae.to("cpu")
    with torch.no_grad():
        clips, _ = world.corpus(512, stream(seed, "vae", "scale"))
        latents = encode(vae, clips)
        vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
        truth = world.random_captions(world.split()[1], 256, stream(seed, "vae", "test"))
        clean = world.render(truth, world.Corruption.none(256), stream(seed, "vae", "render"))
        trip = torch.cat([vae.decode(encode(vae, chunk)).sample for chunk in clean.split(CHUNK)])
    vae.save_pretrained(out / "vae")
    save_report(
        out / "vae",
        progress,
        {"steps": config.steps, "seed": seed, "batch": config.batch, "lr": config.lr, "kl_weight": KL_WEIGHT},
        {
            "clean_round_trip_rmse": F.mse_loss((trip.clamp(-1, 1) + 1) / 2, clean).sqrt().item(),
            "latent_std": latents.std().item(),
        },
    )
