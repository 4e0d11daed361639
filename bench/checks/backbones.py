"""The promises of a backbone, each checked on made-up latents: `check_backbone` raises at the first broken one.

The policy is changed while it is checked, and is the fresh one of seed 0 in the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bench.api import Backbone, Conditioning
from bench.checks.batch import finite, require, shape
from bench.checks.violations import CheckSequence, Violation, raise_first
from bench.core.rng import normal, stream

PROMPTS = ("a red circle moving left quickly", "a cat", "two boats pass under a bridge at dusk, slowly")
"""Of different lengths, so that samples of one batch cannot share a padded text by accident."""
GUIDANCE = 3.0
ROUNDING = 1e-5
"""Two ways to one number: sums in another order, relative to the largest number (2e-2 below float32 weights)."""
MOVED = 0.02
"""Size of the noise that makes a policy differ from the base, before it is refreshed into an anchor."""


class CheckTarget(NamedTuple):
    """A made-up batch, one sample per prompt, and the fresh policy's velocity on it."""

    x: Tensor
    """[3, c, f, h, w], unit noise."""
    sigma: Tensor
    """[3], all different."""
    cond: Conditioning
    v: Tensor

    def of(self, backbone: Backbone, rows: Sequence[int] = (0, 1, 2), guidance: float = 1.0) -> Tensor:
        """Velocity of some of the samples, in this order."""
        index = list(rows)
        return backbone.velocity(self.x[index], self.sigma[index], self.cond.take(index), guidance)


def _fresh(backbone: Backbone) -> None:
    backbone.reset(stream(0, "initial_policy"))


def _move(backbone: Backbone, name: str) -> None:
    """A policy away from the base."""
    with torch.no_grad():
        for i, p in enumerate(backbone.parameters()):
            p.add_(MOVED * torch.randn(p.shape, generator=stream(1, name, i)).to(p))


def _call(backbone: Backbone) -> CheckTarget:
    _fresh(backbone)
    x = normal(0, [("check_backbone", i) for i in range(len(PROMPTS))], backbone.latent_shape)
    sigma, cond = torch.tensor([0.9, 0.5, 0.2]), backbone.encode(PROMPTS)
    with torch.no_grad():
        v = backbone.velocity(x, sigma, cond, 1.0)
    return CheckTarget(x, sigma, cond, v)


def _near(found: Tensor, want: Tensor, bound: float, what: str) -> None:
    gap = float((found - want).abs().max() / want.abs().max().clamp(min=1e-30))
    require(gap <= bound, f"{what}: they differ by {gap:.3g} of the largest value")


def _rounding(backbone: Backbone) -> float:
    """Sums in another order, as the backbone's fingerprint says how finely it computes."""
    coarse = any(word in json.dumps(dict(backbone.fingerprint())) for word in ("bfloat16", "float16"))
    return 2e-2 if coarse else ROUNDING


# before any velocity ------------------------------------------------------------------------------------------
def _declaration(backbone: Backbone) -> None:
    found = backbone.latent_shape
    require(len(found) == 4 and all(n >= 1 for n in found), f"latent_shape is {found}, expected (c, f, h, w)")
    require(backbone.fps > 0, f"fps is {backbone.fps}, expected frames per second above 0")


def _fingerprint(backbone: Backbone) -> None:
    found = dict(backbone.fingerprint())
    require(bool(found), "fingerprint is empty: nothing says which weights made a video")
    odd = [key for key, value in found.items() if not (isinstance(key, str) and isinstance(value, str))]
    require(not odd, f"fingerprint holds {odd[:1]}, which is no text")
    require(dict(backbone.fingerprint()) == found, "two calls of fingerprint differ")


def _prompts(backbone: Backbone) -> None:
    together, alone = backbone.encode(PROMPTS), [backbone.encode([prompt]) for prompt in PROMPTS]
    require(len(together.text) == len(together.glyph) == len(PROMPTS), "encode gives no entry for each prompt")
    for i, one in enumerate(alone):
        for here, there in ((one.text[0], together.text[i]), (one.glyph[0], together.glyph[i])):
            same = here.shape == there.shape and torch.allclose(here.float(), there.float(), atol=1e-4)
            require(same, f"the states of prompt {PROMPTS[i]!r} depend on the other prompts of the call")


# velocities ---------------------------------------------------------------------------------------------------
def _velocity(backbone: Backbone, asked: CheckTarget) -> None:
    shape(asked.v, tuple(asked.x.shape), "velocity")
    require(asked.v.dtype == torch.float32, f"velocity is {asked.v.dtype}: guidance and kernels need float32")
    finite(asked.v, "velocity")


def _repeatable(backbone: Backbone, asked: CheckTarget) -> None:
    kept = asked.x.clone()
    with torch.no_grad():
        require(torch.equal(asked.of(backbone), asked.v), "two calls with the same inputs give different velocities")
    require(torch.equal(asked.x, kept), "velocity changes its latents in place")


def _independent(backbone: Backbone, asked: CheckTarget) -> None:
    bound = _rounding(backbone)
    with torch.no_grad():
        for i in range(len(PROMPTS)):
            _near(asked.of(backbone, [i]), asked.v[[i]], bound, f"the velocity of sample {i} alone and in a batch")
        flipped = asked.of(backbone, [2, 1, 0]).flip(0)
    _near(flipped, asked.v, bound, "the velocities of a batch in another order")


def _inputs_count(backbone: Backbone, asked: CheckTarget) -> None:
    with torch.no_grad():
        other = backbone.velocity(asked.x, asked.sigma * 0.5, asked.cond, 1.0)
        require(not torch.equal(other, asked.v), "the noise level changes no velocity")
        swapped = backbone.velocity(asked.x, asked.sigma, asked.cond.take([1, 2, 0]), 1.0)
        require(not torch.equal(swapped, asked.v), "the prompt changes no velocity")


def _guidance(backbone: Backbone, asked: CheckTarget) -> None:
    """v(g) = uncond + g (cond - uncond) is a line in g, through the conditional velocity at 1."""
    with torch.no_grad():
        low, high = asked.of(backbone, guidance=GUIDANCE), asked.of(backbone, guidance=2 * GUIDANCE - 1)
    require(not torch.equal(low, asked.v), f"guidance {GUIDANCE} changes nothing")
    _near(high - asked.v, 2 * (low - asked.v), 10 * _rounding(backbone), "guided velocities off the line through 1")


# the policy and its anchors -----------------------------------------------------------------------------------
def _gradients(backbone: Backbone, asked: CheckTarget) -> None:
    parameters = list(backbone.parameters())
    require(bool(parameters), "parameters is empty: there is nothing to train")
    require(len({id(p) for p in parameters}) == len(parameters), "parameters names one weight twice")
    _move(backbone, "gradients")
    asked.of(backbone, guidance=GUIDANCE).square().sum().backward()
    reached = sum(p.grad is not None and bool(p.grad.any()) for p in parameters)
    for p in parameters:
        p.grad = None
    require(2 * reached > len(parameters), f"only {reached} of {len(parameters)} trained tensors get a gradient")


def _reset(backbone: Backbone, asked: CheckTarget) -> None:
    _move(backbone, "reset")
    with torch.no_grad():
        require(not torch.equal(asked.of(backbone), asked.v), "other weights in parameters() change no velocity")
        _fresh(backbone)
        require(torch.equal(asked.of(backbone), asked.v), "reset with the same generator gives another policy")


def _anchors(backbone: Backbone, asked: CheckTarget) -> None:
    _move(backbone, "anchors")
    with torch.no_grad():
        moved = asked.of(backbone)
        backbone.refresh_anchor("check")
        _move(backbone, "again")
        now = asked.of(backbone)
        with backbone.as_anchor("check"):
            stored = asked.of(backbone)
        with backbone.as_anchor("fixed"):
            base = asked.of(backbone)
        require(torch.equal(asked.of(backbone), now), "as_anchor does not give the policy back")
    bound = _rounding(backbone)  # a copy may lie in memory otherwise, which moves the last bits
    _near(stored, moved, bound, "a refreshed anchor and the policy that it was made from")
    _near(base, asked.v, bound, "the anchor 'fixed' and the fresh policy, which is the base")


def _anchor_in_between(backbone: Backbone, asked: CheckTarget) -> None:
    """The trap of adapters: an anchor's forward pass between forward and backward takes the policy's gradient away."""
    _move(backbone, "between")
    parameters, found = list(backbone.parameters()), []
    for between in (False, True):
        for p in parameters:
            p.grad = None
        v = asked.of(backbone)
        if between:
            with backbone.as_anchor("check"):
                require(not asked.of(backbone).requires_grad, "an anchor's velocity carries a gradient")
        v.square().sum().backward()
        found.append([None if p.grad is None else p.grad.clone() for p in parameters])
        for p in parameters:
            p.grad = None
    require(
        any(grad is not None and bool(grad.any()) for grad in found[1]), "an anchor's forward pass leaves no gradient"
    )
    same = all((a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in zip(*found, strict=True))
    require(same, "an anchor's forward pass between forward and backward changes the policy's gradient")


def _state(backbone: Backbone, asked: CheckTarget) -> None:
    _move(backbone, "state")
    with torch.no_grad():
        before = asked.of(backbone)
        kept = {key: value.clone() for key, value in backbone.state_dict().items()}
        _move(backbone, "later")
        require(not torch.equal(asked.of(backbone), before), "state_dict or parameters() are not what velocity uses")
        backbone.load_state_dict(kept)
        require(
            torch.equal(asked.of(backbone), before), "load_state_dict does not bring the policy of state_dict back"
        )
        with backbone.as_anchor("check"):
            require(not torch.equal(asked.of(backbone), before), "an anchor in state_dict comes back as the policy")
    _fresh(backbone)


def _decode(backbone: Backbone, asked: CheckTarget) -> None:
    videos = backbone.decode(asked.x)
    b, _, _, _, _ = asked.x.shape
    require(
        videos.ndim == 5 and videos.shape[:2] == (b, 3), f"decode gives {list(videos.shape)}, expected [b, 3, F, H, W]"
    )
    finite(videos, "decoded pixels")
    require(bool((videos >= 0).all()) and bool((videos <= 1).all()), "decoded pixels leave [0, 1]")
    require(not videos.requires_grad, "decoded pixels carry a gradient")
    alone = torch.cat([backbone.decode(asked.x[[i]]) for i in range(b)])
    require(float((alone - videos).abs().max()) <= 1e-3, "a video decoded alone differs from the one of a batch")


BEFORE: dict[str, Callable[[Backbone], None]] = {
    "declaration": _declaration,
    "fingerprint": _fingerprint,
    "prompts": _prompts,
}
AFTER: dict[str, Callable[[Backbone, CheckTarget], None]] = {
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
}
SEQUENCE: CheckSequence[Backbone, CheckTarget] = CheckSequence(
    before=BEFORE,
    call_name="first velocity",
    call=_call,
    after=AFTER,
    essential=1,
    randomness="a call moves torch's or numpy's global random state: use the generator given.",
    restore=_fresh,
)
CHECKS = SEQUENCE.names
#: Where the promise of a check is kept, if not in `velocity`.
HOOKS = {
    **{"declaration": None, "fingerprint": "fingerprint", "prompts": "encode", "gradients": "parameters"},
    **{"reset": "reset", "anchors": "as_anchor", "anchor in between": "as_anchor", "state": "load_state_dict"},
    **{"decode": "decode"},
}


def backbone_violations(backbone: Backbone) -> Iterator[Violation]:
    """Every broken promise of a backbone, in the order of `CHECKS`, at most one per check."""
    return SEQUENCE.violations(backbone)


def check_backbone(backbone: Backbone) -> tuple[str, ...]:
    """The names of the checks that `backbone` passed, all of them; the first that fails raises `BenchError`."""
    raise_first("backbone", backbone, backbone_violations(backbone))
    return CHECKS
