"""Checks that a plug-in must pass before it may run; a method takes a few milliseconds.

Each check looks at one promise of `bench.api.Method`. `check_method`, which the harness calls, raises `BenchError` at
the first broken one; `broken` finds them all (`bench check`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import Gaussian, Method, Rewards
from bench.checks.batch import (
    GROUP,
    PROMPTS,
    TIE,
    Call,
    Probe,
    calls,
    close,
    finite,
    made_up_rewards,
    parts,
    require,
    same,
    shape,
    taken,
)
from bench.checks.violations import RANDOMNESS, Violation, global_state, raise_first, run_check
from bench.core.budget import RESERVED_FIELDS
from bench.flow import euler, sigma_schedule


# every hook ---------------------------------------------------------------------------------------------------
def _each(m: Method, p: Probe) -> Iterator[tuple[Call, tuple[Any, ...], Any]]:
    """Every hook that does not raise, with its inputs after the call and what it gave; the others' checks tell."""
    for call in calls(m, p):
        inputs = call.fresh()
        try:
            given = call.run(*inputs)
        except Exception:  # its own check says what it raised
            continue
        yield call, inputs, given


def _pure(m: Method, p: Probe) -> None:
    for call, inputs, _ in _each(m, p):
        require(same(inputs, call.inputs), f"{call.hook} changes its inputs in place")


def _deterministic(m: Method, p: Probe) -> None:
    for call, _, given in _each(m, p):
        again = call.run(*call.fresh())
        equal = len(parts(again)) == len(parts(given)) and same(again, given)
        require(
            equal,
            f"two calls of {call.hook} with the same inputs differ: the harness draws the noise, not the method",
        )


# one hook at a time -------------------------------------------------------------------------------------------
def _transition(m: Method, p: Probe) -> None:
    finite(p.step.mean, "mean")
    finite(p.step.std, "std")
    require((p.step.std >= 0).all(), f"std is negative: {p.step.std.min().item():.3g}")
    single = taken(m, p.x.float(), p.v.float(), p.sigma, p.sigma_next)
    require(single.mean.dtype == single.std.dtype == torch.float32, f"float32 in gives {single.mean.dtype} out")
    finite(single.mean, "mean in float32")
    finite(single.std, "std in float32")


def _affine(m: Method, p: Probe) -> None:
    other = taken(m, p.x, p.other_v, p.sigma, p.sigma_next)
    middle = taken(m, p.x, 0.25 * p.v + 0.75 * p.other_v, p.sigma, p.sigma_next)
    expected = 0.25 * p.step.mean + 0.75 * other.mean
    close(middle.mean, expected, "the mean is not affine in v, so that the equalizer's d mean / d v is not defined")
    close(other.std, p.step.std, "the std depends on v")


def _independent(m: Method, p: Probe) -> None:
    flipped = taken(m, p.x.flip(0), p.v.flip(0), p.sigma.flip(0), p.sigma_next.flip(0))
    close(flipped.mean.flip(0), p.step.mean, "a sample's mean changes with its place in the batch")
    close(flipped.std.flip(0), p.step.std, "a sample's std changes with its place in the batch")
    alone = taken(m, p.x[1:2], p.v[1:2], p.sigma[1:2], p.sigma_next[1:2])
    close(alone.mean, p.step.mean[1:2], "a sample's mean depends on the other samples of the batch")


def _no_noise(m: Method, p: Probe) -> None:
    ode = euler(p.x, p.v, p.sigma, p.sigma_next)
    quiet = p.step.std == 0
    close(p.step.mean[quiet], ode[quiet], "a step with std 0 is not the Euler step of the ODE")
    if any(field.name == "eta" for field in dataclasses.fields(m)):
        step = taken(dataclasses.replace(m, eta=0.0), p.x, p.v, p.sigma, p.sigma_next)  # type: ignore[call-arg]
        require((step.std == 0).all(), f"eta 0 leaves noise of std {step.std.max().item():.3g}")
        close(step.mean, ode, "with eta 0 the mean is not the Euler step of the ODE")


def _log_prob(m: Method, p: Probe) -> None:
    step, x_next, _, _ = p.noisy()
    if len(x_next) == 0:  # eta 0: nothing to train
        return
    mean = step.mean.clone().requires_grad_(True)
    x_next = x_next.detach().requires_grad_(True)
    logp = m.log_prob(Gaussian(mean, step.std), x_next)
    shape(logp, (len(x_next),), "log_prob")
    finite(logp, "log_prob")
    if logp.requires_grad:
        _, grad_x = torch.autograd.grad(logp.sum(), [mean, x_next], allow_unused=True)
        require(grad_x is None or not grad_x.any(), "a gradient of log_prob flows into x_next, which must be detached")


def _gradient(m: Method, p: Probe) -> None:
    v = p.v.clone().requires_grad_(True)
    step, x_next, _, _ = p._replace(step=taken(m, p.x, v, p.sigma, p.sigma_next)).noisy()
    if len(x_next) == 0:
        return
    logp = m.log_prob(step, x_next.detach())
    require(logp.requires_grad, "no gradient of log_prob reaches v")
    (grad,) = torch.autograd.grad(logp.sum(), v, allow_unused=True)
    require(grad is not None, "no gradient of log_prob reaches v")
    grad = grad[p.step.std > 0]
    finite(grad, "the gradient of log_prob to v")
    require((grad.flatten(1).abs().amax(1) > 0).all(), "no gradient of log_prob reaches v at one of the noisy steps")


def _step_weights(m: Method, p: Probe) -> None:
    weights = m.step_weights(p.sigmas.clone())
    shape(weights, (len(p.x),), "step_weights")
    finite(weights, "step_weights")
    require((weights >= 0).all(), f"step_weights has a negative entry: {weights.min().item():.3g}")


def _steps(m: Method, sigmas: Tensor) -> None:
    steps = len(sigmas) - 1
    mask = m.stochastic(sigmas.clone(), 0, torch.Generator().manual_seed(0))
    shape(mask, (steps,), "stochastic")
    require(mask.dtype == torch.bool, f"stochastic gives {mask.dtype}, expected bool")
    if steps > 1:
        index = m.train_steps(sigmas.clone(), 1, torch.Generator().manual_seed(0))
        require(
            index.shape[-1] == 1 and not index.is_floating_point(), "train_steps does not give the n indices asked for"
        )
        require(((index >= 0) & (index < steps)).all(), f"train_steps gives an index outside 0 to {steps - 1}")


def _credit(m: Method, _: Tensor) -> None:
    adv = m.advantages(made_up_rewards())
    require(
        adv.ndim == 3 and adv.shape[1:] == (PROMPTS, GROUP),
        f"advantages has shape {list(adv.shape)}, expected [k, p, g]",
    )
    finite(adv, "advantages")
    chosen = m.select(adv.clone())
    shape(chosen, (PROMPTS, GROUP), "select")
    require(chosen.dtype == torch.bool, f"select gives {chosen.dtype}, expected bool")
    tied = torch.full((PROMPTS, GROUP), TIE)
    adv = m.advantages(Rewards({"a": tied, "b": tied}, {"a": 0.5, "b": 1.0}))
    finite(adv, "the advantage of a group with equal rewards")


def _surrogate(m: Method, _: Tensor) -> None:
    adv = torch.tensor([1.0, -1.0, 0.5])
    logp = torch.tensor([-1.0, 0.3, 2.0])
    new = logp.clone().requires_grad_(True)
    loss = m.surrogate(new, logp, adv)
    shape(loss, (3,), "surrogate")
    finite(loss, "surrogate")
    require(loss.requires_grad, "no gradient of surrogate reaches logp_new")
    (grad,) = torch.autograd.grad(loss.sum(), new)
    require((grad * adv < 0).all(), "descending the surrogate does not raise the log-probability of a good sample")


def _divergence(m: Method, p: Probe) -> None:
    step, _, sigma, sigma_next = p.noisy()
    if len(sigma) == 0:  # eta 0: no density to compare
        return
    ref = Gaussian(step.mean + 0.1, step.std)
    value = m.divergence(step, ref, sigma, sigma_next)
    shape(value, (len(sigma),), "divergence")
    finite(value, "divergence")
    require((value >= 0).all(), "divergence is negative")
    close(m.divergence(step, step, sigma, sigma_next), torch.zeros_like(value), "divergence of equal steps is not 0")


def _dataclass(m: Method) -> None:
    made = vars(type(m)).get("__dataclass_params__")
    require(
        made is not None and made.frozen,
        "the class has no decorator of its own: write @dataclass(frozen=True, kw_only=True) above it, "
        "or its fields are no parameters and its attributes can change",
    )


def _paper(m: Method) -> None:
    paper = getattr(m, "paper", None)
    require(
        isinstance(paper, str) and bool(paper.strip()),
        "the class variable 'paper' is missing: add paper: ClassVar[str] = 'arXiv:...', or say why there is none",
    )


def _no_budget_field(m: Method) -> None:
    names = {field.name for field in dataclasses.fields(m)}
    names |= {name for part in type(m).__mro__ for name, value in vars(part).items() if not callable(value)}
    taken_names = sorted(RESERVED_FIELDS & names)
    require(
        not taken_names, f"the class sets {', '.join(taken_names)}, which belongs to the suite's budget: remove it"
    )


DECLARATIONS: dict[str, Callable[[Method], None]] = {
    "frozen dataclass": _dataclass,
    "paper": _paper,
    "no budget field": _no_budget_field,
}
#: Checks of the hooks around `transition`, which need its step on the made-up batch.
STEP_CHECKS: dict[str, Callable[[Method, Probe], None]] = {
    "purity": _pure,
    "determinism": _deterministic,
    "transition": _transition,
    "affine in v": _affine,
    "independent samples": _independent,
    "no-noise limit": _no_noise,
    "log_prob": _log_prob,
    "gradient reaches v": _gradient,
    "step_weights": _step_weights,
    "divergence": _divergence,
}
#: Checks that need the schedule alone, so they are made even where `transition` raises.
OTHER_CHECKS: dict[str, Callable[[Method, Tensor], None]] = {
    "steps": _steps,
    "credit": _credit,
    "surrogate": _surrogate,
}
CHECKS = (*DECLARATIONS, *STEP_CHECKS, *OTHER_CHECKS, RANDOMNESS)


def _probe(m: Method, sigmas: Tensor) -> Probe:
    """The made-up batch; without a step of the right shapes no check of a hook says anything."""
    found = Probe.of(m, sigmas)
    shape(found.step.mean, tuple(found.x.shape), "mean")
    shape(found.step.std, (len(found.x),), "std")
    return found


def method_violations(m: Method, sigmas: Float[Tensor, "t1"]) -> Iterator[Violation]:
    """Every broken promise of `m` on the schedule `sigmas`, in the order of `CHECKS`, at most one per check."""
    state = global_state()
    for name, look in DECLARATIONS.items():
        yield from run_check(name, look, m)
    probe: list[Probe] = []
    yield from run_check("transition", lambda: probe.append(_probe(m, sigmas.clone())))
    if probe:
        for name, check in STEP_CHECKS.items():
            yield from run_check(name, check, m, probe[0])
    for name, other in OTHER_CHECKS.items():
        yield from run_check(name, other, m, sigmas)
    if global_state() != state:
        yield Violation(
            RANDOMNESS, "a hook moves torch's or numpy's global random state: use the generator it is given."
        )


def check_method(m: Method, sigmas: Float[Tensor, "t1"] | None = None) -> tuple[str, ...]:
    """The names of the checks that `m` passed, all of them; the first that fails raises `BenchError`.

    `sigmas` is the schedule that the method will meet, from 1 to 0; 10 steps with shift 5 if not given.
    """
    raise_first("method", m, method_violations(m, sigma_schedule(10, 5.0) if sigmas is None else sigmas))
    return CHECKS
