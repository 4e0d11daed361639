"""The promises of a backbone: the real one keeps them all, and each broken one is found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.api import BenchError, Conditioning
from bench.backbones.hunyuanvideo15.backbone import HunyuanVideo15
from bench.checks import backbones
from bench.checks.backbones import CHECKS, backbone_violations, check_backbone
from bench.cli import main
from tests.helpers.nano_suite import CHECKPOINT
from tests.helpers.toy import ToyBackbone


class Sound(ToyBackbone):
    """The toy with all that is promised: guidance against an empty prompt, pixels, anchors in its state."""

    latent_shape = (2, 2, 2, 2)
    EMPTY = 0.5

    def velocity(
        self, x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float, uncond_grad: bool = True
    ) -> Tensor:
        empty = Conditioning([torch.full((1, 1), self.EMPTY) for _ in cond.text], cond.glyph)
        v, base = (super(Sound, self).velocity(x, sigma, each, 1.0) for each in (cond, empty))
        return base + guidance * (v - base)

    def decode(self, x0: Tensor) -> Tensor:
        return torch.cat([x0, x0[:, :1]], 1).sigmoid()

    def state_dict(self) -> dict[str, Tensor]:
        stored = {f"{name}:{i}": value for name, values in self.anchors.items() for i, value in enumerate(values)}
        return {**super().state_dict(), **stored}

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict({key: value for key, value in state.items() if key.startswith("policy:")})


@pytest.mark.parametrize(
    "params",
    [{}, {"lora_rank": 0}, {"dtype": "bfloat16"}, {"gradient_checkpointing": True, "text_encoders": "released"}],
    ids=["LoRA", "all weights", "bfloat16", "checkpointing"],
)
def test_hunyuanvideo15_keeps_its_promises(params: dict[str, Any]) -> None:
    assert check_backbone(HunyuanVideo15(CHECKPOINT, **params)) == CHECKS


def test_a_sound_backbone_passes() -> None:
    assert list(backbone_violations(Sound())) == []


class Half(Sound):
    def velocity(self, *given: Any) -> Tensor:
        return super().velocity(*given).half()


class Mixed(Sound):
    """Latents less the batch's mean."""

    def velocity(self, x: Tensor, *given: Any) -> Tensor:
        return super().velocity(x - x.mean(0, keepdim=True), *given)


class Changing(Sound):
    def velocity(self, x: Tensor, *given: Any) -> Tensor:
        return super().velocity(x.add_(1), *given)


class Noisy(Sound):
    def velocity(self, x: Tensor, *given: Any) -> Tensor:
        return super().velocity(x, *given) + 1e-4 * torch.randn(x.shape)


class Timeless(Sound):
    def velocity(self, x: Tensor, sigma: Tensor, *given: Any) -> Tensor:
        return super().velocity(x, torch.ones_like(sigma), *given)


class Scaled(Sound):
    """The toy's own mistake: guidance multiplies the velocity."""

    def velocity(self, x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float, uncond_grad: bool = True) -> Any:
        return super().velocity(x, sigma, cond, guidance) * guidance**2


class Detached(Sound):
    def velocity(self, *given: Any) -> Tensor:
        return super().velocity(*given).detach().requires_grad_(True)


class Adding(Sound):
    """A fresh policy is the old one."""

    def reset(self, rng: torch.Generator) -> None:
        pass


class Stale(Sound):
    def refresh_anchor(self, name: str) -> None:
        self.anchors.setdefault(name, [p + 1 for p in self._copy()])


class Left(Sound):
    """The anchor stays the active policy."""

    @contextmanager
    def as_anchor(self, name: str) -> Iterator[None]:
        with super().as_anchor(name):
            yield
        self.active = self.anchors.get(name, self.base)


class Trap(Sound):
    """An anchor takes the policy's gradient away, as an adapter's switch does."""

    @contextmanager
    def as_anchor(self, name: str) -> Iterator[None]:
        with super().as_anchor(name):
            yield
        for p in self.parameters():
            p.register_hook(torch.zeros_like) if p.requires_grad else None


class Leaky(Sound):
    """An anchor's pass adds to the policy's gradient."""

    @contextmanager
    def as_anchor(self, name: str) -> Iterator[None]:
        with super().as_anchor(name):
            yield
        for p in self.parameters():
            p.grad = torch.ones_like(p)


class Forgetful(Sound):
    def load_state_dict(self, state: Any) -> None:
        pass


class Bright(Sound):
    def decode(self, x0: Tensor) -> Tensor:
        return 2 * super().decode(x0)


class Padded(Sound):
    """A prompt's states are cut to the shortest of the call, here: scaled by the number of prompts."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        found = super().encode(prompts)
        return Conditioning([text * len(prompts) for text in found.text], found.glyph)


class Nameless(Sound):
    def fingerprint(self) -> dict[str, str]:
        return {}


class Flat(Sound):
    latent_shape = (2, 2, 2)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("made", "check", "says"),
    [
        (Half, "velocity", "velocity is torch.float16"),
        (Mixed, "independent samples", "the velocity of sample 0 alone and in a batch: they differ by"),
        (Changing, "repeatable", "two calls with the same inputs give different velocities"),
        (Noisy, "repeatable", "two calls with the same inputs give different velocities"),
        (Noisy, "no global randomness", "moves torch's or numpy's global random state"),
        (Timeless, "inputs count", "the noise level changes no velocity"),
        (Scaled, "guidance", "guided velocities off the line through 1"),
        (Detached, "gradients", "only 0 of 2 trained tensors get a gradient"),
        (Adding, "reset", "reset with the same generator gives another policy"),
        (Stale, "anchors", "a refreshed anchor and the policy that it was made from"),
        (Left, "anchors", "as_anchor does not give the policy back"),
        (Trap, "anchor in between", "leaves no gradient"),
        (Leaky, "anchor in between", "changes the policy's gradient"),
        (Forgetful, "state", "load_state_dict does not bring the policy of state_dict back"),
        (Bright, "decode", "decoded pixels leave [0, 1]"),
        (Padded, "prompts", "depend on the other prompts of the call"),
        (Nameless, "fingerprint", "nothing says which weights made a video"),
        (Flat, "declaration", "expected (c, f, h, w)"),
    ],
)
def test_each_broken_promise_is_found(made: Any, check: str, says: str) -> None:
    found = {finding.check: finding.found for finding in backbone_violations(made())}
    assert check in found, found
    assert says in found[check]
    with pytest.raises(BenchError, match="fails the check"):
        check_backbone(made())


def test_the_command_says_what_passed_and_what_did_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "hunyuanvideo15", "--params", "lora_rank=4"]) == 0
    assert f"hunyuanvideo15: {len(CHECKS)} checks passed (declaration, fingerprint," in capsys.readouterr().out
    assert main(["check", "tests.unit.checks.test_backbones:Bright"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "test_backbones.py:" in lines[0]
    assert "decode: decoded pixels leave [0, 1]." in lines[0]
    assert lines[-1] == f"tests.unit.checks.test_backbones:Bright: 1 of {len(backbones.CHECKS)} checks failed"
    assert main(["check", "hunyuanvideo15", "--params", "checkpoint=nowhere"]) == 2
    assert main(["check", "hunyuanvideo15", "--write-golden"]) == 2
    assert "--write-golden is for evaluators" in capsys.readouterr().err
