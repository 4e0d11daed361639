"""What the tests on a device compute there: velocity, gradient and pixels of a small model, and an update's memory."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.backbones.hunyuanvideo15.backbone import HunyuanVideo15
from bench.core.rng import stream
from tests.helpers.full_size import LONG, SHORT, gradients, latents, shake

GUIDANCE = 6.0


def outputs(folder: Path, device: str, **options: Any) -> dict[str, Tensor]:
    """Of a policy away from the base, for two texts of different lengths under guidance; all on the CPU."""
    backbone = HunyuanVideo15(folder, device=device, lora_rank=4, **options)
    backbone.reset(stream(0, "initial_policy"))
    shake(backbone)
    x, sigma = latents(2)
    v = backbone.velocity(x, sigma, backbone.encode([SHORT, LONG]), GUIDANCE)
    v.square().mean().backward()
    grads = [grad.flatten().cpu() for grad in gradients(backbone) if grad is not None]
    return {"velocity": v.detach().cpu(), "gradient": torch.cat(grads), "pixels": backbone.decode(x).cpu()}


def _figures(folder: Path, device: str, more: list[str]) -> dict[str, Any]:
    from tools.speed.settings import SINGLE, Setting, SettingsBenchmark

    torch.set_num_threads(1)
    benchmark = SettingsBenchmark(folder, torch.device(device), more)
    return benchmark.measure(Setting("single-GPU suite", SINGLE, repeats=1))


def update_in_fresh_process(folder: Path, device: str, more: list[str]) -> dict[str, Any]:
    """Memory and seconds of an update of the one-GPU suite, in a process without the memory of other tests."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_figures, (folder, device, more))
