"""What the shared parts tell the author of another model: wrong names of layers, and abilities that it lacks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.api import BenchError
from bench.backbones.base import PipelineBackbone
from bench.backbones.wan21 import Wan21
from bench.checks.report import check_report
from tests.helpers import wan

ATTENTION = Wan21.lora_targets["attention"]


class Plain(Wan21):
    """A model with neither context parallelism nor other implementations of attention."""

    _share_context = PipelineBackbone._share_context
    _use_attention = PipelineBackbone._use_attention


def make(cls: type[Wan21], **params: Any) -> Wan21:
    return cls(wan.FOLDER, **{"size": wan.SIZE, "device": "cpu", "text_rows": 48, **params})


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        (
            {"blocks": "layers"},
            r"^Named\.blocks is 'layers', which WanTransformer3DModel does not have: give the name of its list",
        ),
        (
            {"lora_targets": {"attention": ATTENTION}},
            r"^Named\.lora_targets has no pattern 'attention\+ff' that matches a layer in a block: give a regular ",
        ),
        (
            {"lora_targets": {**Wan21.lora_targets, "attention": r"self_attn\.q"}},
            r"^Named\.lora_targets has no pattern 'attention' that matches a layer in a block: give a regular ",
        ),
        (
            {"lora_targets": {"attention": ATTENTION, "attention+ff": f"({ATTENTION}|feed_forward)"}},
            r"^Named\.lora_targets: 'attention\+ff' matches (\d+) layers and 'attention' \1: add the feed-forward",
        ),
    ],
)
def test_names_that_do_not_fit_the_transformer_are_refused(attributes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence):
        make(type("Named", (Wan21,), attributes))


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"parallel": {"context": 2}}, "parallel is {'context': 2}, but Plain has no `_share_context`: write it, or "),
        (
            {"attention": "cudnn", "dtype": "bfloat16"},
            "attention is 'cudnn', but Plain has no `_use_attention`: write it, or leave out backbone.train.attent",
        ),
    ],
)
def test_options_without_a_method_are_refused_before_anything_is_loaded(
    params: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plain, "_load_transformer", lambda self: pytest.fail("it was loaded"))
    with pytest.raises(BenchError) as refused:
        make(Plain, **params)
    assert sentence in str(refused.value)
    with pytest.raises(BenchError) as refused:
        Plain.check_suite(wan.FOLDER, 1.0, {"size": wan.SIZE, **params})
    assert sentence in str(refused.value)


@torch.no_grad()
def test_a_model_without_them_works_without_them() -> None:
    plain, own = make(Plain), wan.make(text_rows=48)
    x, sigma = wan.latents(1)
    cond = plain.encode(["a red circle"])
    assert torch.equal(plain.velocity(x, sigma, cond, 1.0), own.velocity(x, sigma, own.encode(["a red circle"]), 1.0))


def test_a_check_names_the_argument_that_a_class_cannot_be_made_without() -> None:
    with pytest.raises(BenchError, match=r"Wan21 cannot be made without checkpoint: add --params checkpoint=VALUE\.$"):
        check_report("bench.backbones.wan21:Wan21")
    with pytest.raises(BenchError, match="has no parameter 'chekpoint': did you mean 'checkpoint'"):
        check_report("bench.backbones.wan21:Wan21", params={"chekpoint": "x"})
