"""`base_weights: int8`: how far it is from the plain base, what it holds, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench.api import BenchError
from bench.backbones import fsdp
from bench.backbones.hunyuanvideo15 import HunyuanVideo15
from bench.backbones.hunyuanvideo15.cost import Transformer as HunyuanSizes
from bench.backbones.quantization import Int8Linear, dequantize, quantize_blocks
from bench.backbones.wan21 import Wan21
from bench.backbones.wan21.cost import Transformer as WanSizes
from bench.checks.backbones import check_backbone
from bench.cli import main
from bench.report.data.loading import load_records
from tests.helpers import toy_records
from tests.helpers.nano_suite import CHECKPOINT
from tests.helpers.small_backbones import NAMES, compare, make, outcome, ratio_error, released_folder, shake, velocity
from tests.helpers.wan import FOLDER, SIZE

__all__ = ["released_folder"]

INT8 = {"base_weights": "int8"}
BOUNDS = {"float32": (0.01, 0.03), "bfloat16": (0.04, 0.04)}
"""Root mean square of the difference over that of the plain base's velocity, and of its gradient. Rounding a weight to
255 levels gives 0.2 % of a velocity; bfloat16 alone gives 1 % on models this small."""


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", NAMES)
def test_velocity_and_gradient_are_near_those_of_the_plain_base(name: str, dtype: str, released_folder: Path) -> None:
    plain, found = (outcome(make(name, released_folder, dtype=dtype, **more)) for more in ({}, INT8))
    assert not torch.equal(found[0], plain[0])
    compare(f"base_weights: int8, {dtype}", found, plain, BOUNDS[dtype])


def test_a_weight_is_off_by_at_most_half_a_level_of_its_row() -> None:
    layer = nn.Linear(33, 17)
    with torch.no_grad():
        layer.weight[3].zero_()
        layer.weight[4] *= 1000
    found = Int8Linear(layer)
    assert (found.weight.dtype, found.weight.requires_grad) == (torch.int8, False)
    top = layer.weight.abs().amax(1, keepdim=True)
    error = (dequantize(found.weight, found.scale, torch.float32) - layer.weight).abs()
    assert bool((error <= top / 254 * (1 + 1e-5)).all())
    assert not error[3].any()
    x = torch.randn(2, 5, 33)
    expected = nn.functional.linear(x, dequantize(found.weight, found.scale, torch.float32), layer.bias)
    assert torch.equal(found(x), expected)


def test_the_backward_pass_holds_no_weights_in_another_type() -> None:
    layer = Int8Linear(nn.Linear(8, 16))
    x = torch.randn(4, 8, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(x)
    assert [t.dtype for t in saved if t.shape == layer.weight.shape] == [torch.int8]
    y.sum().backward()
    assert x.grad is not None
    weights = dequantize(layer.weight, layer.scale, torch.float32)
    torch.testing.assert_close(x.grad, weights.sum(0).expand(4, 8))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_all_linear_layers_of_the_blocks_are_in_int8_and_take_the_planned_bytes(
    name: str, dtype: str, released_folder: Path
) -> None:
    backbone = make(name, released_folder, dtype=dtype, lora_rank=1, **INT8)
    block = getattr(backbone.transformer, backbone.blocks)[0]
    layers = [m for m in block.modules() if isinstance(m, nn.Linear) and m.in_features > 1 and m.out_features > 1]
    assert len([layer for layer in layers if isinstance(layer, Int8Linear)]) == (
        14 if name == "hunyuanvideo15" else 10
    )
    assert all(isinstance(layer, Int8Linear) for layer in layers)
    held = {key: t for key, t in block.state_dict(keep_vars=True).items() if "lora_" not in key}
    found = sum(t.numel() * t.element_size() for t in held.values())
    sizes: Any = HunyuanSizes if name == "hunyuanvideo15" else WanSizes
    planned = sizes.from_config(backbone.transformer.config).quantized_block(4 if dtype == "float32" else 2)
    float32_parts = sum(t.numel() * 2 for key, t in held.items() if "norm2" in key or "table" in key)
    assert found == planned + (float32_parts if name == "wan21" and dtype == "bfloat16" else 0)
    others = [m for m in backbone.transformer.modules() if isinstance(m, Int8Linear)]
    assert len(others) == len(getattr(backbone.transformer, backbone.blocks)) * len(layers)


@pytest.mark.parametrize("name", NAMES)
def test_a_base_in_int8_is_named_in_the_fingerprint_and_keeps_the_promises_of_a_backbone(
    name: str, released_folder: Path
) -> None:
    plain, found = (make(name, released_folder, **more) for more in ({}, INT8))
    settings = json.loads(found.fingerprint()["settings"])
    assert settings.pop("base_weights") == "int8"
    assert settings == json.loads(plain.fingerprint()["settings"])
    check_backbone(found)
    shake(found)
    base = velocity(plain)
    with found.as_anchor("fixed"):
        assert float((velocity(found) - base).norm() / base.norm()) < 0.01


def test_the_ratio_is_exactly_one_before_the_first_update() -> None:
    assert ratio_error("backbone.train.base_weights=int8", "backbone.train.gradient_checkpointing=true") == 0.0


def test_runs_on_it_are_in_no_table_with_runs_on_the_plain_base(tmp_path: Path) -> None:
    plain = {"weights_sha256": "1", "settings": '{"dtype": "torch.bfloat16"}'}
    int8 = {**plain, "settings": '{"base_weights": "int8", "dtype": "torch.bfloat16"}'}
    toy_records.write(tmp_path, "base", None, backbone=plain)
    for row in toy_records.LIFTS:
        toy_records.write(tmp_path, row, 0, backbone=plain)
    load_records(tmp_path)
    toy_records.write(tmp_path, next(iter(toy_records.LIFTS)), 0, backbone=int8)
    with pytest.raises(BenchError, match=r"do not compare: backbone fingerprint .*base_weights"):
        load_records(tmp_path)


def test_it_needs_a_lora_and_a_folder_that_is_not_quantized_yet(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"base_weights int8 freezes the base, and lora_rank 0 trains all weights: "):
        HunyuanVideo15(CHECKPOINT, lora_rank=0, **INT8)
    with pytest.raises(BenchError, match=r"base_weights is 'int4': choose one of as_dtype, int8\."):
        Wan21(FOLDER, size=SIZE, base_weights="int4")
    copy = Path(shutil.copytree(FOLDER, tmp_path / "wan"))
    path = copy / "transformer" / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "bitsandbytes"}})
    )
    with pytest.raises(BenchError, match=r"transformer/config\.json has a quantization_config, so its weights are "):
        Wan21.check_suite(copy, 5.0, {"size": SIZE, **INT8})


def test_the_plan_shows_what_it_saves(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for words in ([], ["backbone.train.base_weights=int8"]):
        assert main(["plan", "hunyuanvideo15_single_gpu", *words, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)[0])
    before, after = (plan["memory_bytes"] for plan in found)
    assert [plan["model"]["quantized"] for plan in found] == [False, True]
    assert before["weights"] - after["weights"] == pytest.approx(8.1e9, rel=0.01)
    assert after["phases"] == before["phases"]
    assert before["loading"] - after["loading"] == before["weights"] - after["weights"]


def adapted(seed: int = 0) -> Any:
    """Two blocks in bfloat16 with int8 weights and a float32 LoRA, which run one after the other."""
    from peft import LoraConfig, inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = nn.Module()
        model.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2))
        model.to(torch.bfloat16).requires_grad_(False)
        quantize_blocks(model.blocks)
        config = LoraConfig(r=2, target_modules=r"blocks\.\d+\.(0|2)", init_lora_weights=False)
        inject_adapter_in_model(config, model, "policy")
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = p.data.float()
            p.requires_grad_(True)
    model.forward = lambda x: model.blocks[1](model.blocks[0](x))
    return model


def test_sharded_int8_weights_give_the_same_bits(tmp_path: Path) -> None:
    """In a group of one process: FSDP2 gathers, frees and gathers them again for the backward pass."""
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    plain = adapted()
    expected = plain(x)
    expected.float().square().sum().backward()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        for kind in ("full", "grads"):
            model = adapted()
            fsdp.shard_model(model, model.blocks, kind)
            fsdp.keep_gathered(model)
            found = model(x)
            found.float().square().sum().backward()
            pairs = zip(model.parameters(), plain.parameters(), strict=True)
            assert torch.equal(found, expected)
            assert all(torch.equal(fsdp.full_tensor(p.grad), q.grad) for p, q in pairs if q.grad is not None)
            assert hasattr(model.blocks[0][0].base_layer.weight, "full_tensor")
    finally:
        dist.destroy_process_group()
