"""The promises of `bench.api.Method`, one check for each; all of them take a few milliseconds.

Those of `bench.api.ForwardMethod` are in `bench.checks.forward`, apart from the ones that both kinds share.

The harness calls `check_method` before a run, which raises `BenchError` at the first broken promise.
`method_violations` finds all of them, for `bench check`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from jaxtyping import Float
from torch import Tensor

from bench.api import AnyMethod, ForwardMethod, Method
from bench.checks import forward
from bench.checks.batch import SyntheticBatch
from bench.checks.method_checks import DECLARATIONS, SCHEDULE_CHECKS, STEP_CHECKS
from bench.checks.violations import (
    CHANGES,
    RANDOMNESS,
    GlobalState,
    Violation,
    raise_first,
    require_shape,
    run_check,
)
from bench.flow import sigma_schedule

CHECKS = (*DECLARATIONS, *STEP_CHECKS, *SCHEDULE_CHECKS, RANDOMNESS, CHANGES)
FORWARD_CHECKS = (*DECLARATIONS, *forward.CHECKS, "credit", RANDOMNESS, CHANGES)
"""The checks of a forward method."""
HOOK_OF_CHECK: Mapping[str, str] = {
    **{name: "transition" for name in ("transition", "affine in v", "independent samples", "no-noise limit")},
    **{name: "log_prob" for name in ("log_prob", "gradient reaches v")},
    **{name: name for name in ("step_weights", "policy_loss", "divergence", "surrogate")},
    "steps": "stochastic",
    "credit": "advantages",
    **forward.HOOK_OF_CHECK,
}
"""Hook that breaks the promise of a check; for the other checks it is the class as a whole."""


def _make_batch(method: Method, sigmas: Tensor) -> SyntheticBatch:
    """The synthetic batch; without a step of the right shapes the checks of the hooks are not run."""
    batch = SyntheticBatch.make(method, sigmas)
    require_shape(batch.step.mean, tuple(batch.x.shape), "mean")
    require_shape(batch.step.std, (len(batch.x),), "std")
    return batch


def checks_of(method: AnyMethod) -> tuple[str, ...]:
    """The names of the checks of a method's kind, in order."""
    return FORWARD_CHECKS if isinstance(method, ForwardMethod) else CHECKS


def method_violations(method: AnyMethod, sigmas: Float[Tensor, "t1"]) -> Iterator[Violation]:
    """Every broken promise of `method` on the schedule `sigmas`, in the order of its checks, at most one per check."""
    state = GlobalState.take()
    for name, declaration_check in DECLARATIONS.items():
        yield from run_check(name, declaration_check, method)
    if isinstance(method, ForwardMethod):
        for name, forward_check in forward.CHECKS.items():
            violations = list(run_check(name, forward_check, method))
            yield from violations
            if violations and name == forward.DECLARED:
                break  # the others would fail for the same reason
        yield from run_check("credit", SCHEDULE_CHECKS["credit"], method, sigmas)
    else:
        yield from _step_violations(cast(Method, method), sigmas)
    yield from state.violations(
        "a hook changes torch's or numpy's global random state: use the generator it is given."
    )


def _step_violations(method: Method, sigmas: Float[Tensor, "t1"]) -> Iterator[Violation]:
    """Broken promises of a method with noisy steps beside those of every method."""
    batches: list[SyntheticBatch] = []
    yield from run_check("transition", lambda: batches.append(_make_batch(method, sigmas.clone())))
    if batches:
        for name, step_check in STEP_CHECKS.items():
            yield from run_check(name, step_check, method, batches[0])
    for name, schedule_check in SCHEDULE_CHECKS.items():
        yield from run_check(name, schedule_check, method, sigmas)


def check_method(method: AnyMethod, sigmas: Float[Tensor, "t1"] | None = None) -> tuple[str, ...]:
    """The names of the checks, all passed by `method`; the first that fails raises `BenchError`.

    `sigmas` is the schedule of the run, from 1 to 0; by default 10 steps with shift 5.
    """
    raise_first("method", method, method_violations(method, sigma_schedule(10, 5.0) if sigmas is None else sigmas))
    return checks_of(method)
