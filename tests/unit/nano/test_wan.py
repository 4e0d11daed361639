"""The second nano policy: its VAE's training passes, its optimizer, its recipes and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from bench.api import BenchError
from bench.backbones.wan21 import Wan21
from bench.core.rng import stream
from bench.nano import flow_matching, wan_policy, wan_vae, world
from bench.nano.flow_matching import PolicyRecipe
from bench.nano.muon import Muon, orthogonal
from bench.nano.recipe import Timer, seeded
from bench.nano.wan_vae_passes import decode, encode
from tests.helpers.nano_suite import CHECKPOINT


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    with seeded(0):
        return AutoencoderKLWan(**wan_vae.CONFIG, latents_mean=[0.0] * 8, latents_std=[1.0] * 8).eval()


@torch.no_grad()
def test_the_training_passes_are_those_of_the_class(vae: AutoencoderKLWan) -> None:
    """Whole clips against the class's steps of four frames, in float32: other sums of some hundred products."""
    rng = stream(0, "test_wan_vae")
    latents, pixels = torch.randn(3, 8, 4, 4, 4, generator=rng), torch.rand(3, 3, 13, 16, 16, generator=rng) * 2 - 1
    decoded = decode(vae, latents)
    assert decoded.shape == (3, 3, 13, 16, 16)
    assert float(decoded.std()) > 0.1
    torch.testing.assert_close(decoded.clamp(-1, 1), vae.decode(latents).sample, rtol=0, atol=2e-5)
    encoded = encode(vae, pixels)
    assert encoded.shape == (3, 8, 4, 4, 4)
    torch.testing.assert_close(encoded, vae.encode(pixels).latent_dist.mean, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(16, 216), (40, 8), (9, 9)])
def test_a_step_of_muon_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=stream(0, "test_muon"))
    values = torch.linalg.svdvals(orthogonal(matrix))
    large = torch.linalg.svdvals(matrix) > 0.05 * torch.linalg.svdvals(matrix).max()
    assert 0.6 < float(values[large].min()) <= float(values.max()) < 1.3
    assert float((orthogonal(matrix) * matrix).sum()) > 0, "along the gradient"


def test_muon_finds_the_weights_of_a_convolution() -> None:
    rng = stream(1, "test_muon")
    x, wanted = torch.randn(8, 4, 3, 6, 6, generator=rng), torch.randn(6, 4, 3, 3, 3, generator=rng)
    target, weight = torch.nn.functional.conv3d(x, wanted), torch.zeros_like(wanted).requires_grad_()
    muon, losses = Muon([weight]), []
    for step in range(200):
        weight.grad = None
        loss = (torch.nn.functional.conv3d(x, weight) - target).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        muon.step(0.3 * (1 - step / 200))
    assert losses[-1] < 0.02 * losses[0]


def test_every_caption_has_one_token_per_word(tmp_path: Path) -> None:
    encoder = wan_policy.save_text_encoder(tmp_path)
    texts = world.all_captions().texts()
    ids = [encoder.ids(text) for text in texts]
    assert {len(row) for row in ids} == {7}, "six words and </s>"
    assert all(row[-1] == 1 and 3 not in row for row in ids)
    assert len({tuple(row) for row in ids}) == len(texts)
    assert encoder.ids("") == [1]
    assert 3 not in encoder.ids("a zebra"), "spelled"
    assert 3 in encoder.ids("a café")
    states = torch.stack(encoder.encode(texts).text)
    apart = torch.cdist(states.flatten(1), states.flatten(1)) + 1e9 * torch.eye(len(texts))
    assert float(apart.min()) > 1, "states of norm 8 per token: captions differ in the encoder's output"


def test_the_recipes_write_a_folder_that_the_backbone_loads(tmp_path: Path) -> None:
    teacher = CHECKPOINT / "vae"
    wan_vae.train(tmp_path, wan_vae.WanVAERecipe(steps=2, batch=4, lr=1e-3, seed=3, clips=64), teacher)
    wan_policy.train(tmp_path, PolicyRecipe(steps=2, batch=4, lr=1e-3, seed=3, clips=64), teacher)
    reports = {part: json.loads((tmp_path / part / "report.json").read_text()) for part in ("vae", "transformer")}
    assert reports["vae"]["recipe"] == {"steps": 2, "seed": 3, "batch": 4, "lr": 1e-3, "clips": 64}
    assert set(reports["vae"]["measured"]) == {
        *("clean_decode_rmse", "clean_round_trip_rmse", "encoder_error_in_latent_std")
    }
    assert reports["transformer"]["command"] == "bench nano wan-policy"
    size = (world.FRAMES, world.SIZE, world.SIZE)
    backbone = Wan21(tmp_path, size=size, fps=world.FPS, text_rows=wan_policy.TEXT_ROWS, device="cpu")
    assert backbone.latent_shape == (8, 4, 4, 4)
    assert not (tmp_path / "state.pt").exists()


def test_a_state_of_other_options_is_refused(tmp_path: Path) -> None:
    transformer, save = torch.nn.Linear(2, 2), lambda: None
    config = PolicyRecipe(steps=2, batch=4, lr=1e-3, seed=3, clips=64)
    torch.save({"arguments": {"seed": 4}}, tmp_path / "state.pt")
    model = flow_matching.Model(transformer=transformer, velocity=lambda *_: torch.zeros(1), save=save)
    with pytest.raises(
        BenchError, match=r"state\.pt is of a recipe with .*'seed': 4.*: delete the file, or use the same"
    ):
        flow_matching.train(tmp_path, config, model, torch.zeros(1), torch.zeros(1), Timer("policy", 2))


def test_the_average_is_there_only_while_it_is_saved() -> None:
    layer = torch.nn.Linear(2, 2)
    own, average = layer.weight.detach().clone(), {"weight": torch.full((2, 2), 7.0)}

    def save() -> None:
        with flow_matching.averaged(layer, average):
            assert layer.weight.eq(7).all()
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        save()
    assert layer.weight.equal(own)


def test_both_policies_generate_the_same_latents() -> None:
    """The Wan policy's latents are the first VAE's, shifted and scaled in each channel."""
    teacher = wan_vae.Teacher(CHECKPOINT / "vae", 0, "cpu")
    clips, _ = world.corpus(64, stream(4, "test_wan"))
    latents = teacher.latents(clips)
    channels = latents.transpose(0, 1).flatten(1)
    assert float(channels.mean(1).abs().max()) < 0.2
    assert float((channels.std(1) - 1).abs().max()) < 0.2
    std, mean = (torch.tensor(values).reshape(1, -1, 1, 1, 1) for values in (teacher.std, teacher.mean))
    torch.testing.assert_close(latents * std + mean, teacher.raw_latents(clips), rtol=0, atol=1e-5)
