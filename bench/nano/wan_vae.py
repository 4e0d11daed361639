"""Recipe of the Wan VAE: an `AutoencoderKLWan` that learns the latents of nano's first VAE and their pixels.

The decoder learns the clips from the first VAE's latents, the encoder learns these latents from the clips. So both
policies of nano generate the same latents, and a policy does not wait for its VAE.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bench.core.rng import stream
from bench.nano import vae, world
from bench.nano.muon import Muon
from bench.nano.recipe import RecipeConfig, Timer, learning_rate, save_report, seeded
from bench.nano.wan_vae_passes import decode, encode

CONFIG: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": vae.CONFIG["latent_channels"],
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [True, True],
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 4,
}
"""diffusers does not derive the two factors from the stages: with three of them they would stay those of four."""
MUON_RATE = 10
"""Muon's learning rate in units of AdamW's."""
DIGITS = 5
"""Decimals of the latents' mean and standard deviation, which the VAE's config.json states."""
ENCODER_EVERY = 4
"""Steps between two of the encoder: no policy and no table needs it, only the round trip of a clip."""
SAVE_EVERY = 500
"""Steps between two saved states."""
CHUNK = 64
"""Clips per forward pass outside training."""


@dataclass(frozen=True, kw_only=True)
class WanVAERecipe(RecipeConfig):
    """Options of the recipe of the Wan VAE."""

    clips: int = 8192
    """Clips of the training set, in units of `CHUNK`; half of them without corruption."""


class Teacher:
    """The first VAE: its latents are the ones that the Wan VAE reproduces and the Wan transformer generates."""

    def __init__(self, folder: Path, seed: int, device: str) -> None:
        """`folder`: the VAE. `seed`: of the 512 clips of the noisy corpus that measure mean and standard deviation."""
        self.vae = vae.load(folder).to(device)
        clips, _ = world.corpus(512, stream(seed, "wan-vae", "scale"))
        channels = self.raw_latents(clips.to(device)).transpose(0, 1).flatten(1)
        self.mean = [round(value, DIGITS) for value in channels.mean(1).tolist()]
        self.std = [round(value, DIGITS) for value in channels.std(1).tolist()]

    @torch.no_grad()
    def raw_latents(self, clips: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b c t y x"]:
        """Latents as the VAE has them, of clips in [0, 1]."""
        return vae.encode(self.vae, clips)

    def latents(self, clips: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b c t y x"]:
        """Latents of mean 0 and standard deviation 1 in each channel, of clips in [0, 1]."""
        mean, std = (
            torch.tensor(values, device=clips.device).reshape(1, -1, 1, 1, 1) for values in (self.mean, self.std)
        )
        return (self.raw_latents(clips) - mean) / std


def training_set(teacher: Teacher, config: WanVAERecipe) -> tuple[Tensor, Tensor]:
    """Clips [n, 3, f, h, w] in [-1, 1], every other chunk without corruption, and their latents."""
    renders = vae.Renders(config.clips // CHUNK, config.seed, CHUNK)
    pixels = [renders[i] for i in range(len(renders))]
    latents = [teacher.raw_latents(((chunk + 1) / 2).to(config.device)).cpu() for chunk in pixels]
    return torch.cat(pixels), torch.cat(latents)


class Trainer:
    """Muon for the matrices of some modules, AdamW for their other parameters."""

    def __init__(self, modules: list[torch.nn.Module], config: WanVAERecipe) -> None:
        parameters = [p for module in modules for p in module.parameters()]
        matrices = {id(p): p for p in parameters if p.ndim > 4 or (p.ndim == 4 and p.shape[1:] != (1, 1, 1))}
        self.muon = Muon(matrices.values())
        others = [p for p in parameters if id(p) not in matrices]
        self.adam = torch.optim.AdamW(others, lr=config.lr, betas=(0.9, 0.95), weight_decay=1e-4)

    def step(self, loss: Tensor, rate: float) -> None:
        """One step of both, with AdamW at `rate` and Muon at `MUON_RATE` times it."""
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.zero_grad()
        for weight in self.muon.weights:
            weight.grad = None
        loss.backward()
        self.adam.step()
        self.muon.step(MUON_RATE * rate)


def train(out: Path, config: WanVAERecipe, teacher_folder: Path) -> None:
    """Train and save to `out`/vae in the layout of a diffusers pipeline folder, with the report beside it.

    `teacher_folder`: the first VAE.
    """
    progress = Timer("wan-vae", config.steps)
    teacher = Teacher(teacher_folder, config.seed, config.device)
    pixels, latents = training_set(teacher, config)
    scale = torch.tensor(teacher.std, device=config.device).reshape(1, -1, 1, 1, 1)
    with seeded(config.seed):
        model = AutoencoderKLWan(**CONFIG, latents_mean=teacher.mean, latents_std=teacher.std).to(config.device)
    decoder = Trainer([model.post_quant_conv, model.decoder], config)
    encoder = Trainer([model.encoder, model.quant_conv], config)
    error = torch.zeros(())
    for step in range(config.steps):
        rng = stream(config.seed, "wan-vae", "step", step)
        rows = torch.randint(len(pixels), (config.batch,), generator=rng)
        clips, target = pixels[rows].to(config.device), latents[rows].to(config.device)
        rate = learning_rate(config, step, floor=0.02)
        with torch.autocast(torch.device(config.device).type, dtype=torch.bfloat16):
            output = decode(model, target)
        decoder.step(loss := vae.pixel_loss(output.float(), clips), rate)
        if step % ENCODER_EVERY == 0:
            with torch.autocast(torch.device(config.device).type, dtype=torch.bfloat16):
                found = encode(model, clips)
            encoder.step(error := F.mse_loss(found.float() / scale, target / scale), rate)
        progress.line(step, loss=loss, mse=F.mse_loss(output.float(), clips), encoder=error)
        if (step + 1) % SAVE_EVERY == 0:
            model.save_pretrained(out / "vae")
    model.to("cpu").save_pretrained(out / "vae")
    arguments = {name: getattr(config, name) for name in ("steps", "seed", "batch", "lr", "clips")}
    save_report(out / "vae", progress, arguments, measure(model, Teacher(teacher_folder, config.seed, "cpu")))


@torch.no_grad()
def measure(model: AutoencoderKLWan, teacher: Teacher) -> dict[str, float]:
    """Errors on clean renders of held-out captions: of pixels in [0, 1], and of latents in their own std."""
    truth = world.random_captions(world.split()[1], 256, stream(0, "wan-vae", "test"))
    clean = world.render(truth, world.Corruption.none(256), stream(0, "wan-vae", "render"))
    target = teacher.raw_latents(clean)
    found = torch.cat([model.encode(chunk * 2 - 1).latent_dist.mean for chunk in clean.split(CHUNK)])
    scale = torch.tensor(teacher.std).reshape(1, -1, 1, 1, 1)

    def pixel_error(latents: Tensor) -> float:
        output = torch.cat([model.decode(chunk).sample for chunk in latents.split(CHUNK)])
        return F.mse_loss((output + 1) / 2, clean).sqrt().item()

    return {
        "clean_decode_rmse": pixel_error(target),
        "clean_round_trip_rmse": pixel_error(found),
        "encoder_error_in_latent_std": F.mse_loss(found / scale, target / scale).sqrt().item(),
    }


def latents(folder: Path, clips: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b c t y x"]:
    """Latents as the policy generates them, by the saved VAE in `folder`, of clips in [0, 1]."""
    model = AutoencoderKLWan.from_pretrained(folder)
    mean, std = (
        torch.tensor(values).reshape(1, -1, 1, 1, 1)
        for values in (model.config.latents_mean, model.config.latents_std)
    )
    raw = torch.cat([model.encode(chunk * 2 - 1).latent_dist.mean for chunk in clips.split(CHUNK)])
    return (raw - mean) / std
