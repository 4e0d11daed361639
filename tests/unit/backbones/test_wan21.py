"""Wan2.1 on a small folder: what is refused before loading, the stock pipeline, types, gradients, export, cost."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.api import BenchError
from bench.backbones.wan21 import Wan21, checkpoint, cost
from bench.backbones.wan21.options import BLOCKS, TRANSFORMER
from bench.checks.backbones import CHECKS, check_backbone
from bench.core.rng import normal
from bench.flow import sigma_schedule
from tests.helpers.wan import BROKEN, FOLDER, NEGATIVE, SHAPE, SHORT, SIZE, latents, make, sampled, shake, velocity

SMALL = {"text_rows": 48}
"""Fewer rows of text, for tests in which their number does not matter."""


@pytest.fixture(scope="module")
def wan() -> Wan21:
    return make()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "Wan2.1"))


# before loading -----------------------------------------------------------------------------------------------
def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def configured(part: str, **changes: Any) -> Callable[[Path], None]:
    name = "model_index.json" if part == "" else f"{part}/config.json"
    return lambda folder: edit(folder / name, **changes)


def original_layout(folder: Path) -> None:
    for part in checkpoint.PARTS:
        shutil.rmtree(folder / part)
    (folder / "config.json").write_text(json.dumps({"_class_name": "WanModel", "model_type": "t2v"}))


def rebuild_tokenizer(folder: Path) -> None:
    """As transformers 5 writes it."""
    path = folder / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["unk_id"] = 2
    path.write_text(json.dumps(tokenizer))


def drop_end(folder: Path) -> None:
    edit(folder / "tokenizer" / "tokenizer.json", post_processor=None)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "Wan's own layout": (original_layout, "is in Wan's own layout: give the folder for diffusers"),
    "image to video": (
        configured("transformer", image_dim=1280),
        "is an image-to-video model .*give a folder of Wan2.1",
    ),
    "added keys": (configured("transformer", added_kv_proj_dim=64), "is an image-to-video model"),
    "more channels": (
        configured("transformer", in_channels=36),
        "its transformer takes 36 channels and its VAE has 16",
    ),
    "pipeline of images": (
        configured("", _class_name="WanImageToVideoPipeline"),
        "only the text-to-video WanPipeline",
    ),
    "VACE": (configured("transformer", _class_name="WanVACETransformer3DModel"), "expected 'WanTransformer3DModel'"),
    "Wan2.2": (
        configured("", transformer_2=["diffusers", "WanTransformer3DModel"]),
        r"is a model of Wan2.2 \(model_index.json has transformer_2\): give a folder of Wan2.1 text to video",
    ),
    "Wan2.2, boundary": (configured("", boundary_ratio=0.875), r"Wan2.2 \(model_index.json has boundary_ratio\)"),
    "Wan2.2 5B": (configured("", expand_timesteps=True), r"Wan2.2 \(model_index.json has expand_timesteps\)"),
    "Wan2.2 VAE": (configured("vae", is_residual=True), "the 5B model of Wan2.2"),
    "other encoder": (configured("text_encoder", model_type="t5"), "has model_type 't5', expected 'umt5'"),
    "rebuilt tokenizer": (
        rebuild_tokenizer,
        "is not the released tokenizer .unknown characters are not <unk>.*restore",
    ),
    "no end of text": (drop_end, "is not the released tokenizer .prompts do not end with </s>"),
    "no tokenizer": (lambda f: (f / "tokenizer" / "tokenizer.json").unlink(), "tokenizer.json cannot be read"),
    "no deviations": (configured("vae", latents_std=[1.0]), "latents_std does not have 16 numbers"),
    "patches": (
        configured("transformer", patch_size=[1, 1, 1]),
        r"patch_size is \[1, 1, 1\], and Wan2.1 has \[1, 2, 2\]",
    ),
    "no shard": (
        lambda f: (f / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink(),
        "does not load .1 of 2 shards of transformer are missing",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unfit_folder_is_refused_before_anything_is_loaded(
    copy: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    damage, sentence = REFUSED[name]
    checkpoint.check_folder(copy)
    damage(copy)
    for part in ("load_transformer", "load_vae", "load_text"):
        monkeypatch.setattr(checkpoint, part, lambda *args: pytest.fail("loaded"))
    for refused in (lambda: Wan21(copy, size=SIZE), lambda: Wan21.check_suite(copy, 5.0, {"size": SIZE})):
        with pytest.raises(BenchError, match=sentence) as caught:
            refused()
        assert str(caught.value).count("\n") == 0


def test_newer_keys_with_their_defaults_are_accepted(copy: Path) -> None:
    edit(copy / "model_index.json", transformer_2=[None, None], boundary_ratio=None, expand_timesteps=False)
    edit(copy / "vae" / "config.json", is_residual=False, scale_factor_spatial=8, scale_factor_temporal=4)
    edit(copy / "transformer" / "config.json", pos_embed_seq_len=None)
    Wan21.check_suite(copy, 5.0, {"size": SIZE})


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"size": (9, 40, 48)}, r"size \[9, 40, 48\]: frames must be 4 n \+ 1, height and width multiples of 16"),
        ({"size": (8, 32, 48)}, r"size \[8, 32, 48\]: frames must be 4 n \+ 1"),
        ({"vae_tiling": [100, 100, 75, 75]}, "give height and width of a tile .* multiples of 8"),
        ({"vae_tiling": [16, 16, 24, 8]}, "no distance above the tile's size"),
        ({"text_rows": 0}, "text_rows is 0: set it to at least 1"),
        ({"lora_rank": 0, "dtype": "bfloat16"}, "bfloat16 weights lose small updates to rounding"),
        ({"parallel": {"context": 8}}, "context is 8, which does not divide the 18 latent tokens"),
    ],
)
def test_options_that_do_not_fit_are_refused(params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence):
        Wan21.check_suite(FOLDER, 5.0, {"size": SIZE, **params})


def test_released_models_keep_512_rows_of_text_and_degrees_that_divide_their_heads(copy: Path) -> None:
    edit(copy / "transformer" / "config.json", text_dim=4096, num_attention_heads=12)
    Wan21.check_suite(copy, 5.0, {"size": (33, 480, 832), "parallel": {"context": 6}})
    with pytest.raises(BenchError, match="text_rows is 226, but the released models attend to 512 rows"):
        Wan21.check_suite(copy, 5.0, {"size": SIZE, "text_rows": 226})
    with pytest.raises(BenchError, match="context is 8, which does not divide the 12 attention heads"):
        Wan21.check_suite(copy, 5.0, {"size": (33, 480, 832), "parallel": {"context": 8}})


# text ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("token", ["<pad>", "</s>", "<s>", "<unk>", "<extra_id_7>", "&lt;/s&gt;"])
def test_a_prompt_with_a_special_token_is_refused(wan: Wan21, token: str) -> None:
    with pytest.raises(BenchError, match=r"holds the special token .* remove it"):
        wan.encode([f"a red circle {token} moving"])


def test_a_prompt_that_is_too_long_is_refused(wan: Wan21) -> None:
    with pytest.raises(BenchError, match=r"tokens, the model accepts 512: shorten it"):
        wan.encode(["red circle " * 600])


def test_the_embedding_of_the_text_encoder_is_loaded(wan: Wan21) -> None:
    """transformers 5 before 5.2 left it uninitialised for `tie_word_embeddings: false`: every prompt was the same."""
    encoder = wan.text.encoder
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
    assert bool(encoder.shared.weight.any())


# against diffusers --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("guidance", "negative"), [(1.0, ""), (5.0, "two dogs on the grass")])
@torch.no_grad()
def test_the_sampler_equals_the_stock_pipeline(guidance: float, negative: str) -> None:
    """Same noise, 4 steps of shift 5 in float32, with the pipeline's own text; only the schedule is given to it.

    The prompts have no unknown characters, for which the pipeline's tokenizer is another one.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    class GivenSigmas(FlowMatchEulerDiscreteScheduler):
        def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
            super().set_timesteps(sigmas=torch.linspace(1, 0, num_inference_steps + 1)[:-1].numpy(), device=device)

    backbone = make(negative_prompt=negative)
    pipe = WanPipeline.from_pretrained(FOLDER, scheduler=GivenSigmas(shift=5.0))
    pipe.set_progress_bar_config(disable=True)
    x = normal(7, [("heldout", 0, 0)], SHAPE)
    size = {"num_frames": SIZE[0], "height": SIZE[1], "width": SIZE[2], "num_inference_steps": 4}
    words = {"prompt": SHORT, "negative_prompt": negative, "guidance_scale": guidance, "output_type": "latent"}
    expected = pipe(latents=x.clone(), return_dict=False, **size, **words)[0]
    ours = sampled(backbone, SHORT, x, guidance=guidance)
    assert float((ours - expected).abs().max() / expected.abs().max()) < 2e-5
    assert float((expected - x).abs().max()) > 0.5
    assert float((pipe.scheduler.sigmas - sigma_schedule(4, 5.0)).abs().max()) < 2e-7


@torch.no_grad()
def test_decoding_a_batch_equals_one_by_one_and_tiles_change_little(wan: Wan21) -> None:
    x = latents(2)[0]
    batch = wan.decode(x)
    assert batch.shape == (2, 3, *SIZE)
    assert 0 <= float(batch.min()) <= float(batch.max()) <= 1
    assert float((batch - torch.cat([wan.decode(x[:1]), wan.decode(x[1:])])).abs().max()) < 1e-4
    tiled = make(vae_tiling=[32, 32, 24, 24])
    assert "[32, 32, 24, 24]" in tiled.fingerprint()["settings"]
    assert tiled.decode(x).shape == batch.shape
    assert not torch.equal(tiled.decode(x), batch)


# types --------------------------------------------------------------------------------------------------------
def test_the_timestep_stays_in_float32_and_so_do_norms_and_tables() -> None:
    backbone = make(dtype="bfloat16", **SMALL)
    seen: list[Tensor] = []
    net = backbone.transformer
    net.condition_embedder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        v = backbone.velocity(latents(1)[0], torch.tensor([0.93713]), backbone.encode([SHORT]), 1.0)
    assert (seen[0].dtype, float(seen[0])) == (torch.float32, float(1000 * torch.tensor(0.93713)))
    assert v.dtype == torch.float32
    kept = {name for name, p in net.named_parameters() if "lora_" not in name and p.dtype == torch.float32}
    expected = ("time_embedder.", "scale_shift_table", "norm2.")
    assert kept == {name for name, _ in net.named_parameters() if any(part in name for part in expected)}
    assert net.patch_embedding.weight.dtype == torch.bfloat16
    assert net.rope.freqs_cos.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in backbone.parameters())
    assert backbone.encode([SHORT]).text[0].dtype == torch.bfloat16


# gradients and guidance ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("rank", [2, 0])
def test_checkpointing_changes_no_bit_and_every_weight_gets_a_gradient(rank: int) -> None:
    found = []
    for checkpointing in (False, True):
        backbone = make(lora_rank=rank, gradient_checkpointing=checkpointing, **SMALL)
        shake(backbone)
        velocity(backbone, [SHORT, BROKEN], guidance=3.0).square().mean().backward()
        found.append([p.grad for p in backbone.parameters()])
    assert all(a is not None and bool(a.any()) for a in found[0])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    layers = len([p for p in backbone.transformer.named_parameters() if ".lora_A." in p[0]])
    assert layers == (3 * 10 if rank else 0)


def test_guidance_goes_from_the_negative_prompt_through_the_prompt_with_or_without_its_gradient() -> None:
    backbone = make(negative_prompt=NEGATIVE, **SMALL)
    shake(backbone)
    cond, uncond = velocity(backbone, [SHORT]), velocity(backbone, [NEGATIVE])
    guided = velocity(backbone, [SHORT], guidance=2.5)
    torch.testing.assert_close(guided, uncond + 2.5 * (cond - uncond), rtol=0, atol=2e-5)
    assert float((guided - cond).detach().abs().max()) > 1e-3
    trained = backbone.parameters()
    whole, without = (
        torch.cat([g.flatten() for g in torch.autograd.grad(v.sum(), trained)])
        for v in (guided, velocity(backbone, [SHORT], guidance=2.5, uncond_grad=False))
    )
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(2.5 * cond.sum(), trained)])
    top = float(expected.abs().max())
    assert float((without - expected).abs().max()) < 1e-4 * top
    assert float((whole - without).abs().max()) > 0.05 * top


def test_the_fingerprint_names_what_numbers_depend_on(wan: Wan21) -> None:
    settings = json.loads(wan.fingerprint()["settings"])
    assert settings["negative_prompt"] == ""
    assert settings["text_rows"] == 512
    assert settings["ftfy"]
    assert make(negative_prompt="blurred").fingerprint()["settings"] != wan.fingerprint()["settings"]


@pytest.mark.parametrize(
    "params",
    [{}, {"lora_rank": 0}, {"dtype": "bfloat16", "gradient_checkpointing": True, "text_encoders": "released"}],
    ids=["LoRA", "all weights", "bfloat16"],
)
def test_wan21_keeps_its_promises(params: dict[str, Any]) -> None:
    assert check_backbone(make(**params, **SMALL)) == CHECKS


# export -------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_an_exported_lora_is_loaded_by_the_pipeline_and_by_the_transformer(tmp_path: Path) -> None:
    """The pipeline takes keys that begin with "transformer."; without, it loads nothing and only warns."""
    from diffusers import WanPipeline, WanTransformer3DModel

    backbone = make(lora_rank=2, **SMALL)
    shake(backbone)
    policy = {key.partition(":")[2]: value for key, value in backbone.state_dict().items()}
    for name, content in Wan21.export_policy(policy, backbone.fingerprint(), FOLDER).items():
        (tmp_path / name).write_bytes(content)
    expected = velocity(backbone, [SHORT])
    (x, sigma), text = latents(1), torch.zeros(1, 48, 32)
    states = backbone.encode([SHORT]).text[0]
    text[0, : len(states)] = states
    net = WanTransformer3DModel.from_pretrained(FOLDER / "transformer").eval()
    base = net(x, 1000 * sigma, text, return_dict=False)[0]
    net.load_lora_adapter(tmp_path, use_safetensors=True)
    assert torch.equal(net(x, 1000 * sigma, text, return_dict=False)[0], expected)
    assert float((base - expected).abs().max()) > 1e-3
    pipe = WanPipeline.from_pretrained(FOLDER, text_encoder=None, tokenizer=None, vae=None)
    pipe.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    assert torch.equal(pipe.transformer(x, 1000 * sigma, text, return_dict=False)[0], expected)


# cost ---------------------------------------------------------------------------------------------------------
def test_parameters_and_flops_are_those_of_the_class() -> None:
    from diffusers import WanTransformer3DModel
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = {"num_attention_heads": 3, "attention_head_dim": 12, "ffn_dim": 40, "num_layers": 2, "text_dim": 24}
    with torch.random.fork_rng(devices=[]):
        model = WanTransformer3DModel(**config, in_channels=6, out_channels=6, freq_dim=16, rope_max_seq_len=32)
    sizes = cost.Transformer.from_config(model.config)
    assert sizes.parameters == sum(p.numel() for p in model.parameters())
    assert sizes.block_parameters == sum(p.numel() for p in getattr(model, BLOCKS)[0].parameters())
    x, text = torch.zeros(1, 6, 3, 4, 6), torch.zeros(1, 9, 24)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(x, torch.tensor([500.0]), text, return_dict=False)
    assert sizes.forward(3 * 2 * 3, 9) == counter.get_total_flops()


def test_lora_parameters_are_those_of_the_backbone(wan: Wan21) -> None:
    sizes = cost.Transformer.from_config(wan.transformer.config)
    assert sizes.lora_parameters(8, "attention+ff") == sum(p.numel() for p in wan.parameters())
    small, large = cost.RELEASED["1.3B"], cost.RELEASED["14B"]
    assert (small.parameters, small.block_parameters) == (1_418_996_800, 46_440_704)
    assert (large.parameters, large.block_parameters) == (14_288_491_584, 351_394_304)
    for targets, rates in (("attention", (23.6, 104.9)), ("attention+ff", (43.7, 153.4))):
        for model, rate in zip((small, large), rates, strict=True):
            assert model.lora_parameters(32, targets) / 1e6 == pytest.approx(rate, abs=0.05)


TFLOP = {512: (1.5, 4.7, 14.9), 3_510: (11.5, 38, 98), 14_040: (73, 275, 505), 32_760: (283, 1150, 1678)}
"""Latent tokens to TFLOP: forward pass and checkpointed LoRA step of 1.3B, forward pass of 14B, one branch."""


@pytest.mark.parametrize("tokens", TFLOP)
def test_the_released_models_cost_what_the_paper_arithmetic_says(tokens: int) -> None:
    small, large = cost.RELEASED["1.3B"], cost.RELEASED["14B"]
    step = small.forward(tokens, 512) + small.backward(tokens, 512, checkpointing=True, full=False)
    found = (small.forward(tokens, 512), step, large.forward(tokens, 512))
    for got, want in zip(found, TFLOP[tokens], strict=True):
        assert got / 1e12 == pytest.approx(want, rel=0.02, abs=0.05)


@pytest.mark.parametrize(
    ("size", "whole", "tiled", "gigabytes"),
    [((33, 240, 416), 28, 46, 2.0), ((33, 480, 832), 113, 186, 7.9), ((81, 480, 832), 275, 454, 8.2)],
)
def test_decoding_costs_what_was_counted(size: tuple[int, int, int], whole: int, tiled: int, gigabytes: float) -> None:
    vae = cost.RELEASED_VAE
    for expected, tiles in ((whole, False), (tiled, True)):
        assert cost.decode_flops(vae, size, tiles) == pytest.approx(expected * 1e12, rel=0.02)
    assert cost.decode_bytes(vae, size, None) / 1e9 == pytest.approx(gigabytes, rel=0.02)
    assert cost.decode_flops({**vae, "z_dim": 8}, size, False) is None


def test_the_cost_of_a_missing_folder_is_that_of_the_model_in_its_name() -> None:
    params = {"size": (81, 480, 832), "dtype": "bfloat16", "lora_rank": 32, "gradient_checkpointing": True}
    small = Wan21.model_cost(Path("/nowhere/Wan2.1-T2V-1.3B-Diffusers"), params, 10.0)
    large = Wan21.model_cost(Path("/nowhere/Wan2.1-T2V-14B-Diffusers"), params, 10.0)
    assert (small.parameters, large.parameters) == (1_418_996_800, 14_288_491_584)
    assert small.latents == large.latents == 32_760
    assert small.text == 0
    assert small.latent_shape == (16, 21, 60, 104)
    # live tensors of a checkpointed step with both branches of guidance: 13.1 GB for 1.3B, 45.4 GB for 14B
    for model, expected in ((small, 13.1), (large, 45.4)):
        units = model.latents * model.width
        stored = units * (2 * model.layers * 2 + model.block_bytes + cost.FORWARD_BUFFERS)
        assert stored / 1e9 == pytest.approx(expected, rel=0.04)


def test_sizes_of_a_folder_are_read_from_its_files(wan: Wan21) -> None:
    found = Wan21.model_cost(FOLDER, {"size": SIZE}, 10.0)
    assert found.source == "configs of the checkpoint folder"
    assert found.parameters == sum(p.numel() for n, p in wan.transformer.named_parameters() if "lora_" not in n)
    assert found.vae_parameters == sum(p.numel() for p in wan.vae.parameters())
    assert found.latents == math.prod((3, 2, 3))
    assert set(TRANSFORMER) <= set(json.loads((FOLDER / "transformer" / "config.json").read_text()))
