"""Recipe of the nano VAE: `AutoencoderKLHunyuanVideo15` at 4x space and 4x time, trained on the noisy world."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo15
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from bench.backbones.hunyuanvideo15.vae_mask import allow_batches
from bench.core.rng import stream
from bench.nano import world
from bench.nano.recipe import Timer, num_workers, save_report

CONFIG: dict[str, Any] = {
    "latent_channels": 8,
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "spatial_compression_ratio": 4,
    "temporal_compression_ratio": 4,
}
KL_WEIGHT = 1e-4
"""Weight of the latent's KL (nats per element) against the pixel loss: keeps the latent near unit scale and smooth."""


class Renders(Dataset[Tensor]):
    """The clips of each training step, pixels in [-1, 1]; every other step without corruption."""

    def __init__(self, steps: int, seed: int, batch: int):
        self.steps, self.seed, self.batch = steps, seed, batch

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Tensor:
        rng = stream(self.seed, "vae", step)
        truth = world.random_captions(world.all_captions(), self.batch, rng)
        plain = step % 2 == 0  # gold scores of a round trip are measured on renders without corruption
        corruption = world.Corruption.none(self.batch) if plain else world.random_corruption(self.batch, rng)
        return world.render(truth, corruption, rng) * 2 - 1


def pixel_loss(got: Tensor, want: Tensor) -> Tensor:
    """Mean of absolute and squared error on pixels in [-1, 1].

    The moving shape covers a tenth of a clip, so squares matter.
    """
    return F.l1_loss(got, want) + 10 * F.mse_loss(got, want)


def train(
    out: Path, steps: int = 6000, seed: int = 0, batch: int = 128, lr: float = 2e-3, device: str = "cpu"
) -> None:
    """Train and save to `out`/vae in the layout of a diffusers pipeline folder, with the measured report beside it."""
    watch = Timer("vae", steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights; diffusers takes no generator
        vae = allow_batches(AutoencoderKLHunyuanVideo15(**CONFIG, scaling_factor=1.0)).to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, weight_decay=1e-4, betas=(0.9, 0.95))
    loader = DataLoader(Renders(steps, seed, batch), batch_size=None, num_workers=num_workers(device))
    for step, clips in enumerate(loader):
        clips = clips.to(device)
        for group in optimizer.param_groups:
            group["lr"] = (
                lr * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
            )
        posterior = vae.encode(clips).latent_dist
        fresh = torch.randn(posterior.mean.shape, generator=stream(seed, "vae", "posterior", step))
        latent = posterior.mean + posterior.std * fresh.to(device)
        got = vae.decode(latent).sample
        rec, kl = pixel_loss(got, clips), posterior.kl().mean() / posterior.mean[0].numel()
        loss = rec + KL_WEIGHT * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        watch.line(step, rec=rec, kl=kl, mse=F.mse_loss(got, clips), latent_std=posterior.mean.std())
    vae.to("cpu")
    with torch.no_grad():
        clips, _ = world.corpus(512, stream(seed, "vae", "scale"))
        latents = torch.cat([vae.encode(part * 2 - 1).latent_dist.mean for part in clips.split(64)])
        vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
        truth = world.random_captions(world.split()[1], 256, stream(seed, "vae", "test"))
        clean = world.render(truth, world.Corruption.none(256), stream(seed, "vae", "render"))
        trip = torch.cat([vae.decode(vae.encode(part * 2 - 1).latent_dist.mean).sample for part in clean.split(64)])
    vae.save_pretrained(out / "vae")
    save_report(
        out / "vae",
        watch,
        {"steps": steps, "seed": seed, "batch": batch, "lr": lr, "kl_weight": KL_WEIGHT},
        {
            "clean_round_trip_rmse": F.mse_loss((trip.clamp(-1, 1) + 1) / 2, clean).sqrt().item(),
            "latent_std": latents.std().item(),
        },
    )
