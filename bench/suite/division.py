"""The division of a row, computed from its method: closed if it differs only in what the rules leave free.

A closed row has the advantages of the suite's rule, trains on all samples, and has the suite's learning rate. With
noisy steps the gradient of its loss at ratio 1 is minus the advantage; of a forward method it is in proportion to the
advantage where all velocities are equal.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from bench.algorithm.rollout import needs_old_mean
from bench.api import AnyMethod, ForwardMethod, ForwardPoint, Gaussian, Method, Rewards, ScoredStep
from bench.core.rng import normal, stream
from bench.flow import add_noise, sigma_schedule
from bench.suite.schema import RowSpec

PROBE_SHAPE = (4, 16)
"""[p, g] of the rewards that a method with options marked `OPEN` is tried on."""
SCALE_TOLERANCE = 1e-6
"""Largest difference between the gradient of the loss and minus the advantage; float32 rounds 4 by 2e-7."""


def open_reasons(method: AnyMethod, row: RowSpec) -> list[str]:
    """Why the row stands in the open division, one phrase each; [] if it stands in the closed one.

    `method` is the row's method, which passes `bench check`.
    """
    name, rewards = type(method).__name__, _probe()
    reasons = []
    if _replaces(method, "advantages", rewards):
        reasons.append(f"{name} has advantages of its own")
    if _replaces(method, "select", rewards.rule.advantages(rewards)):
        reasons.append(f"{name} chooses the samples that train")
    reasons += [f"option {option} is {getattr(method, option)!r}" for option in _set_options(method)]
    if isinstance(method, Method) and (gradient := wrong_gradient(method)) is not None:
        reasons.append(gradient)
    if isinstance(method, ForwardMethod) and (gradient := _wrong_forward_gradient(method)) is not None:
        reasons.append(gradient)
    if row.lr is not None:
        reasons.append(f"a learning rate of its own, {row.lr:g}")
    return reasons


def wrong_gradient(method: Method) -> str | None:
    """Where the gradient of the loss at ratio 1 differs most from minus the advantage; None if it is that everywhere.

    Tried for -4, 0, 4 and 30 numbers drawn between -4 and 4, at three log-probabilities, to `SCALE_TOLERANCE`. The
    gradient is that to the log-probability; it is measured along the mean for a method with a `policy_loss`.
    """
    if needs_old_mean(method):
        return _wrong_policy_gradient(method)
    adv, logp = torch.meshgrid(_tried_advantages(), torch.tensor([-1.5, -0.1, 0.8]), indexing="ij")
    adv, logp = adv.flatten(), logp.flatten()
    new = logp.clone().requires_grad_(True)
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(method.surrogate(new, logp, adv).sum(), new)
    return _largest_gap(grad, adv)


def _tried_advantages() -> Float[Tensor, "33"]:
    drawn = 8 * torch.rand(30, generator=stream(0, "division", "advantages")) - 4
    return torch.cat([torch.tensor([-4.0, 0.0, 4.0]), drawn])


def _largest_gap(grad: Float[Tensor, "b"], adv: Float[Tensor, "b"]) -> str | None:
    """The largest difference between the gradient and minus the advantage in words; None if it is rounding."""
    gap = (grad + adv).abs().nan_to_num(torch.inf)
    worst = int(gap.argmax())
    if gap[worst] <= SCALE_TOLERANCE:
        return None
    return f"the gradient of the loss is {grad[worst] + 0:.7g} at ratio 1 with the advantage {adv[worst]:.3g}"


def _wrong_policy_gradient(method: Method) -> str | None:
    """The same for `policy_loss`, on three steps of the schedule of 10 steps with shift 5, in float64."""
    tried = _tried_advantages().double()
    adv, step = tried.repeat_interleave(3), torch.tensor([1, 5, 8]).repeat(len(tried))
    sigmas = sigma_schedule(10, 5.0).double()
    sigma, sigma_next = sigmas[step], sigmas[step + 1]
    x, v, noise = torch.randn(3, len(adv), 4, dtype=torch.float64, generator=stream(0, "division", "step"))
    mean, std = method.transition(x, v, sigma, sigma_next)
    if bool((std == 0).any()):
        return None  # eta 0: nothing trains
    x_next = mean + std[:, None] * noise
    new = mean.clone().requires_grad_(True)
    with torch.enable_grad():
        logp = method.log_prob(Gaussian(new, std), x_next)
        old = ScoredStep(mean, std, logp.detach())
        loss = method.policy_loss(ScoredStep(new, std, logp), old, x_next, adv, sigma, sigma_next)
        (uphill,) = torch.autograd.grad(logp.sum(), new, retain_graph=True)
        (grad,) = torch.autograd.grad(loss.sum(), new)
    along, length = (grad * uphill).sum(1), (uphill**2).sum(1)
    across = (grad - (along / length)[:, None] * uphill).abs().amax(1) / uphill.abs().amax(1)
    if across.max() > SCALE_TOLERANCE:
        return "the gradient of the loss does not follow that of the log-probability at ratio 1"
    return _largest_gap(along / length, adv)


def _wrong_forward_gradient(method: ForwardMethod) -> str | None:
    """Where the gradient of a forward method's loss is furthest from being in proportion to the advantage, or None.

    Tried for the advantages of `wrong_gradient` on three noised videos, with equal velocities of all policies.
    """
    adv = _tried_advantages().double()
    x0, noise, v = torch.randn(3, 3, 4, dtype=torch.float64, generator=stream(0, "division", "video"))
    sigma = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    x0, noise, v, x = (part.repeat(len(adv), 1) for part in (x0, noise, v, add_noise(x0, noise, sigma)))
    old, base = (v.clone() if name in method.references else None for name in ("old", "base"))
    new = v.clone().requires_grad_(True)
    point = ForwardPoint(new, old, base, x0, noise, x, sigma.repeat(len(adv)))
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(method.loss(point, adv.repeat_interleave(3)).sum(), new)
    per_advantage = grad.reshape(len(adv), -1)
    unit = (adv[:, None] * per_advantage).sum(0) / (adv**2).sum()  # least squares
    gap = (per_advantage - adv[:, None] * unit).abs().amax(1) / unit.abs().max()
    worst = int(gap.nan_to_num(torch.inf).argmax())
    if gap[worst] <= SCALE_TOLERANCE:
        return None
    return f"the gradient of the loss is not in proportion to the advantage, by {gap[worst]:.3g} at {adv[worst]:.3g}"


def _replaces(method: AnyMethod, hook: str, probe: Rewards | Float[Tensor, "k p g"]) -> bool:
    """Whether `advantages` or `select` counts as the method's own.

    An override does not count if its class declares options marked `bench.api.OPEN` and the override gives the
    default's result in every bit; an option that is set is a reason by itself.
    """
    own, default = getattr(method, hook), getattr(AnyMethod, hook)
    function = getattr(own, "__func__", None)
    if function is default:
        return False
    owner = next((cls for cls in type(method).__mro__ if vars(cls).get(hook) is function), None)
    if owner is None or not any(name in inspect.get_annotations(owner) for name, _ in _open_fields(owner)):
        return True
    result, expected = own(probe), default(method, probe)
    return result.dtype != expected.dtype or not torch.equal(result, expected)


def _open_fields(cls: type) -> Iterator[tuple[str, object]]:
    """Name and default of each option marked `OPEN`, for the class and each class that it derives from."""
    for base in cls.__mro__:
        for field in vars(base).get("__dataclass_fields__", {}).values():
            if field.metadata.get("open"):
                yield field.name, field.default


def _set_options(method: AnyMethod) -> list[str]:
    """Options marked `OPEN` that are not at their default; a default that a subclass changes counts as set."""
    return list(dict.fromkeys(name for name, value in _open_fields(type(method)) if getattr(method, name) != value))


def _probe() -> Rewards:
    """Rewards of two metrics from a stream of their own; those of the last group are all equal."""
    a, b = normal(0, [("division", "a"), ("division", "b")], PROBE_SHAPE)
    a[-1] = b[-1] = 0.5
    return Rewards({"a": a, "b": b}, {"a": 0.5, "b": 1.0})
