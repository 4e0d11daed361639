"""Options for speed and smaller cards: how far each is from the default, its ratio, its fingerprint, its plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.api import BenchError
from bench.backbones.compilation import _with_gradient
from bench.backbones.hunyuanvideo15 import HunyuanVideo15
from bench.backbones.lora_products import RoundedLinear
from bench.backbones.options import NUMERIC
from bench.backbones.wan21 import Wan21
from bench.cli import main
from tests.helpers import wan
from tests.helpers.nano_suite import CHECKPOINT
from tests.helpers.small_backbones import NAMES, compare, make, outcome, ratio_error, released_folder, shake, velocity

__all__ = ["released_folder"]

LORA, JOINT = {"lora_products": "base_dtype"}, {"guidance_branches": "joint"}
COMPILED = {"execution": "compiled"}


# fingerprints -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({}, {}),
        ({"idle_models": "cpu"}, {}),
        (LORA, LORA),
        (JOINT, JOINT),
        ({"base_weights": "int8", **LORA}, {"base_weights": "int8", **LORA}),
    ],
)
def test_the_fingerprint_names_an_option_that_changes_numbers_where_it_is_set(
    params: dict[str, Any], named: dict[str, Any]
) -> None:
    settings = json.loads(HunyuanVideo15(CHECKPOINT, device="cpu", **params).fingerprint()["settings"])
    assert {key: value for key, value in settings.items() if key in (*NUMERIC, "idle_models")} == named


# lora_products ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_products_of_the_lora_in_the_base_s_type_differ_by_its_rounding(name: str, released_folder: Path) -> None:
    for dtype, bounds in {"float32": (0.0, 0.0), "bfloat16": (0.03, 0.03)}.items():
        plain, found = (outcome(make(name, released_folder, dtype=dtype, **more)) for more in ({}, LORA))
        compare(f"lora_products: base_dtype, {dtype}", found, plain, bounds)
        assert found[1].dtype == torch.float32


def test_every_adapter_has_rounded_products_and_weights_in_float32() -> None:
    backbone = make("wan21", Path(), dtype="bfloat16", **LORA)
    shake(backbone)
    backbone.refresh_anchor("moving")
    current = velocity(backbone).detach()
    with backbone.as_anchor("moving"):
        assert torch.equal(velocity(backbone), current)
    layers = [m for name, m in backbone.transformer.named_modules() if ".lora_" in name and isinstance(m, nn.Linear)]
    assert len(layers) == 2 * len(backbone.parameters())
    assert all(isinstance(layer, RoundedLinear) and layer.weight.dtype == torch.float32 for layer in layers)
    other = make("wan21", Path(), dtype="bfloat16", **LORA)
    other.load_state_dict(backbone.state_dict())
    assert torch.equal(velocity(other), current)


# guidance_branches --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("uncond_grad", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_both_branches_in_one_pass_differ_by_rounding(name: str, uncond_grad: bool, released_folder: Path) -> None:
    for dtype, bounds in {"float32": (5e-6, 1e-5), "bfloat16": (0.03, 0.03)}.items():
        plain, found = (
            outcome(make(name, released_folder, dtype=dtype, **more), uncond_grad=uncond_grad) for more in ({}, JOINT)
        )
        compare(f"guidance_branches: joint, {dtype}", found, plain, bounds)


@pytest.mark.parametrize(("name", "joint"), [("wan21", [4]), ("hunyuanvideo15", [2, 1, 1])])
def test_branches_share_a_pass_where_their_texts_have_equal_lengths(
    name: str, joint: list[int], released_folder: Path
) -> None:
    backbone = make(name, released_folder, **JOINT)
    sizes: list[int] = []
    forward = backbone.transformer.forward
    backbone.transformer.forward = lambda *args, **more: (
        sizes.append(len(more["hidden_states"])) or forward(*args, **more)
    )
    velocity(backbone)
    assert sorted(sizes) == sorted(joint)


# execution ----------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch hides it
@pytest.mark.parametrize("name", [pytest.param("hunyuanvideo15", marks=pytest.mark.long), "wan21"])
def test_compiled_blocks_differ_by_rounding(name: str, released_folder: Path) -> None:
    plain, compiled = (outcome(make(name, released_folder, **more)) for more in ({}, COMPILED))
    compare("execution: compiled, float32", compiled, plain, (5e-6, 1e-5))
    assert not torch.equal(compiled[1], plain[1]), "nothing was compiled"


def test_a_block_runs_the_code_of_training_without_gradients_too() -> None:
    """Two kinds of code would round differently, and the ratio before an update would not be 1."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    seen: list[tuple[bool, bool]] = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        seen.append((torch.is_grad_enabled(), x.requires_grad))
        return first(x)

    with torch.no_grad():
        out = _with_gradient(forward, torch.ones(1, 2))
        last = _with_gradient(forward, out)
    in_training = _with_gradient(forward, _with_gradient(forward, torch.ones(1, 2)))
    assert seen == [(True, False), (True, True)] * 2
    assert out.grad_fn is last.grad_fn is None
    assert in_training.grad_fn is not None
    first.requires_grad_(False)
    assert not _with_gradient(second.requires_grad_(False), torch.ones(1, 2)).requires_grad


def test_a_machine_without_a_compiler_refuses_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def find() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", find)
    with pytest.raises(BenchError, match=r"execution is compiled, and torch finds no C\+\+ compiler, such as g\+\+: "):
        make("wan21", Path(), **COMPILED)


def test_compiled_blocks_are_neither_sharded_nor_split(released_folder: Path) -> None:
    with pytest.raises(BenchError, match="execution compiled has no context parallelism: set "):
        make("wan21", Path(), parallel={"context": 2}, **COMPILED)
    with pytest.raises(BenchError, match="execution compiled does not work on a sharded model: leave out "):
        make("wan21", Path(), shard="full", **COMPILED)


# the ratio ----------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        *("lora_products=base_dtype", "guidance_branches=joint"),
        pytest.param("execution=compiled", marks=pytest.mark.long),  # two minutes of compiling
    ],
)
def test_the_ratio_is_exactly_one_before_the_first_update(option: str) -> None:
    assert ratio_error(f"backbone.train.{option}", "backbone.train.gradient_checkpointing=true") == 0.0


# idle_models --------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_an_idle_vae_comes_for_decoding_and_leaves_and_changes_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, idle = (wan.make(text_rows=48, **more) for more in ({}, {"idle_models": "cpu"}))
    assert idle._vae_home == torch.device("cpu")
    events: list[str] = []
    move, decode = idle.vae.to, idle.vae.decode
    monkeypatch.setattr(idle.vae, "to", lambda device: events.append(str(device)) or move("cpu"))
    monkeypatch.setattr(idle.vae, "decode", lambda *args, **more: events.append("decode") or decode(*args, **more))
    idle._vae_home = torch.device("meta")  # stands for another device than the one that computes
    x = wan.latents(2)[0]
    assert torch.equal(idle.decode(x), plain.decode(x))
    assert events == ["cpu", "decode", "meta"]


def plan(capsys: pytest.CaptureFixture[str], suite: str, *words: str) -> dict[str, Any]:
    assert main(["plan", suite, *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)[0]
    return found


def test_the_plan_counts_an_idle_vae_while_it_decodes_only(capsys: pytest.CaptureFixture[str]) -> None:
    suite, vae = "hunyuanvideo15_single_gpu", 4 * 1.261e9
    before, after = (plan(capsys, suite, *words) for words in ([], ["backbone.train.idle_models=cpu"]))
    assert before["memory_bytes"]["weights"] - after["memory_bytes"]["weights"] == pytest.approx(vae)
    phases = before["memory_bytes"]["phases"], after["memory_bytes"]["phases"]
    assert phases[1].pop("decoding") - phases[0].pop("decoding") == pytest.approx(vae)
    assert phases[0] == phases[1]
    assert after["host_bytes"]["models"] == pytest.approx(vae)


def test_one_card_of_24_gb_holds_the_small_suite(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("backbone.train.base_weights=int8", "backbone.train.idle_models=cpu")
    assert plan(capsys, "hunyuanvideo15_single_gpu", *words)["memory_bytes"]["peak"] < 24e9


def test_the_plan_counts_both_branches_of_a_joint_pass(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = (
        plan(capsys, "wan21_1p3b_24gb", "--gpu", "h100", *words)["memory_bytes"]
        for words in ([], ["backbone.train.guidance_branches=joint"])
    )
    assert after["workspace"] - 0.6e9 == pytest.approx(2 * (before["workspace"] - 0.6e9))
    assert before["activations"] < after["activations"] < 2 * before["activations"]


@pytest.mark.parametrize(
    ("suite", "tokens", "width", "copies"),
    [("hunyuanvideo15_single_gpu", 9_540 + 37, 2048, 21.6), ("wan21_1p3b_24gb", 9 * 15 * 26, 1536, 30.1)],
)
def test_the_plan_counts_no_float32_copies_with_products_in_the_type_of_the_base(
    suite: str, tokens: int, width: int, copies: float, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = (
        plan(capsys, suite, *words)["memory_bytes"] for words in ([], ["backbone.train.lora_products=base_dtype"])
    )
    assert before["activations"] - after["activations"] == pytest.approx(tokens * width * copies, rel=0.01)
    assert (before["weights"], before["workspace"]) == (after["weights"], after["workspace"])


def test_options_take_the_named_values_only() -> None:
    for option in (*NUMERIC, "idle_models"):
        with pytest.raises(BenchError, match=f"backbone.train.{option} is 'other': choose one of "):
            Wan21(wan.FOLDER, size=wan.SIZE, **{option: "other"})
