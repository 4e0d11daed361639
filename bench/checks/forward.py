"""The promises of `bench.api.ForwardMethod`, one check for each; all of them take a few milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.algorithm.forward import ANCHORS, checked_decay, keeps_old, noise_levels
from bench.algorithm.sampling import RolloutConfig
from bench.api import ForwardMethod, ForwardPoint, Rewards
from bench.checks.batch import HookCall, equal_bits, synthetic_rewards, tensors
from bench.checks.violations import require, require_finite, require_shape
from bench.core.budget import Budget
from bench.flow import add_noise

SAMPLES = 6
"""Samples of the synthetic point."""
UPDATES = 100
"""Updates whose `old_decay` is checked."""
SHIFT = 3.0
"""Constant that is added to all rewards, which may change no advantage."""
SHIFT_TOLERANCE = 1e-3
"""Largest change of an advantage by the shift: the std of rewards in float32 loses a few digits to the constant."""
DECLARED = "declared references"
"""Name of the check that the others need."""
FIELDS = {"old": "v_old", "base": "v_ref"}
"""Reference to the field of `ForwardPoint` that has its velocity."""
QUIET = 1e-6
"""Largest gradient where nothing pulls."""


def synthetic_point(method: ForwardMethod, names: Collection[str] | None = None, same: bool = False) -> ForwardPoint:
    """`SAMPLES` noised latents in float64 with these references, by default those of the method; equal on every call.

    `same`: all velocities are that of the policy.
    """
    declared = method.references if names is None else names
    rng = torch.Generator().manual_seed(0)
    x0, noise, v, old, base = torch.randn(5, SAMPLES, 2, 1, 2, 2, dtype=torch.float64, generator=rng)
    sigma = torch.linspace(0.1, 1.0, SAMPLES, dtype=torch.float64)
    references = {name: v if same else each for name, each in (("old", old), ("base", base))}
    v_old, v_ref = (references[name].clone() if name in declared else None for name in FIELDS)
    return ForwardPoint(v.clone(), v_old, v_ref, x0, noise, add_noise(x0, noise, sigma), sigma)


def _only(point: ForwardPoint, rows: slice) -> ForwardPoint:
    """These samples of a point."""
    parts: list[Any] = [None if part is None else part[rows] for part in point]
    return ForwardPoint(*parts)


def synthetic_advantages() -> Tensor:
    """One advantage per sample of the synthetic point."""
    return torch.linspace(-2.0, 2.0, SAMPLES, dtype=torch.float64)


def forward_calls(method: ForwardMethod) -> list[HookCall]:
    """Every hook of the method on synthetic inputs."""
    return [
        HookCall("advantages", method.advantages, (synthetic_rewards(),)),
        HookCall("select", method.select, (torch.linspace(-1, 1, 8).reshape(1, 2, 4),)),
        HookCall("noise_levels", method.noise_levels, ((SAMPLES, 3), torch.Generator())),
        HookCall("loss", method.loss, (synthetic_point(method), synthetic_advantages())),
        HookCall("old_decay", lambda update: torch.tensor(method.old_decay(update)), (7,)),
    ]


def _declared(method: ForwardMethod) -> None:
    require(
        not isinstance(method.references, str) and all(len(name) > 1 for name in method.references),
        f"references is {method.references!r}: write a set of names, such as frozenset({{'old'}})",
    )
    unknown = sorted(set(method.references) - set(ANCHORS))
    require(not unknown, f"references has {unknown}, known are {', '.join(ANCHORS)}")
    known = method.rollout_policy in ("policy", "old")
    require(known, f"rollout_policy is {method.rollout_policy!r}, expected 'policy' or 'old'")
    missing = [f"{name!r} (point.{field})" for name, field in FIELDS.items() if name not in method.references]
    require(
        _computes(method, method.references) or not _computes(method, ANCHORS),
        f"loss needs a velocity that references does not ask for: add {' or '.join(missing)}",
    )


def _computes(method: ForwardMethod, references: Collection[str]) -> bool:
    """Whether the loss raises nothing at a point with these references; the check of the loss tells what it raises."""
    try:
        method.loss(synthetic_point(method, references), synthetic_advantages())
    except Exception:
        return False
    return True


def _pure(method: ForwardMethod) -> None:
    for call in forward_calls(method):
        inputs = call.copied_inputs()
        call.function(*inputs)
        require(equal_bits(inputs, call.inputs), f"{call.hook} changes its inputs in place")


def _deterministic(method: ForwardMethod) -> None:
    for call in forward_calls(method):
        results = [call.function(*call.copied_inputs()) for _ in range(2)]
        equal = len(tensors(results[0])) == len(tensors(results[1])) and equal_bits(*results)
        require(equal, f"two calls of {call.hook} with the same inputs differ: the harness draws the noise")


def _levels(method: ForwardMethod) -> None:
    budget = Budget(updates=1, prompts=2, group_size=4, steps=10, train_steps=5, shift=5.0, guidance=1.0, lr=1.0)
    noise_levels(method, RolloutConfig(budget, "predicted_x0", "distinct", 0), 0)  # for its errors


def _gradient(method: ForwardMethod, point: ForwardPoint, adv: Tensor) -> Tensor:
    """The gradient of the summed loss to v."""
    v = point.v.clone().requires_grad_(True)
    loss = method.loss(point._replace(v=v), adv.clone())
    require_shape(loss, (len(adv),), "loss")
    require_finite(loss, "loss")
    require(loss.requires_grad, "no gradient of loss reaches v")
    (grad,) = torch.autograd.grad(loss.sum(), v)
    require_finite(grad, "the gradient of loss to v")
    return grad


def _loss(method: ForwardMethod) -> None:
    point, adv, one = synthetic_point(method), synthetic_advantages(), slice(SAMPLES - 1, SAMPLES)
    grad = _gradient(method, point, adv)
    moved = grad.flatten(1).abs().amax(1) > 0
    require(moved[adv > 0].all(), "no gradient of loss reaches v for one of the samples that are better than others")
    gap = (_gradient(method, _only(point, one), adv[one]) - grad[one]).abs().max().item()
    require(gap <= QUIET, "a sample's loss depends on the other samples of the batch")


def _no_reward(method: ForwardMethod) -> None:
    grad = _gradient(method, synthetic_point(method, same=True), torch.zeros(SAMPLES, dtype=torch.float64))
    largest = grad.abs().max().item()
    require(
        largest <= QUIET,
        f"with advantage 0 and equal velocities of all policies the loss still pulls at v (gradient {largest:.3g})",
    )


def _good_samples(method: ForwardMethod) -> None:
    """What the advantage adds to the gradient, where all policies have one velocity."""
    point, adv = synthetic_point(method, same=True), synthetic_advantages()
    grad = _gradient(method, point, adv) - _gradient(method, point, torch.zeros_like(adv))
    nearer = (grad * (point.v - (point.noise - point.x0))).flatten(1).sum(1) * adv
    require(
        (nearer >= -QUIET).all() and (nearer[adv > 0] > 0).any(),
        "descending loss does not bring the velocity nearer to that of a good sample, noise - x0, or brings it nearer "
        "to that of a bad one",
    )


def _shifted(method: ForwardMethod) -> None:
    rewards = synthetic_rewards()
    shifted = Rewards({name: part + SHIFT for name, part in rewards.items()}, rewards.weights, rewards.rule)
    gap = (method.advantages(shifted) - method.advantages(rewards)).abs().max().item()
    require(gap <= SHIFT_TOLERANCE, f"adding a constant to all rewards changes an advantage by {gap:.3g}")


def _decay(method: ForwardMethod) -> None:
    decays = [checked_decay(method, update) for update in range(UPDATES)]  # for its error
    require(
        keeps_old(method) or not any(decays),
        f"old_decay is {max(decays):g}, but there is no old policy: add 'old' to references, or set rollout_policy to "
        "'old'",
    )


CHECKS: Mapping[str, Callable[[ForwardMethod], None]] = {
    DECLARED: _declared,
    "purity": _pure,
    "determinism": _deterministic,
    "noise_levels": _levels,
    "loss": _loss,
    "no reward, no pull": _no_reward,
    "good samples": _good_samples,
    "shifted rewards": _shifted,
    "old_decay": _decay,
}
"""The checks of a forward method beside those of every method."""
HOOK_OF_CHECK: Mapping[str, str] = {
    "noise_levels": "noise_levels",
    "loss": "loss",
    "no reward, no pull": "loss",
    "good samples": "loss",
    "shifted rewards": "advantages",
    "old_decay": "old_decay",
}
"""Hook that breaks the promise of a check; for the other checks it is the class as a whole."""
