"""The promises of a backbone, one check for each, on synthetic latents.

`check_backbone` raises at the first broken promise, `backbone_violations` finds all of them. The checks change the
policy; in the end it is the fresh policy of seed 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bench.api import POLICY_PREFIX, Backbone, Conditioning
from bench.checks.violations import (
    CheckSequence,
    Violation,
    raise_first,
    require,
    require_fingerprint,
    require_finite,
    require_shape,
)
from bench.core.rng import normal, stream
from bench.core.world import tensors_digest

PROMPTS = ("a red circle moving left quickly", "a cat", "two boats pass under a bridge at dusk, slowly")
"""Of different lengths, so that samples of one batch cannot share a padded text by accident."""
GUIDANCE = 3.0
ROUNDING = 1e-5
"""Relative error between two ways to one number: sums in another order (2e-2 for weights below float32)."""
NOISE = 0.02
"""Std of the noise that makes the policy differ from the base."""


class VelocityBatch(NamedTuple):
    """A synthetic batch, one sample per prompt, and the fresh policy's velocity on it."""

    x: Tensor
    """[3, c, f, h, w], unit noise."""
    sigma: Tensor
    """[3], all different."""
    cond: Conditioning
    v: Tensor
    """[3, c, f, h, w], with guidance 1."""

    def velocity(self, backbone: Backbone, rows: Sequence[int] = (0, 1, 2), guidance: float = 1.0) -> Tensor:
        """Velocity of the current policy for some of the samples, in this order."""
        index = list(rows)
        return backbone.velocity(self.x[index], self.sigma[index], self.cond.take(index), guidance)


def _reset_policy(backbone: Backbone) -> None:
    backbone.reset(stream(0, "initial_policy"))


def _perturb(backbone: Backbone, name: str) -> None:
    """Add noise to the policy; `name` names the stream of random numbers."""
    with torch.no_grad():
        for i, p in enumerate(backbone.parameters()):
            p.add_(NOISE * torch.randn(p.shape, generator=stream(1, name, i)).to(p))


def _first_velocity(backbone: Backbone) -> VelocityBatch:
    _reset_policy(backbone)
    x = normal(0, [("check_backbone", i) for i in range(len(PROMPTS))], backbone.latent_shape)
    sigma, cond = torch.tensor([0.9, 0.5, 0.2]), backbone.encode(PROMPTS)
    with torch.no_grad():
        v = backbone.velocity(x, sigma, cond, 1.0)
    return VelocityBatch(x, sigma, cond, v)


def _require_close(value: Tensor, expected: Tensor, bound: float, what: str) -> None:
    gap = float((value - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    require(gap <= bound, f"{what}: they differ by {gap:.3g} of the largest value")


def _rounding(backbone: Backbone) -> float:
    """Relative error of sums in another order, for the precision that the backbone's fingerprint names."""
    coarse = any(word in json.dumps(dict(backbone.fingerprint())) for word in ("bfloat16", "float16"))
    return 2e-2 if coarse else ROUNDING


def _declaration(backbone: Backbone) -> None:
    shape = backbone.latent_shape
    require(len(shape) == 4 and all(n >= 1 for n in shape), f"latent_shape is {shape}, expected (c, f, h, w)")
    require(backbone.fps > 0, f"fps is {backbone.fps}, expected frames per second above 0")


def _fingerprint(backbone: Backbone) -> None:
    require_fingerprint(backbone.fingerprint)


def _prompts(backbone: Backbone) -> None:
    together, alone = backbone.encode(PROMPTS), [backbone.encode([prompt]) for prompt in PROMPTS]
    streams = {"text": together.text, **together.more}
    for name, states in streams.items():
        require(len(states) == len(PROMPTS), f"encode does not give one entry per prompt (stream {name})")
    for i, single in enumerate(alone):
        own = {"text": single.text, **single.more}
        require(own.keys() == streams.keys(), "the streams of encode depend on the prompts")
        for left, right in ((own[name][0], states[i]) for name, states in streams.items()):
            same = left.shape == right.shape and torch.allclose(left.float(), right.float(), atol=1e-4)
            require(same, f"the states of prompt {PROMPTS[i]!r} depend on the other prompts of the call")


def _velocity(backbone: Backbone, batch: VelocityBatch) -> None:
    require_shape(batch.v, tuple(batch.x.shape), "velocity")
    require(batch.v.dtype == torch.float32, f"velocity is {batch.v.dtype}: guidance and kernels need float32")
    require_finite(batch.v, "velocity")


def _repeatable(backbone: Backbone, batch: VelocityBatch) -> None:
    x = batch.x.clone()
    with torch.no_grad():
        require(
            torch.equal(batch.velocity(backbone), batch.v), "two calls with the same inputs give different velocities"
        )
    require(torch.equal(batch.x, x), "velocity changes its latents in place")


def _independent(backbone: Backbone, batch: VelocityBatch) -> None:
    bound = _rounding(backbone)
    with torch.no_grad():
        for i in range(len(PROMPTS)):
            _require_close(
                batch.velocity(backbone, [i]), batch.v[[i]], bound, f"the velocity of sample {i} alone and in a batch"
            )
        flipped = batch.velocity(backbone, [2, 1, 0]).flip(0)
    _require_close(flipped, batch.v, bound, "the velocities of a batch in another order")


def _inputs_count(backbone: Backbone, batch: VelocityBatch) -> None:
    with torch.no_grad():
        other = backbone.velocity(batch.x, batch.sigma * 0.5, batch.cond, 1.0)
        require(not torch.equal(other, batch.v), "the noise level changes no velocity")
        swapped = backbone.velocity(batch.x, batch.sigma, batch.cond.take([1, 2, 0]), 1.0)
        require(not torch.equal(swapped, batch.v), "the prompt changes no velocity")


def _guidance(backbone: Backbone, batch: VelocityBatch) -> None:
    """v(g) = uncond + g (cond - uncond) is a line in g, through the conditional velocity at 1."""
    with torch.no_grad():
        low, high = batch.velocity(backbone, guidance=GUIDANCE), batch.velocity(backbone, guidance=2 * GUIDANCE - 1)
    require(not torch.equal(low, batch.v), f"guidance {GUIDANCE} changes nothing")
    _require_close(
        high - batch.v, 2 * (low - batch.v), 10 * _rounding(backbone), "guided velocities off the line through 1"
    )


def _gradients(backbone: Backbone, batch: VelocityBatch) -> None:
    parameters = list(backbone.parameters())
    require(bool(parameters), "parameters is empty: there is nothing to train")
    require(len({id(p) for p in parameters}) == len(parameters), "parameters gives one weight twice")
    _perturb(backbone, "gradients")
    batch.velocity(backbone, guidance=GUIDANCE).square().sum().backward()
    count = sum(p.grad is not None and bool(p.grad.any()) for p in parameters)
    for p in parameters:
        p.grad = None
    require(2 * count > len(parameters), f"only {count} of {len(parameters)} trained tensors get a gradient")


def _reset(backbone: Backbone, batch: VelocityBatch) -> None:
    _perturb(backbone, "reset")
    with torch.no_grad():
        require(not torch.equal(batch.velocity(backbone), batch.v), "other weights in parameters() change no velocity")
        _reset_policy(backbone)
        require(torch.equal(batch.velocity(backbone), batch.v), "reset with the same generator gives another policy")


def _anchors(backbone: Backbone, batch: VelocityBatch) -> None:
    _perturb(backbone, "anchors")
    with torch.no_grad():
        moved = batch.velocity(backbone)
        backbone.refresh_anchor("check")
        _perturb(backbone, "again")
        current = batch.velocity(backbone)
        with backbone.as_anchor("check"):
            stored = batch.velocity(backbone)
        with backbone.as_anchor("fixed"):
            base = batch.velocity(backbone)
        require(torch.equal(batch.velocity(backbone), current), "as_anchor does not restore the policy")
    bound = _rounding(backbone)  # another memory layout may change the last bits
    _require_close(stored, moved, bound, "a refreshed anchor and the policy that it was made from")
    _require_close(base, batch.v, bound, "the anchor 'fixed' and the fresh policy, which is the base")


def _anchor_in_between(backbone: Backbone, batch: VelocityBatch) -> None:
    """An anchor's pass between forward and backward leaves the gradient; an adapter that is switched may lose it."""
    _perturb(backbone, "between")
    parameters, gradients = list(backbone.parameters()), []
    for with_anchor in (False, True):
        for p in parameters:
            p.grad = None
        v = batch.velocity(backbone)
        if with_anchor:
            with backbone.as_anchor("check"):
                require(not batch.velocity(backbone).requires_grad, "an anchor's velocity carries a gradient")
        v.square().sum().backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in parameters])
        for p in parameters:
            p.grad = None
    require(
        any(grad is not None and bool(grad.any()) for grad in gradients[1]),
        "an anchor's forward pass leaves no gradient",
    )
    same = all(
        (a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in zip(*gradients, strict=True)
    )
    require(same, "an anchor's forward pass between forward and backward changes the policy's gradient")


def _state(backbone: Backbone, batch: VelocityBatch) -> None:
    _perturb(backbone, "state")
    with torch.no_grad():
        before = batch.velocity(backbone)
        state = {key: value.clone() for key, value in backbone.state_dict().items()}
        policy = {key: value for key, value in state.items() if key.startswith(POLICY_PREFIX)}
        require(bool(policy), f"no key of state_dict starts with {POLICY_PREFIX!r}, so no run could store its policy")
        require(
            tensors_digest(policy.values()) == tensors_digest(backbone.parameters()),
            f"the weights of state_dict below {POLICY_PREFIX!r} are not those of parameters() in every bit",
        )
        _perturb(backbone, "later")
        require(
            not torch.equal(batch.velocity(backbone), before), "state_dict or parameters() are not what velocity uses"
        )
        backbone.load_state_dict(state)
        require(
            torch.equal(batch.velocity(backbone), before), "load_state_dict does not restore the policy of state_dict"
        )
        with backbone.as_anchor("check"):
            require(
                not torch.equal(batch.velocity(backbone), before), "load_state_dict restores an anchor as the policy"
            )
        _perturb(backbone, "policy only")
        backbone.load_state_dict(policy)
        require(
            torch.equal(batch.velocity(backbone), before), "load_state_dict does not load a policy without anchors"
        )
    _reset_policy(backbone)


def _decode(backbone: Backbone, batch: VelocityBatch) -> None:
    videos = backbone.decode(batch.x)
    b, _, _, _, _ = batch.x.shape
    require(
        videos.ndim == 5 and videos.shape[:2] == (b, 3), f"decode gives {list(videos.shape)}, expected [b, 3, F, H, W]"
    )
    require_finite(videos, "decoded pixels")
    require(bool((videos >= 0).all()) and bool((videos <= 1).all()), "decoded pixels leave [0, 1]")
    require(not videos.requires_grad, "decoded pixels carry a gradient")
    alone = torch.cat([backbone.decode(batch.x[[i]]) for i in range(b)])
    require(float((alone - videos).abs().max()) <= 1e-3, "a video decoded alone differs from the one of a batch")


_SEQUENCE: CheckSequence[Backbone, VelocityBatch] = CheckSequence(
    before={
        "declaration": _declaration,
        "fingerprint": _fingerprint,
        "prompts": _prompts,
    },
    call_name="first velocity",
    call=_first_velocity,
    after={
        "velocity": _velocity,
        "repeatable": _repeatable,
        "independent samples": _independent,
        "inputs count": _inputs_count,
        "guidance": _guidance,
        "gradients": _gradients,
        "reset": _reset,
        "anchors": _anchors,
        "anchor in between": _anchor_in_between,
        "state": _state,
        "decode": _decode,
    },
    essential=1,
    randomness="a call changes torch's or numpy's global random state: use the generator it is given.",
    restore=_reset_policy,
)
CHECKS = _SEQUENCE.names
HOOK_OF_CHECK: Mapping[str, str | None] = {
    "declaration": None,
    "fingerprint": "fingerprint",
    "prompts": "encode",
    "gradients": "parameters",
    "reset": "reset",
    "anchors": "as_anchor",
    "anchor in between": "as_anchor",
    "state": "load_state_dict",
    "decode": "decode",
}
"""Method of the class that breaks the promise of a check, if it is not `velocity`; None: the class itself."""


def backbone_violations(backbone: Backbone) -> Iterator[Violation]:
    """Every broken promise of a backbone, in the order of `CHECKS`, at most one per check."""
    return _SEQUENCE.violations(backbone)


def check_backbone(backbone: Backbone) -> tuple[str, ...]:
    """The names of the checks, all passed by `backbone`; the first that fails raises `BenchError`."""
    raise_first("backbone", backbone, backbone_violations(backbone))
    return CHECKS
