"""The policies of `bench.backbones.policy` on a transformer of another model: Wan's class, tiny and random."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.backbones.holder import Policy
from bench.backbones.policy import FullPolicy, LoRAPolicy
from bench.core.rng import stream

PATTERN = r"(attn1|attn2)\.(to_q|to_k|to_v|to_out\.0)|ffn\.net\.(0\.proj|2)"


def transformer() -> Any:
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WanTransformer3DModel(
            **{"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 2, "out_channels": 2},
            **{"text_dim": 8, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 16},
        )
    return model.eval().requires_grad_(False)


def make(kind: str) -> tuple[Any, Policy]:
    model = transformer()
    if kind == "full":
        return model, FullPolicy(model, torch.device("cpu"), dict(model.named_parameters()))
    lora = LoRAPolicy(model, torch.device("cpu"), rank=2, alpha=4, blocks="blocks", pattern=f"({PATTERN})")
    return model, lora


def velocity(model: Any) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 2, 1, 4, 4, generator=rng), torch.randn(1, 3, 8, generator=rng)
    out: Tensor = model(x, torch.tensor([500.0]), text, return_dict=False)[0]
    return out


def shake(policy: Policy, name: str) -> None:
    with torch.no_grad():
        for i, p in enumerate(policy.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=stream(1, name, i)))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_policy_anchors_and_state_are_those_of_any_transformer(kind: str) -> None:
    base = velocity(transformer())
    model, policy = make(kind)
    policy.reset(stream(0, "initial_policy"))
    assert torch.equal(velocity(model), base)
    shake(policy, "first")
    moved = velocity(model).detach()
    policy.refresh_anchor("moving")
    shake(policy, "second")
    current = velocity(model)
    with policy.as_anchor("moving"):
        assert torch.equal(velocity(model), moved)
    with policy.as_anchor("fixed"):
        assert torch.equal(velocity(model), base)
    current.square().sum().backward()
    assert sum(p.grad is not None and bool(p.grad.any()) for p in policy.parameters()) > len(policy.parameters()) / 2
    other_model, other = make(kind)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(velocity(other_model), current)
    with other.as_anchor("moving"):
        assert torch.equal(velocity(other_model), moved)


def test_the_lora_is_on_the_layers_that_the_pattern_names_in_every_block() -> None:
    _, policy = make("lora")
    layers = {key.partition(":")[2].partition(".lora_")[0] for key in policy.state_dict()}
    assert len(layers) == 2 * (8 + 2)
    assert all(layer.startswith("blocks.") for layer in layers)
    assert policy.settings() == {"r": 2, "lora_alpha": 4, "pattern": f"({PATTERN})"}
