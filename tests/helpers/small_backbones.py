"""Both backbones of released models at a small size, and the errors of one of their options against the default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.algorithm import ratio as algorithm_ratio
from bench.audit.ratio import make_case
from bench.backbones.hunyuanvideo15 import HunyuanVideo15
from bench.backbones.wan21 import Wan21
from bench.core.rng import stream
from bench.suite.prepared import make_backbone, prepare
from tests.helpers import full_size, parity, wan
from tests.helpers.nano_suite import tiny

NAMES = ("hunyuanvideo15", "wan21")
DTYPES = ("float32", "bfloat16")
PROMPTS = [full_size.SHORT, full_size.LONG]
GUIDANCE = 3.0


@pytest.fixture(scope="session")
def released_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small HunyuanVideo-1.5 of the session; Wan's is among the fixtures."""
    return full_size.released(tmp_path_factory.mktemp("released") / "480p_t2v")


def make(name: str, folder: Path, **params: Any) -> HunyuanVideo15 | Wan21:
    """A small backbone with a fresh policy. `folder`: that of HunyuanVideo-1.5."""
    if name == "wan21":
        return wan.make(**{"text_rows": 48, **params})
    backbone = HunyuanVideo15(folder, **{"device": "cpu", **params})
    backbone.reset(stream(0, "initial_policy"))
    return backbone


def shake(backbone: HunyuanVideo15 | Wan21) -> None:
    """A policy away from the base, the same for all backbones of one size."""
    with torch.no_grad():
        for i, p in enumerate(backbone.parameters()):
            p.add_(0.05 * torch.randn(p.shape, generator=stream(1, "shake", i)))


def points(backbone: HunyuanVideo15 | Wan21) -> tuple[Tensor, Tensor]:
    return wan.latents(len(PROMPTS)) if isinstance(backbone, Wan21) else full_size.latents(len(PROMPTS))


def velocity(backbone: HunyuanVideo15 | Wan21, guidance: float = GUIDANCE, uncond_grad: bool = True) -> Tensor:
    x, sigma = points(backbone)
    return backbone.velocity(x, sigma, backbone.encode(PROMPTS), guidance, uncond_grad)


def outcome(backbone: HunyuanVideo15 | Wan21, uncond_grad: bool = True) -> tuple[Tensor, Tensor]:
    """The guided velocity of a shaken policy, and its gradient with respect to the trained weights as one vector."""
    shake(backbone)
    v = velocity(backbone, uncond_grad=uncond_grad)
    grads = torch.autograd.grad(v.square().mean(), backbone.parameters(), allow_unused=True)
    grads = [torch.zeros_like(p) if g is None else g for p, g in zip(backbone.parameters(), grads, strict=True)]
    return v.detach(), torch.cat([g.flatten() for g in grads])


def compare(
    option: str, found: tuple[Tensor, Tensor], plain: tuple[Tensor, Tensor], bounds: tuple[float, float]
) -> None:
    """Differences of velocity and gradient, in root mean squares, within these bounds; noted for the parity table."""
    for what, a, b, bound in zip(("velocity", "gradient"), found, plain, bounds, strict=True):
        assert a.shape == b.shape
        parity.within(f"option {option}, {what}", (a - b).norm() / b.norm(), 0.0, bound)


def ratio_error(*overrides: str) -> float:
    """Largest |ratio - 1| before the first update, on the smallest nano suite with guidance, bfloat16 unless changed.

    The rollout is that of training, and so are the passes of the second scoring: with gradients, in micro-batches.
    """
    train = ("backbone.train.size=[5, 8, 8]", "backbone.train.dtype=bfloat16", "budget.guidance=2.0")
    prepared = prepare(tiny(*train, *overrides))
    backbone = make_backbone(prepared, prompts=prepared.prompts.train)
    backbone.reset(stream(0, "initial_policy"))
    return float(algorithm_ratio.ratio_error(make_case(prepared, prepared.rows[0], backbone, 0).log_ratio()).max())
