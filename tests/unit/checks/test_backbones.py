"""The checks of a backbone: HunyuanVideo-1.5 passes all of them, and each planted fault is found."""

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
    """The toy with guidance against an empty prompt, pixels in [0, 1], and anchors in its state: it passes."""

    latent_shape = (2, 2, 2, 2)
    EMPTY = 0.5

    def velocity(
        self, x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float, uncond_grad: bool = True
    ) -> Tensor:
        empty = Conditioning([torch.full((1, 1), self.EMPTY) for _ in cond.text])
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


class Unnamed(Sound):
    """No key of the state is the policy's."""

    def state_dict(self) -> dict[str, Tensor]:
        return {key.replace("policy:", "lora:"): value for key, value in super().state_dict().items()}


class Rounded(Sound):
    """The state has the policy in another precision, from which `load_state_dict` gives the same numbers."""

    def state_dict(self) -> dict[str, Tensor]:
        return {key: value.double() for key, value in super().state_dict().items()}


class Crossed(Sound):
    """A second stream, each entry of which is that of the whole batch."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        image = torch.tensor([float(sum(map(len, prompts)))])
        return Conditioning(super().encode(prompts).text, {"image": [image for _ in prompts]})


class Half(Sound):
    def velocity(self, *inputs: Any) -> Tensor:
        return super().velocity(*inputs).half()


class Mixed(Sound):
    """Subtracts the mean over the batch from its latents."""

    def velocity(self, x: Tensor, *inputs: Any) -> Tensor:
        return super().velocity(x - x.mean(0, keepdim=True), *inputs)


class Changing(Sound):
    def velocity(self, x: Tensor, *inputs: Any) -> Tensor:
        return super().velocity(x.add_(1), *inputs)


class Noisy(Sound):
    def velocity(self, x: Tensor, *inputs: Any) -> Tensor:
        return super().velocity(x, *inputs) + 1e-4 * torch.randn(x.shape)


class Timeless(Sound):
    def velocity(self, x: Tensor, sigma: Tensor, *inputs: Any) -> Tensor:
        return super().velocity(x, torch.ones_like(sigma), *inputs)


class Scaled(Sound):
    """Guidance multiplies the velocity."""

    def velocity(self, x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float, uncond_grad: bool = True) -> Any:
        return super().velocity(x, sigma, cond, guidance) * guidance**2


class Detached(Sound):
    def velocity(self, *inputs: Any) -> Tensor:
        return super().velocity(*inputs).detach().requires_grad_(True)


class Adding(Sound):
    """`reset` does nothing."""

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
    """After an anchor's pass the policy has no gradient, as when an adapter is switched."""

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
    """A prompt's states depend on the number of prompts in the call."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        cond = super().encode(prompts)
        return Conditioning([text * len(prompts) for text in cond.text])


class Nameless(Sound):
    def fingerprint(self) -> dict[str, str]:
        return {}


class Flat(Sound):
    latent_shape = (2, 2, 2)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("faulty", "check", "message"),
    [
        (Half, "velocity", "velocity is torch.float16"),
        (Mixed, "independent samples", "the velocity of sample 0 alone and in a batch: they differ by"),
        (Changing, "repeatable", "two calls with the same inputs give different velocities"),
        (Noisy, "repeatable", "two calls with the same inputs give different velocities"),
        (Noisy, "no global randomness", "changes torch's or numpy's global random state"),
        (Timeless, "inputs count", "the noise level changes no velocity"),
        (Scaled, "guidance", "guided velocities off the line through 1"),
        (Detached, "gradients", "only 0 of 2 trained tensors get a gradient"),
        (Adding, "reset", "reset with the same generator gives another policy"),
        (Stale, "anchors", "a refreshed anchor and the policy that it was made from"),
        (Left, "anchors", "as_anchor does not restore the policy"),
        (Trap, "anchor in between", "leaves no gradient"),
        (Leaky, "anchor in between", "changes the policy's gradient"),
        (Forgetful, "state", "load_state_dict does not restore the policy of state_dict"),
        (Bright, "decode", "decoded pixels leave [0, 1]"),
        (Padded, "prompts", "depend on the other prompts of the call"),
        (Crossed, "prompts", "depend on the other prompts of the call"),
        (Unnamed, "state", "no key of state_dict starts with 'policy:'"),
        (Rounded, "state", "are not those of parameters() in every bit"),
        (Nameless, "fingerprint", "fingerprint is empty"),
        (Flat, "declaration", "expected (c, f, h, w)"),
    ],
)
def test_each_broken_promise_is_found(faulty: Any, check: str, message: str) -> None:
    messages = {violation.check: violation.message for violation in backbone_violations(faulty())}
    assert check in messages, messages
    assert message in messages[check]
    with pytest.raises(BenchError, match="fails the check"):
        check_backbone(faulty())


def test_the_command_reports_passed_and_failed_checks(capsys: pytest.CaptureFixture[str]) -> None:
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
