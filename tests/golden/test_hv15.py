"""HunyuanVideo-1.5 against the pipeline of the libraries of its release, on a small folder that these wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.backbones.hunyuanvideo15 import checkpoint
from bench.backbones.hunyuanvideo15.backbone import HunyuanVideo15
from bench.core.rng import stream
from tests.helpers import parity
from tests.helpers.paths import FIXTURES_ROOT
from tests.helpers.wan import sampled

PROMPTS = ("a blue square moving up slowly", 'a green triangle with the words "go on" moving down')
BOUND = 1e-5
"""Two versions of the libraries in float32. The smallest mistake below moves latents by 0.001."""
CAUGHT = 100 * BOUND


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored folder, with a random VAE: the weights of its own are not needed for latents."""
    from diffusers import AutoencoderKLHunyuanVideo15

    copy = Path(shutil.copytree(FIXTURES_ROOT / "hv15", tmp_path_factory.mktemp("released") / "480p_t2v"))
    with torch.random.fork_rng(devices=[]):
        vae = AutoencoderKLHunyuanVideo15.from_config(AutoencoderKLHunyuanVideo15.load_config(copy / "vae"))
    vae.save_pretrained(copy / "vae")
    return copy


@pytest.fixture(scope="module")
def want() -> dict[str, Tensor]:
    return load_file(FIXTURES_ROOT / "hv15_reference.safetensors")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> HunyuanVideo15:
    loaded = HunyuanVideo15(folder, size=(13, 16, 16), device="cpu")
    loaded.reset(stream(0, "initial_policy"))
    return loaded


def test_latents_are_those_of_the_pipeline_of_the_release(backbone: HunyuanVideo15, want: dict[str, Tensor]) -> None:
    """4 Euler steps at shift 5 and guidance 6; one prompt has words in quotes, which the second encoder reads."""
    for i, prompt in enumerate(PROMPTS):
        x = sampled(backbone, prompt, want["x"][i : i + 1], guidance=6.0)
        parity.within("HunyuanVideo-1.5 of December 2025: latents", x, want[f"lat{i}"], BOUND)


@pytest.mark.parametrize(("prompt", "guidance"), [(PROMPTS[1].replace('"', ""), 6.0), (PROMPTS[1], 5.9)])
def test_a_mistake_moves_the_latents_far_beyond_the_bound(
    prompt: str, guidance: float, backbone: HunyuanVideo15, want: dict[str, Tensor]
) -> None:
    x = sampled(backbone, prompt, want["x"][1:], guidance=guidance)
    assert float((x - want["lat1"]).abs().max()) > CAUGHT


def test_its_headers_pass_the_checks(folder: Path) -> None:
    checkpoint.check_folder(folder)
