"""`attention`: what is refused, and that the blocks' attention and its gradient take the chosen implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.api import BenchError
from bench.backbones.attention import BACKENDS, attend
from bench.backbones.hunyuanvideo15 import HunyuanVideo15
from bench.backbones.wan21 import Wan21
from bench.suite.prepared import check_machine, make_backbone, prepare
from tests.helpers.nano_suite import CHECKPOINT, tiny
from tests.helpers.small_backbones import NAMES, compare, make, outcome, released_folder, shake, velocity

__all__ = ["released_folder"]


def rounded(x: Tensor) -> Tensor:
    """What an implementation in 8 bits makes of queries and keys; the gradient passes as it is."""
    scale = x.detach().abs().amax(-1, keepdim=True) / 127
    return x + ((x / scale).round() * scale - x).detach()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for the implementations of a GPU: PyTorch's attention on rounded inputs, some without a gradient."""
    from diffusers.models import attention_dispatch

    native, names = attention_dispatch.dispatch_attention_fn, []

    def dispatch(query: Tensor, key: Tensor, value: Tensor, *, backend: Any = None, **more: Any) -> Tensor:
        if backend is None:
            out: Tensor = native(query, key, value, **more)
            return out
        names.append(backend.value)
        if backend.value == "native":
            return native(query, key, value)
        with torch.set_grad_enabled(torch.is_grad_enabled() and backend.value not in ("sage", "_flash_3")):
            return native(rounded(query), rounded(key), value)

    monkeypatch.setattr(attention_dispatch, "dispatch_attention_fn", dispatch)
    return names


@pytest.mark.parametrize("choice", ["flash", "flash3", "sage"])
@pytest.mark.parametrize("name", NAMES)
def test_the_blocks_take_it_in_both_passes_and_the_gradient_is_whole(
    name: str, choice: str, calls: list[str], released_folder: Path
) -> None:
    plain = outcome(make(name, released_folder))
    assert not calls
    backbone = make(name, released_folder)
    backbone._use_attention(BACKENDS[choice])
    found = outcome(backbone)
    assert not torch.equal(found[0], plain[0])
    layers = len(getattr(backbone.transformer, backbone.blocks)) * (2 if name == "wan21" else 1)
    passes = 2 if name == "wan21" else 3  # two branches of guidance; two prompts of two lengths make three passes
    borrowed = ["native"] * layers * passes if choice in ("flash3", "sage") else []
    assert sorted(calls) == sorted([BACKENDS[choice]] * layers * passes + borrowed)
    compare("attention, an 8-bit stand-in", found, plain, (0.02, 0.05))
    with torch.no_grad():
        assert torch.equal(velocity(backbone), found[0])


def test_wan_takes_pytorchs_attention_by_name_without_a_change(calls: list[str]) -> None:
    plain, backbone = make("wan21", Path()), make("wan21", Path())
    backbone._use_attention("native")
    shake(plain), shake(backbone)
    assert torch.equal(velocity(backbone), velocity(plain))
    assert set(calls) == {"native"}


def test_a_borrowed_gradient_is_that_of_pytorchs_attention(calls: list[str]) -> None:
    inputs = [torch.randn(1, 5, 2, 8, requires_grad=True) for _ in range(3)]
    grad = torch.randn(1, 5, 2, 8)
    expected = torch.autograd.grad(attend(inputs[0], inputs[1], inputs[2], None), inputs, grad)
    found = torch.autograd.grad(attend(inputs[0], inputs[1], inputs[2], "sage"), inputs, grad)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_the_machine_lacks_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"dtype": "bfloat16", "device": "cpu"}
    for choice in ("cudnn", "flash", "flash3", "sage"):
        with pytest.raises(BenchError, match=rf"attention is {choice}, and it needs a GPU, but the models would run"):
            HunyuanVideo15(CHECKPOINT, attention=choice, **params)
    train = ("backbone.train.attention=flash", "backbone.train.dtype=bfloat16", "backbone.train.device=cpu")
    with pytest.raises(BenchError, match="attention is flash, and it needs a GPU"):
        check_machine(prepare(tiny(*train)))
    monkeypatch.setattr("bench.suite.prepared.encode_first", lambda *_: pytest.fail("text encoders are loaded"))
    with pytest.raises(BenchError, match="attention is flash, and it needs a GPU"):
        make_backbone(prepare(tiny(*train)), prompts=["a prompt"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for choice, package in {"flash": "flash-attn", "flash3": "flash_attn_interface", "sage": "sageattention"}.items():
        with pytest.raises(
            BenchError, match=f"attention is {choice}, and diffusers finds no usable package {package}"
        ):
            Wan21.check_machine({"attention": choice, "dtype": "bfloat16", "device": "cuda"})


def test_other_types_and_names_are_refused() -> None:
    with pytest.raises(BenchError, match="attention sage computes in bfloat16 only, and dtype is float32: set "):
        HunyuanVideo15(CHECKPOINT, attention="sage")
    with pytest.raises(BenchError, match="attention is 'xformers': choose one of native, cudnn, flash, flash3, sage"):
        HunyuanVideo15(CHECKPOINT, attention="xformers")
