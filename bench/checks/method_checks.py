"""One check for each promise of `bench.api.Method`; `bench.checks.methods` runs them."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.algorithm.rollout import needs_old_mean
from bench.api import AnyMethod, ForwardMethod, Gaussian, Method, ScoredStep
from bench.checks.batch import (
    GROUP,
    PROMPTS,
    HookCall,
    SyntheticBatch,
    equal_bits,
    hook_calls,
    synthetic_rewards,
    tensors,
    transition,
)
from bench.checks.violations import CheckError, require, require_finite, require_frozen, require_shape
from bench.core.budget import RESERVED_FIELDS
from bench.core.rewards import Rewards
from bench.flow import euler
from bench.suite.methods import with_eta

TIE = 0.1
"""The reward of a group whose rewards are all equal, which `advantages` must survive; float32 rounds this value."""
CLIP_RANGES = (-10.0, -2.0, 2.0, 10.0)
"""How far from the rollout's policy the surrogate is tried, in clip ranges of the log-probability."""
STDS = (-0.1, -0.01, 0.01, 0.1)
"""How far the mean is moved for `policy_loss`, in standard deviations of the step."""
SIMILAR = 0.85
"""From which ratio of `difflib` on a name is taken for a misspelt hook."""
TOLERANCE = 1e-5
"""Relative error between two ways to one number: a hundred roundings of a method that computes in float32."""


def require_close(left: Tensor, right: Tensor, message: str) -> None:
    """Both have one shape and differ by at most `TOLERANCE` times max(1, largest absolute value of `right`)."""
    require_shape(left, tuple(right.shape), message)
    if right.numel():
        gap, size = (left - right).abs().max().item(), max(1.0, right.abs().max().item())
        require(gap <= TOLERANCE * size, f"{message} (largest difference {gap:.3g})")


def _results(method: Method, batch: SyntheticBatch) -> Iterator[tuple[HookCall, tuple[Any, ...], Any]]:
    """Every hook that does not raise: the call, its inputs after the call, and its result."""
    for call in hook_calls(method, batch):
        inputs = call.copied_inputs()
        try:
            result = call.function(*inputs)
        except Exception:  # noqa: S112  (reported by the check of this hook)
            continue
        yield call, inputs, result


def _pure(method: Method, batch: SyntheticBatch) -> None:
    for call, inputs, _ in _results(method, batch):
        require(equal_bits(inputs, call.inputs), f"{call.hook} changes its inputs in place")


def _deterministic(method: Method, batch: SyntheticBatch) -> None:
    for call, _, result in _results(method, batch):
        again = call.function(*call.copied_inputs())
        equal = len(tensors(again)) == len(tensors(result)) and equal_bits(again, result)
        require(
            equal,
            f"two calls of {call.hook} with the same inputs differ: the harness draws the noise, not the method",
        )


def _transition(method: Method, batch: SyntheticBatch) -> None:
    require_finite(batch.step.mean, "mean")
    require_finite(batch.step.std, "std")
    require((batch.step.std >= 0).all(), f"std is negative: {batch.step.std.min().item():.3g}")
    single = transition(method, batch.x.float(), batch.v.float(), batch.sigma, batch.sigma_next)
    require(single.mean.dtype == single.std.dtype == torch.float32, f"float32 in gives {single.mean.dtype} out")
    require_finite(single.mean, "mean in float32")
    require_finite(single.std, "std in float32")


def _affine(method: Method, batch: SyntheticBatch) -> None:
    other = transition(method, batch.x, batch.other_v, batch.sigma, batch.sigma_next)
    middle = transition(method, batch.x, 0.25 * batch.v + 0.75 * batch.other_v, batch.sigma, batch.sigma_next)
    expected = 0.25 * batch.step.mean + 0.75 * other.mean
    require_close(middle.mean, expected, "the mean is not affine in v, so the equalizer's d mean / d v is not defined")
    require_close(other.std, batch.step.std, "the std depends on v")


def _independent(method: Method, batch: SyntheticBatch) -> None:
    flipped = transition(method, batch.x.flip(0), batch.v.flip(0), batch.sigma.flip(0), batch.sigma_next.flip(0))
    require_close(flipped.mean.flip(0), batch.step.mean, "a sample's mean changes with its position in the batch")
    require_close(flipped.std.flip(0), batch.step.std, "a sample's std changes with its position in the batch")
    alone = transition(method, batch.x[1:2], batch.v[1:2], batch.sigma[1:2], batch.sigma_next[1:2])
    require_close(alone.mean, batch.step.mean[1:2], "a sample's mean depends on the other samples of the batch")


def _no_noise(method: Method, batch: SyntheticBatch) -> None:
    ode = euler(batch.x, batch.v, batch.sigma, batch.sigma_next)
    quiet = batch.step.std == 0
    require_close(batch.step.mean[quiet], ode[quiet], "a step with std 0 is not the Euler step of the ODE")
    if any(field.name == "eta" for field in dataclasses.fields(method)):
        step = transition(with_eta(method, 0.0), batch.x, batch.v, batch.sigma, batch.sigma_next)
        require((step.std == 0).all(), f"eta 0 leaves noise of std {step.std.max().item():.3g}")
        require_close(step.mean, ode, "with eta 0 the mean is not the Euler step of the ODE")


def _log_prob(method: Method, batch: SyntheticBatch) -> None:
    step, x_next, _, _ = batch.noisy()
    if len(x_next) == 0:  # eta 0: nothing to train
        return
    mean = step.mean.clone().requires_grad_(True)
    x_next = x_next.detach().requires_grad_(True)
    logp = method.log_prob(Gaussian(mean, step.std), x_next)
    require_shape(logp, (len(x_next),), "log_prob")
    require_finite(logp, "log_prob")
    if logp.requires_grad:
        _, grad_x = torch.autograd.grad(logp.sum(), [mean, x_next], allow_unused=True)
        require(grad_x is None or not grad_x.any(), "a gradient of log_prob flows into x_next, which must be detached")


def _gradient(method: Method, batch: SyntheticBatch) -> None:
    v = batch.v.clone().requires_grad_(True)
    step, x_next, _, _ = batch._replace(step=transition(method, batch.x, v, batch.sigma, batch.sigma_next)).noisy()
    if len(x_next) == 0:
        return
    logp = method.log_prob(step, x_next.detach())
    require(logp.requires_grad, "no gradient of log_prob reaches v")
    (grad,) = torch.autograd.grad(logp.sum(), v, allow_unused=True)
    require(grad is not None, "no gradient of log_prob reaches v")
    grad = grad[batch.step.std > 0]
    require_finite(grad, "the gradient of log_prob to v")
    require((grad.flatten(1).abs().amax(1) > 0).all(), "no gradient of log_prob reaches v at one of the noisy steps")


def _step_weights(method: Method, batch: SyntheticBatch) -> None:
    weights = method.step_weights(batch.sigmas.clone())
    require_shape(weights, (len(batch.x),), "step_weights")
    require_finite(weights, "step_weights")
    require((weights >= 0).all(), f"step_weights has a negative entry: {weights.min().item():.3g}")


def _steps(method: Method, sigmas: Tensor) -> None:
    steps = len(sigmas) - 1
    mask = method.stochastic(sigmas.clone(), 0, torch.Generator().manual_seed(0))
    require_shape(mask, (steps,), "stochastic")
    require(mask.dtype == torch.bool, f"stochastic gives {mask.dtype}, expected bool")
    if steps > 1:
        index = method.train_steps(sigmas.clone(), 1, torch.Generator().manual_seed(0))
        require(index.shape[-1] == 1 and not index.is_floating_point(), "train_steps does not give n indices")
        require(((index >= 0) & (index < steps)).all(), f"train_steps gives an index outside 0 to {steps - 1}")


def _credit(method: AnyMethod, _: Tensor) -> None:
    adv = method.advantages(synthetic_rewards())
    require(
        adv.ndim == 3 and adv.shape[1:] == (PROMPTS, GROUP),
        f"advantages has shape {list(adv.shape)}, expected [k, p, g]",
    )
    require_finite(adv, "advantages")
    chosen = method.select(adv.clone())
    require_shape(chosen, (PROMPTS, GROUP), "select")
    require(chosen.dtype == torch.bool, f"select gives {chosen.dtype}, expected bool")
    tied = torch.full((PROMPTS, GROUP), TIE)
    adv = method.advantages(Rewards({"a": tied, "b": tied}, {"a": 0.5, "b": 1.0}))
    require_finite(adv, "the advantage of a group with equal rewards")


def _surrogate(method: Method, _: Tensor) -> None:
    """At ratio 1 also the sign of the gradient; the shape, and finite numbers, for moved policies too."""
    adv = torch.tensor([1.0, -1.0, 0.5])
    logp = torch.tensor([-1.0, 0.3, 2.0])
    new = logp.clone().requires_grad_(True)
    loss = method.surrogate(new, logp, adv)
    require_shape(loss, (3,), "surrogate")
    require_finite(loss, "surrogate")
    require(loss.requires_grad, "no gradient of surrogate reaches logp_new")
    (grad,) = torch.autograd.grad(loss.sum(), new)
    _require_credit(grad * adv, adv, "surrogate")
    for move in CLIP_RANGES:
        moved = (logp + move * method.clip_range).requires_grad_(True)
        what = f"surrogate of log-probabilities {move:+g} clip ranges off"
        _require_usable(method.surrogate(moved, logp, adv), moved, (3,), what)


def _require_credit(along: Tensor, adv: Tensor, what: str) -> None:
    """The gradient to the log-probability times the advantage: below 0 for good samples, at most 0 for bad ones."""
    require((along[adv > 0] < 0).all(), f"descending {what} does not raise the log-probability of a good sample")
    require((along <= 0).all(), f"descending {what} raises the log-probability of a bad sample")


def _require_usable(loss: Tensor, source: Tensor, shape: tuple[int, ...], what: str) -> None:
    """A loss of this shape that is finite and has a finite gradient at `source`, or none, as a clipped one."""
    require_shape(loss, shape, what)
    require_finite(loss, what)
    if loss.requires_grad:
        (grad,) = torch.autograd.grad(loss.sum(), source, allow_unused=True)
        if grad is not None:
            require_finite(grad, f"the gradient of {what}")


def _policy_loss(method: Method, batch: SyntheticBatch) -> None:
    """At ratio 1 also the sign of the gradient; the shape, and finite numbers, for moved policies too."""
    step, x_next, sigma, sigma_next = batch.noisy()
    if not needs_old_mean(method) or len(sigma) == 0:  # the surrogate alone, or eta 0: nothing to train
        return
    mean = step.mean.clone().requires_grad_(True)
    logp = method.log_prob(Gaussian(mean, step.std), x_next)
    old = ScoredStep(step.mean, step.std, logp.detach())
    adv = torch.where(torch.arange(len(sigma)) % 2 == 0, 1.0, -1.0).to(logp)
    loss = method.policy_loss(ScoredStep(mean, step.std, logp), old, x_next, adv, sigma, sigma_next)
    require_shape(loss, (len(sigma),), "policy_loss")
    require_finite(loss, "policy_loss")
    require(loss.requires_grad, "no gradient of policy_loss reaches the step's mean")
    (uphill,) = torch.autograd.grad(logp.sum(), mean, retain_graph=True)
    (grad,) = torch.autograd.grad(loss.sum(), mean)
    require_finite(grad, "the gradient of policy_loss")
    along = (grad * uphill).flatten(1).sum(1) * adv
    _require_credit(along, adv, "policy_loss")
    for move in STDS:
        mean = (step.mean + move * step.std.reshape(-1, 1, 1, 1, 1)).requires_grad_(True)
        new = ScoredStep(mean, step.std, method.log_prob(Gaussian(mean, step.std), x_next))
        loss = method.policy_loss(new, old, x_next, adv, sigma, sigma_next)
        _require_usable(loss, mean, (len(sigma),), f"policy_loss of means moved by {move:+} std")


def _divergence(method: Method, batch: SyntheticBatch) -> None:
    step, _, sigma, sigma_next = batch.noisy()
    if len(sigma) == 0:  # eta 0: no density to compare
        return
    ref = Gaussian(step.mean + 0.1, step.std)
    value = method.divergence(step, ref, sigma, sigma_next)
    require_shape(value, (len(sigma),), "divergence")
    require_finite(value, "divergence")
    require((value >= 0).all(), "divergence is negative")
    require_close(
        method.divergence(step, step, sigma, sigma_next), torch.zeros_like(value), "divergence of equal steps is not 0"
    )


def _paper(method: AnyMethod) -> None:
    paper = getattr(method, "paper", None)
    require(
        isinstance(paper, str) and bool(paper.strip()),
        "the class variable 'paper' is missing: add paper: ClassVar[str] = 'arXiv:...', or state why there is none",
    )


def _no_budget_field(method: AnyMethod) -> None:
    names = {field.name for field in dataclasses.fields(method)}
    names |= {name for cls in type(method).__mro__ for name, value in vars(cls).items() if not callable(value)}
    reserved = sorted(RESERVED_FIELDS & names)
    require(not reserved, f"the class sets {', '.join(reserved)}, which belongs to the suite's budget: remove it")


def _hook_names(method: AnyMethod) -> None:
    """No function of the class has nearly the name of a hook: nothing would call it."""
    known = {name for name in dir(ForwardMethod if isinstance(method, ForwardMethod) else Method) if name[0] != "_"}
    for name, _ in inspect.getmembers(type(method), inspect.isfunction):
        if name[0] != "_" and name not in known:
            for near in difflib.get_close_matches(name, known, 1, SIMILAR):
                raise CheckError(f"{name} is no hook, and nothing calls it: call it {near}, or give it another name")


DECLARATIONS: dict[str, Callable[[AnyMethod], None]] = {
    "frozen dataclass": require_frozen,
    "paper": _paper,
    "no budget field": _no_budget_field,
    "hook names": _hook_names,
}
STEP_CHECKS: dict[str, Callable[[Method, SyntheticBatch], None]] = {
    "purity": _pure,
    "determinism": _deterministic,
    "transition": _transition,
    "affine in v": _affine,
    "independent samples": _independent,
    "no-noise limit": _no_noise,
    "log_prob": _log_prob,
    "gradient reaches v": _gradient,
    "step_weights": _step_weights,
    "policy_loss": _policy_loss,
    "divergence": _divergence,
}
"""Checks that need the step of `transition` on the synthetic batch."""
SCHEDULE_CHECKS: dict[str, Callable[[Method, Tensor], None]] = {
    "steps": _steps,
    "credit": _credit,
    "surrogate": _surrogate,
}
"""Checks that need only the schedule, and are run even if `transition` raises."""
