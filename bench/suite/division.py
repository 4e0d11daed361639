"""The division of a row, computed from its method: closed if it differs only in what the rules leave free.

A closed row has the advantages of the suite's rule, trains on all samples, has a loss whose gradient at ratio 1 is
minus the advantage, and the suite's learning rate.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import Method, Rewards
from bench.core.rng import normal, stream
from bench.suite.schema import RowSpec

PROBE_SHAPE = (4, 16)
"""[p, g] of the rewards that a method with options marked `OPEN` is tried on."""
SCALE_TOLERANCE = 1e-6
"""Largest difference between the gradient of the loss and minus the advantage; float32 rounds 4 by 2e-7."""


def open_reasons(method: Method, row: RowSpec) -> list[str]:
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
    if (gradient := wrong_gradient(method)) is not None:
        reasons.append(gradient)
    if row.lr is not None:
        reasons.append(f"a learning rate of its own, {row.lr:g}")
    return reasons


def wrong_gradient(method: Method) -> str | None:
    """Where the gradient of the loss at ratio 1 differs most from minus the advantage; None if it is that everywhere.

    Tried for -4, 0, 4 and 30 numbers drawn between -4 and 4, at three log-probabilities, to `SCALE_TOLERANCE`.
    """
    drawn = 8 * torch.rand(30, generator=stream(0, "division", "advantages")) - 4
    values = torch.cat([torch.tensor([-4.0, 0.0, 4.0]), drawn])
    adv, logp = torch.meshgrid(values, torch.tensor([-1.5, -0.1, 0.8]), indexing="ij")
    adv, logp = adv.flatten(), logp.flatten()
    new = logp.clone().requires_grad_(True)
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(method.surrogate(new, logp, adv).sum(), new)
    gap = (grad + adv).abs().nan_to_num(torch.inf)
    worst = int(gap.argmax())
    if gap[worst] <= SCALE_TOLERANCE:
        return None
    return f"the gradient of the loss is {grad[worst] + 0:.7g} at ratio 1 with the advantage {adv[worst]:.3g}"


def _replaces(method: Method, hook: str, probe: Rewards | Float[Tensor, "k p g"]) -> bool:
    """Whether `advantages` or `select` counts as the method's own.

    An override does not count if its class declares options marked `bench.api.OPEN` and the override gives the
    default's result in every bit; an option that is set is a reason by itself.
    """
    own, default = getattr(method, hook), getattr(Method, hook)
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


def _set_options(method: Method) -> list[str]:
    """Options marked `OPEN` that are not at their default; a default that a subclass changes counts as set."""
    return list(dict.fromkeys(name for name, value in _open_fields(type(method)) if getattr(method, name) != value))


def _probe() -> Rewards:
    """Rewards of two metrics from a stream of their own; those of the last group are all equal."""
    a, b = normal(0, [("division", "a"), ("division", "b")], PROBE_SHAPE)
    a[-1] = b[-1] = 0.5
    return Rewards({"a": a, "b": b}, {"a": 0.5, "b": 1.0})
