"""Folders in the released layout: what is refused before loading, prompts encoded once, parity with diffusers."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.algorithm.sampling import HeldOutConfig, sample_held_out
from bench.api import BenchError, Conditioning
from bench.backbones.hunyuanvideo15 import checkpoint
from bench.backbones.hunyuanvideo15.backbone import HunyuanVideo15
from bench.backbones.hunyuanvideo15.checkpoint import check_folder, load_text, refuse_guidance
from bench.core.provenance import ROOT
from bench.core.rng import normal, stream
from bench.flow import sigma_schedule
from bench.suite.prepared import prepare
from bench.train.preflight import check_suite
from tests.helpers.full_size import LONG, QUOTED, SHAPE, SHORT, latents, released, shards, velocity
from tests.helpers.nano_suite import CHECKPOINT, run, tiny

FULL = {"dtype": "bfloat16", "text_encoders": "released"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("released") / "480p_t2v")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def exact(folder: Path) -> HunyuanVideo15:
    """The released folder in float32."""
    backbone = HunyuanVideo15(folder)
    backbone.reset(stream(0, "initial_policy"))
    return backbone


# before loading -----------------------------------------------------------------------------------------------
def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def lose_a_shard(folder: Path) -> None:
    shards(folder, "transformer")[1].unlink()


def cut_a_shard(folder: Path) -> None:
    path = shards(folder, "text_encoder")[0]
    path.write_bytes(path.read_bytes()[:-2])


def swap_shards(folder: Path) -> None:
    first, second = shards(folder, "transformer")[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def quantise(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = shards(folder, "transformer")[0]
    save_file({key: value.to(torch.float8_e4m3fn) for key, value in load_file(path).items()}, path)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "lost shard": (lose_a_shard, r"does not load \(1 of \d shards of transformer are missing, first .*-00002-of-"),
    "cut shard": (cut_a_shard, r"does not load \(text_encoder/model-00001-.* has \d+ bytes, its header requires"),
    "swapped": (swap_shards, r"does not load \(transformer/.* lacks .*, which the index lists for it\)"),
    "no weights": (
        lambda f: edit(f / "transformer" / "diffusion_pytorch_model.safetensors.index.json", weight_map={}),
        "lists no weights",
    ),
    "fp8": (quantise, "holds weights of dtype F8_E4M3: give the folder with F32 or BF16 or F16 weights"),
    "image to video": (
        lambda f: edit(f / "model_index.json", _class_name="HunyuanVideo15ImageToVideoPipeline"),
        "only the text-to-video HunyuanVideo15Pipeline is supported",
    ),
    "other transformer": (
        lambda f: edit(f / "transformer" / "config.json", _class_name="HunyuanVideoTransformer3DModel"),
        "has _class_name 'HunyuanVideoTransformer3DModel', expected 'HunyuanVideo15Transformer3DModel'",
    ),
    "other encoder": (lambda f: edit(f / "text_encoder" / "config.json", model_type="llama"), "model_type 'llama'"),
    "meanflow": (lambda f: edit(f / "transformer" / "config.json", use_meanflow=True), "step-distilled"),
    "no config": (lambda f: (f / "vae" / "config.json").unlink(), r"vae/config.json cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unfit_folder_is_refused_before_anything_is_loaded(
    copy: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    damage, sentence = REFUSED[name]
    check_folder(copy)
    damage(copy)
    for part in ("load_transformer", "load_vae", "load_text"):
        monkeypatch.setattr(checkpoint, part, lambda *args: pytest.fail("loaded"))
    with pytest.raises(BenchError, match=sentence):
        HunyuanVideo15(copy, dtype="bfloat16")


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"dtype": "float16"}, "dtype is 'float16': choose one of float32, bfloat16"),
        ({"convention": "official"}, "convention is 'official': choose one of null, tencent, diffusers"),
        ({"text_encoders": "gone"}, "text_encoders is 'gone': choose one of resident, released"),
        ({"anchors_on": "disk"}, "anchors_on is 'disk': choose one of cpu, model"),
        ({"lora_rank": -1}, "lora_rank is -1"),
        ({"vae_tiling": [8, 8, 2]}, r"vae_tiling is \[8, 8, 2\]: give four sizes"),
        ({"vae_tiling": [8, 8, 4, 4]}, "the pixel sizes 4 times the latent ones"),
        ({"vae_tiling": [8, 8, 2, 2]}, "and those multiples of 4"),
        ({"lora_rank": 0, "dtype": "bfloat16"}, "bfloat16 weights lose small updates to rounding"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder: Path, params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence):
        HunyuanVideo15(folder, **params)


def test_guidance_on_a_distilled_model_is_refused_before_loading(copy: Path, exact: HunyuanVideo15) -> None:
    edit(copy / "guider" / "guider_config.json", guidance_scale=1.0)
    lists = "prompts={train: bench/prompts/nano_train.txt, heldout: bench/prompts/nano_heldout.txt}"
    suite = (f"backbone.checkpoint={copy}", lists)
    check_suite(prepare(tiny(*suite, "budget.guidance=1.0")))
    with pytest.raises(BenchError, match=r"is distilled \(its guider has scale 1.0\).*set budget.guidance to 1"):
        check_suite(prepare(tiny(*suite, "budget.guidance=6.0")))
    refuse_guidance(exact.folder, 6.0)  # its guider has scale 6
    with pytest.raises(BenchError, match="is distilled"):
        velocity(HunyuanVideo15(copy), [SHORT], guidance=6.0)


# prompts ------------------------------------------------------------------------------------------------------
def test_encoders_are_loaded_once_for_all_prompts_and_leave_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[weakref.ref[Any]] = []
    load = load_text

    def watched(*args: Any) -> Any:
        found = load(*args)
        loads.append(weakref.ref(found.encoder))
        return found

    monkeypatch.setattr(checkpoint, "load_text", watched)
    backbone = HunyuanVideo15(folder, **FULL)
    assert loads == []
    first = backbone.encode([SHORT, QUOTED, SHORT])
    assert [ref() for ref in loads] == [None]  # loaded, and gone
    again = backbone.encode([QUOTED, SHORT])
    assert again.text[0] is first.text[1]
    velocity(backbone, [SHORT], guidance=6.0)  # the empty prompt was encoded with the others
    assert len(loads) == 1
    resident = HunyuanVideo15(folder, dtype="bfloat16").encode([SHORT, QUOTED])
    assert all(torch.equal(a, b) for a, b in zip(resident.text, first.text, strict=False))
    assert all(torch.equal(a, b) for a, b in zip(resident.more["glyph"], first.more["glyph"], strict=False))
    assert first.text[0].dtype == torch.bfloat16


def test_states_on_disk_replace_the_encoders_and_belong_to_them(
    folder: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "states"
    fresh = HunyuanVideo15(folder, **FULL, text_cache=cache).encode([SHORT, QUOTED])
    (path,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "load_text", lambda *args: pytest.fail("loaded"))
        stored = HunyuanVideo15(folder, **FULL, text_cache=cache).encode([SHORT, QUOTED])
    for a, b in zip([*fresh.text, *fresh.more["glyph"]], [*stored.text, *stored.more["glyph"]], strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype
    HunyuanVideo15(folder, text_encoders="released", text_cache=cache).encode([SHORT, QUOTED])
    assert len(list(cache.iterdir())) == 2  # float32 states
    edit(copy / "text_encoder" / "config.json", rms_norm_eps=1e-3)
    HunyuanVideo15(copy, **FULL, text_cache=cache).encode([SHORT, QUOTED])
    assert len(list(cache.iterdir())) == 3  # another encoder's
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BenchError, match=r"prompt states .* cannot be read .*: delete the file"):
        HunyuanVideo15(folder, **FULL, text_cache=cache).encode([SHORT, QUOTED])


def test_a_run_with_released_encoders_loads_them_once_and_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], load_text
    monkeypatch.setattr(checkpoint, "load_text", lambda *args: loads.append(0) or load(*args))
    small = ("budget.updates=1", "budget.guidance=2.0", "evaluation.steps=1")
    whole = run(tiny(*small), tmp_path / "resident")
    assert len(loads) == 1
    again = run(tiny(*small, "backbone.train.text_encoders=released"), tmp_path / "released")
    assert len(loads) == 2
    assert again.scores_digest == whole.scores_digest
    assert again.backbone == whole.backbone


# parity with diffusers ----------------------------------------------------------------------------------------
def padded(states: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    out = torch.zeros(len(states), length, states[0].shape[1], dtype=states[0].dtype)
    mask = torch.zeros(len(states), length)
    for i, state in enumerate(states):
        out[i, : len(state)], mask[i, : len(state)] = state, 1
    return out, mask


@torch.no_grad()
def stock_velocity(transformer: Any, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
    """diffusers' own processor, text padded and masked, one image token of zeros."""
    dtype = transformer.dtype
    text, text_mask = padded(cond.text, 100)
    glyph, glyph_mask = padded(cond.more["glyph"], 64)
    extra = torch.zeros(len(x), transformer.config.in_channels - x.shape[1], *x.shape[2:])
    out: Tensor = transformer(
        hidden_states=torch.cat([x, extra], 1).to(dtype),
        timestep=(1000 * sigma).to(dtype),
        encoder_hidden_states=text.to(dtype),
        encoder_attention_mask=text_mask,
        encoder_hidden_states_2=glyph.to(dtype),
        encoder_attention_mask_2=glyph_mask,
        image_embeds=torch.zeros(len(x), 1, transformer.config.image_embed_dim, dtype=dtype),
        return_dict=False,
    )[0]
    return out.float()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 0.02)])
@torch.no_grad()
def test_velocity_equals_the_stock_forward_on_padded_text(folder: Path, dtype: Any, tolerance: float) -> None:
    """Largest difference over the largest velocity: some roundings of float32; of bfloat16 (2^-8 each) a few."""
    from diffusers import HunyuanVideo15Transformer3DModel

    backbone = HunyuanVideo15(folder, dtype=dtype)
    stock = HunyuanVideo15Transformer3DModel.from_pretrained(folder / "transformer", torch_dtype=backbone.dtype).eval()
    x, sigma = latents(4)
    cond = backbone.encode([SHORT, LONG, QUOTED, ""])
    ours, theirs = backbone.velocity(x, sigma, cond, 1.0), stock_velocity(stock, x, sigma, cond)
    gap = float((ours - theirs).abs().max() / theirs.abs().max())
    print(f"{dtype}: largest difference {gap:.1e} of the largest velocity {float(theirs.abs().max()):.2f}")
    assert gap < tolerance
    assert ours.dtype == torch.float32
    wrong = stock_velocity(stock, x, sigma, backbone.encode([LONG, SHORT, SHORT, SHORT]))
    assert float((ours - wrong).abs().max() / theirs.abs().max()) > 2 * tolerance


def pipeline(folder: Path, guidance: float) -> Any:
    """diffusers' pipeline in float32, without text encoders."""
    from diffusers import ClassifierFreeGuidance, HunyuanVideo15Pipeline

    pipe = HunyuanVideo15Pipeline.from_pretrained(
        folder,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(guidance_scale=guidance),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("guidance", [1.0, 6.0])
@torch.no_grad()
def test_the_sampler_equals_the_stock_pipeline(
    folder: Path, exact: HunyuanVideo15, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    """Same noise, same states, 6 steps of shift 5 in float32; the schedules differ by float32 roundings."""
    cond = exact.encode([QUOTED, ""])
    x = normal(7, [("heldout", 0, 0)], SHAPE)
    states: dict[str, Tensor] = {}
    for prefix, row in (("", 0), ("negative_", 1)):
        for suffix, rows, length in (("", cond.text, 100), ("_2", cond.more["glyph"], 64)):
            padding = padded([rows[row]], length)
            states[f"{prefix}prompt_embeds{suffix}"], states[f"{prefix}prompt_embeds_mask{suffix}"] = padding
    size = {"height": 16, "width": 16, "num_frames": 13, "num_inference_steps": 6}
    pipe = pipeline(folder, guidance)
    expected = pipe(latents=x.clone(), output_type="latent", return_dict=False, **size, **states)[0]
    monkeypatch.setattr(exact, "decode", lambda x0: x0)
    config = HeldOutConfig(1, seed=7, steps=6, shift=5.0, guidance=guidance, micro_batch=1)
    (batch,) = sample_held_out(exact, cond.take([0]), config)
    gap = float((batch.pixels - expected).abs().max() / expected.abs().max())
    print(f"guidance {guidance}: largest difference {gap:.1e} of {float(expected.abs().max()):.2f}")
    assert gap < 1e-5
    assert float((expected - x).abs().max()) > 0.5


def test_the_schedule_is_the_pipeline_s() -> None:
    """diffusers shifts linspace(1, 0) once when it is given as sigmas: equal to one float32 rounding of 1."""
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler

    for steps in (10, 20, 50):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])
        assert float((sigma_schedule(steps, 5.0) - scheduler.sigmas).abs().max()) < 1.2e-7


# conventions --------------------------------------------------------------------------------------------------
def seen_timesteps(backbone: HunyuanVideo15) -> list[Tensor]:
    seen: list[Tensor] = []
    hook = backbone.transformer.time_embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        backbone.velocity(latents(1)[0], torch.tensor([0.98958]), backbone.encode([SHORT]), 1.0)
    hook.remove()
    return seen


def test_tencent_keeps_the_timestep_in_float32(folder: Path) -> None:
    (rounded,) = seen_timesteps(HunyuanVideo15(folder, dtype="bfloat16"))
    assert (rounded.dtype, float(rounded)) == (torch.bfloat16, 988.0)
    backbone = HunyuanVideo15(folder, dtype="bfloat16", convention="tencent")
    (kept,) = seen_timesteps(backbone)
    assert kept.dtype == torch.float32
    assert float(kept) == pytest.approx(989.58, abs=1e-4)
    backbone.reset(stream(0, "initial_policy"))
    backbone.velocity(*latents(1), backbone.encode([SHORT]), 1.0).sum().backward()  # under autocast too
    assert sum(p.grad is not None and bool(p.grad.any()) for p in backbone.parameters()) > 20


@pytest.mark.parametrize(("convention", "first", "later"), [(None, 0, 0), ("tencent", 1, 0), ("diffusers", 1, 1)])
@torch.no_grad()
def test_conventions_round_the_first_noise_and_the_latents(
    folder: Path, monkeypatch: pytest.MonkeyPatch, convention: Any, first: int, later: int
) -> None:
    """1: only numbers that bfloat16 holds; the velocity sees every x of the loop."""
    backbone = HunyuanVideo15(folder, dtype="bfloat16", convention=convention)
    seen: list[Tensor] = []

    def spy(x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float, uncond_grad: bool = True) -> Tensor:
        seen.append(x)
        return torch.sin(3 * x)

    monkeypatch.setattr(backbone, "velocity", spy)
    config = HeldOutConfig(1, seed=0, steps=3, shift=5.0, guidance=1.0, micro_batch=1)
    list(sample_held_out(backbone, backbone.encode([SHORT]), config))
    assert all(x.dtype == torch.float32 for x in seen)
    assert [int(torch.equal(x, x.bfloat16().float())) for x in seen] == [first, later, later]
    stored = json.loads(backbone.fingerprint()["settings"])
    assert stored.get("convention") == convention
    assert ("convention" in stored) == (convention is not None)


def test_a_rounded_rollout_scores_what_it_stored(tmp_path: Path) -> None:
    """The ratio audit: log-probabilities of the update are those of the rollout, with latents rounded at each step."""
    train = ("backbone.train.dtype=bfloat16", "backbone.train.convention=diffusers")
    record = run(tiny("budget.updates=1", "evaluation.steps=1", *train), tmp_path)
    assert record.gates["ratio_audit"] == {"passed": True, "largest": 0.0, "tolerance": 1e-5}
    assert json.loads(record.backbone["settings"])["convention"] == "diffusers"


# the VAE ------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_tiles_are_diffusers_own_and_named_in_the_fingerprint() -> None:
    from diffusers import AutoencoderKLHunyuanVideo15

    size = (5, 32, 48)
    tiled = HunyuanVideo15(CHECKPOINT, size=size, vae_tiling=(16, 16, 4, 4))
    whole = HunyuanVideo15(CHECKPOINT, size=size)
    x = normal(0, [("tiles", 0), ("tiles", 1)], tiled.latent_shape)
    stock = AutoencoderKLHunyuanVideo15.from_pretrained(CHECKPOINT / "vae").eval()
    stock.enable_slicing()
    stock.enable_tiling(16, 16, 4, 4)
    expected = (stock.decode(x / stock.config.scaling_factor, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
    found = tiled.decode(x)
    assert found.shape == (2, 3, *size)
    assert (
        float((found - expected).abs().max()) < 3e-6
    )  # pixels in [0, 1]: some float32 roundings, whose number depends on the CPU
    assert float((found - whole.decode(x)).abs().max()) > 1e-2
    settings = json.loads(tiled.fingerprint()["settings"])
    assert settings.pop("vae_tiling") == [16, 16, 4, 4]
    assert settings == json.loads(whole.fingerprint()["settings"])


def test_the_nano_fingerprint_is_that_of_the_stored_records() -> None:
    """New options are named only where they are set, so that records made before them still compare."""
    record = json.loads((ROOT / "results" / "reference" / "nano" / "base" / "run.json").read_text())
    train = record["config"]["backbone"]["train"]
    assert HunyuanVideo15(CHECKPOINT, **train).fingerprint() == record["backbone"]
