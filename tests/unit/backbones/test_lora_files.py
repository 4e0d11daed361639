"""LoRA files that diffusers and peft write themselves, run by the backbone: the same velocity, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.api import BenchError
from bench.backbones.hunyuanvideo15.backbone import HunyuanVideo15
from bench.backbones.hunyuanvideo15.transformer import drop_masks
from bench.backbones.hunyuanvideo15.transformer import velocity as stock_velocity
from bench.core.rng import stream
from tests.helpers.full_size import LONG, SHORT, latents
from tests.helpers.nano_suite import CHECKPOINT

TRANSFORMER = CHECKPOINT / "transformer"
NAMES = ["to_q", "to_out.0", "add_k_proj", "ff.net.2"]
"""Bare names, as other trainers give them: `to_q` is found in the text refiner too."""


def stock() -> Any:
    from diffusers import HunyuanVideo15Transformer3DModel

    transformer = HunyuanVideo15Transformer3DModel.from_pretrained(TRANSFORMER).eval()
    drop_masks(transformer)
    return transformer


def adapted(**settings: Any) -> Any:
    """diffusers' transformer with a LoRA that changes its velocity."""
    from peft import LoraConfig

    transformer = stock()
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": NAMES, **settings})
    transformer.add_adapter(config, adapter_name="theirs")
    rng = torch.Generator().manual_seed(0)
    for name, weight in transformer.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=rng) * 0.3
    return transformer


def models_layout(transformer: Any, folder: Path) -> Path:
    transformer.save_lora_adapter(folder, adapter_name="theirs")
    return folder


def pipelines_layout(transformer: Any, folder: Path) -> Path:
    """As the `save_lora_weights` of diffusers' pipelines writes it, under `transformer.`, with its header."""
    from diffusers.loaders.lora_base import LoraBaseMixin
    from peft.utils import get_peft_model_state_dict

    layers = {"transformer": get_peft_model_state_dict(transformer, adapter_name="theirs")}
    config = transformer.peft_config["theirs"].to_dict()
    header = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    LoraBaseMixin._save_lora_weights(folder, layers, {"transformer": header})
    return folder / "pytorch_lora_weights.safetensors"


def peft_layout(transformer: Any, folder: Path) -> Path:
    from peft import get_peft_model

    ours = dict(transformer.named_parameters())
    wrapped = get_peft_model(stock(), transformer.peft_config["theirs"])
    for name, weight in wrapped.base_model.model.named_parameters():
        if "lora_" in name:
            weight.data = ours[name.replace(".default.", ".theirs.")].data
    wrapped.save_pretrained(folder)
    return folder


def down_up_layout(transformer: Any, folder: Path) -> Path:
    """`lora_down`, `lora_up` and a tensor `alpha` for each layer, without header."""
    from peft.utils import get_peft_model_state_dict

    tensors: dict[str, Tensor] = {}
    for key, value in get_peft_model_state_dict(transformer, adapter_name="theirs").items():
        tensors[key.replace("lora_A", "lora_down").replace("lora_B", "lora_up")] = value.contiguous()
        tensors[key.partition(".lora_")[0] + ".alpha"] = torch.tensor(6.0)
    folder.mkdir()
    save_file(tensors, folder / "mine.safetensors")
    return folder / "mine.safetensors"


LAYOUTS = {each.__name__: each for each in (models_layout, pipelines_layout, peft_layout, down_up_layout)}


@pytest.fixture(scope="module")
def backbone() -> HunyuanVideo15:
    backbone = HunyuanVideo15(CHECKPOINT)
    backbone.reset(stream(0, "initial_policy"))
    return backbone


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_other_programs_velocity(layout: str, backbone: HunyuanVideo15, tmp_path: Path) -> None:
    theirs = adapted()
    path = LAYOUTS[layout](theirs, tmp_path / "lora")
    x, sigma = latents(2)
    cond = backbone.encode([SHORT, LONG])
    base = backbone.velocity(x, sigma, cond, 1.0)
    expected = stock_velocity(theirs, x, sigma, cond.text, cond.more["glyph"])
    before = [weight.clone() for weight in backbone.parameters()]
    generator = torch.random.get_rng_state()
    with backbone.as_policy_file(path):
        assert torch.equal(backbone.velocity(x, sigma, cond, 1.0), expected)
    assert float((base - expected).abs().max()) > 1e-3
    assert torch.equal(backbone.velocity(x, sigma, cond, 1.0), base)
    assert all(torch.equal(a, b) for a, b in zip(before, backbone.parameters(), strict=True))
    assert torch.equal(torch.random.get_rng_state(), generator)
    facts = HunyuanVideo15.check_policy_file(path, CHECKPOINT)
    assert (facts["ranks"], facts["alphas"]) == ([4], [6.0])


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"to_q": 2, r"transformer_blocks.1.ff.net.2": 8}, "alpha_pattern": {"add_k_proj": 3}},
    ],
)
def test_uneven_ranks_and_scales_run_as_peft_runs_them(
    settings: dict[str, Any], backbone: HunyuanVideo15, tmp_path: Path
) -> None:
    theirs = adapted(**settings)
    path = peft_layout(theirs, tmp_path / "lora")
    x, sigma = latents(1)
    cond = backbone.encode([SHORT])
    with backbone.as_policy_file(path):
        v = backbone.velocity(x, sigma, cond, 1.0)
    assert torch.equal(v, stock_velocity(theirs, x, sigma, cond.text, cond.more["glyph"]))


def test_a_file_without_alpha_has_the_scale_one(tmp_path: Path) -> None:
    path = down_up_layout(adapted(), tmp_path / "lora")
    save_file({key: value for key, value in load_file(path).items() if not key.endswith(".alpha")}, path)
    assert HunyuanVideo15.check_policy_file(path, CHECKPOINT)["alphas"] == [4.0]


@torch.no_grad()
def test_a_file_runs_on_a_backbone_that_trains_all_weights(backbone: HunyuanVideo15, tmp_path: Path) -> None:
    path = models_layout(adapted(), tmp_path / "lora")
    full = HunyuanVideo15(CHECKPOINT, lora_rank=0)
    x, sigma = latents(1)
    cond = full.encode([SHORT])
    base = full.velocity(x, sigma, cond, 1.0)
    with full.as_policy_file(path):
        v = full.velocity(x, sigma, cond, 1.0)
    assert torch.equal(full.velocity(x, sigma, cond, 1.0), base)
    with backbone.as_policy_file(path):
        assert torch.equal(backbone.velocity(x, sigma, cond, 1.0), v)


def changed(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(path)), path)


def without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: value for name, value in tensors.items() if name != key}


FIRST = "transformer_blocks.0.attn.to_q"
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "zero bytes": (lambda file: file.write_bytes(b""), r"not a whole safetensors file \(0 bytes; .*: download"),
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:-100]), "not a whole safetensors file"),
    "a pointer": (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"), "not a whole"),
    "no weights": (lambda file: save_file({}, file), "has no weights"),
    "one matrix": (
        lambda file: changed(file, without(f"{FIRST}.lora_up.weight")),
        f"one of the two matrices of the layer {FIRST} only",
    ),
    "alpha alone": (
        lambda file: changed(file, lambda t: {**t, "x_embedder.alpha": torch.tensor(1.0)}),
        "an alpha and no matrices of the layer x_embedder",
    ),
    "another kind": (
        lambda file: changed(file, lambda t: {**t, f"{FIRST}.lora_magnitude_vector": torch.ones(3)}),
        "no matrix of a plain LoRA",
    ),
    "another model's layer": (
        lambda file: changed(file, lambda t: {k.replace("transformer_blocks.0", "blocks.0"): v for k, v in t.items()}),
        r"changes the layer blocks\.0\..* does not have: it is a LoRA of another model",
    ),
    "Tencent's names": (
        lambda file: changed(
            file,
            lambda t: {
                f"double_blocks.0.img_attn_q.{k.rpartition(f'{FIRST}.')[2]}": v
                for k, v in t.items()
                if k.startswith(FIRST)
            },
        ),
        "convert it to diffusers' names",
    ),
    "another size": (
        lambda file: changed(file, lambda t: {**t, f"{FIRST}.lora_down.weight": torch.ones(4, 7)}),
        r"are \[4, 7\] and .*: it is a LoRA of another model",
    ),
    "other ranks": (
        lambda file: changed(file, lambda t: {**t, f"{FIRST}.lora_down.weight": t[f"{FIRST}.lora_down.weight"][:2]}),
        "the matrices of",
    ),
    "whole numbers": (
        lambda file: changed(file, lambda t: {**t, f"{FIRST}.lora_up.weight": torch.ones(8, 4, dtype=torch.int8)}),
        "only LoRAs of linear layers in float32",
    ),
    "two adapters": (
        lambda file: changed(file, lambda t: {**t, f"{FIRST}.lora_A.other.weight": torch.ones(4, 8)}),
        f"two LoRAs of the layer {FIRST}",
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return down_up_layout(adapted(), tmp_path_factory.mktemp("sound") / "lora").read_bytes()


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_does_not_fit_is_one_sentence(kind: str, sound: bytes, tmp_path: Path) -> None:
    spoil, sentence = BAD[kind]
    file = tmp_path / "mine.safetensors"
    file.write_bytes(sound)
    assert HunyuanVideo15.check_policy_file(file, CHECKPOINT)["layers"]
    spoil(file)
    with pytest.raises(BenchError, match=sentence) as error:
        HunyuanVideo15.check_policy_file(file, CHECKPOINT)
    assert "\n" not in str(error.value)


def test_peft_s_configuration_is_needed_and_read(tmp_path: Path) -> None:
    folder = peft_layout(adapted(), tmp_path / "lora")
    config = folder / "adapter_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "init_lora_weights": "pissa"}))
    with pytest.raises(BenchError, match="'pissa', which changes the weights of the base model too"):
        HunyuanVideo15.check_policy_file(folder, CHECKPOINT)
    config.write_text(json.dumps({**settings, "lora_alpha": "much"}))
    with pytest.raises(BenchError, match=r"alpha of .* is 'much', which is no finite number"):
        HunyuanVideo15.check_policy_file(folder, CHECKPOINT)
    config.write_text("{")
    with pytest.raises(BenchError, match=r"LoRA configuration .*: download or copy it again"):
        HunyuanVideo15.check_policy_file(folder, CHECKPOINT)
    config.unlink()
    with pytest.raises(BenchError, match=r"no adapter_config\.json beside it, so its alpha is not known"):
        HunyuanVideo15.check_policy_file(folder, CHECKPOINT)


def test_a_path_without_a_lora_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(BenchError, match="is no safetensors file"):
        HunyuanVideo15.check_policy_file(tmp_path / "weights.bin", CHECKPOINT)
    with pytest.raises(BenchError, match=r"safetensors files: none\): name"):
        HunyuanVideo15.check_policy_file(tmp_path, CHECKPOINT)
    with pytest.raises(BenchError, match="does not exist"):
        HunyuanVideo15.check_policy_file(tmp_path / "nowhere", CHECKPOINT)
