"""Checks that a plug-in must pass before it may run; a method takes a few milliseconds.

Each check looks at one promise of `bench.api.Method`. The first broken one raises `BenchError` with the names of the
method and of the check.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Gaussian, Method, Rewards
from bench.flow import sigma_schedule

#: Relative error allowed between two ways to one number: a hundred roundings of a method that computes in float32.
TOLERANCE = 1e-5

#: Prompts and samples per prompt of the made-up rewards.
PROMPTS, GROUP = 2, 4


class Probe(NamedTuple):
    """One made-up batch with one sample per step of the schedule, and the method's step on it."""

    x: Tensor
    """[t, 2, 1, 2, 2], float64."""
    v: Tensor
    other_v: Tensor
    noise: Tensor
    sigmas: Tensor
    """[t + 1]."""
    step: Gaussian

    @property
    def sigma(self) -> Float[Tensor, "t"]:
        return self.sigmas[:-1]

    @property
    def sigma_next(self) -> Float[Tensor, "t"]:
        return self.sigmas[1:]

    def noisy(self) -> tuple[Gaussian, Float[Tensor, "n ..."], Float[Tensor, "n"], Float[Tensor, "n"]]:
        """The noisy steps alone, as (step, a sample after it, sigma, sigma_next)."""
        rows = self.step.std > 0
        step = Gaussian(self.step.mean[rows], self.step.std[rows])
        return (
            step,
            step.mean + step.std.reshape(-1, 1, 1, 1, 1) * self.noise[rows],
            self.sigma[rows],
            self.sigma_next[rows],
        )


class CheckError(Exception):
    """What a check found."""


def _need(condition: bool | Tensor, found: str) -> None:
    if not bool(condition):
        raise CheckError(found)


def _finite(values: Tensor, what: str) -> None:
    _need(torch.isfinite(values).all(), f"{what} is not finite: {values.flatten()[:4].tolist()}")


def _shape(values: Tensor, shape: tuple[int, ...], what: str) -> None:
    _need(tuple(values.shape) == shape, f"{what} has shape {list(values.shape)}, expected {list(shape)}")


def _close(left: Tensor, right: Tensor, found: str) -> None:
    gap, size = (left - right).abs().max().item(), max(1.0, right.abs().max().item())
    _need(gap <= TOLERANCE * size, f"{found} (largest difference {gap:.3g})")


def _transition(m: Method, p: Probe) -> None:
    _shape(p.step.mean, tuple(p.x.shape), "mean")
    _shape(p.step.std, (len(p.x),), "std")
    _finite(p.step.mean, "mean")
    _finite(p.step.std, "std")
    _need((p.step.std >= 0).all(), f"std is negative: {p.step.std.min().item():.3g}")
    single = m.transition(p.x.float(), p.v.float(), p.sigma, p.sigma_next)
    _need(single.mean.dtype == single.std.dtype == torch.float32, f"float32 in gives {single.mean.dtype} out")
    _finite(single.mean, "mean in float32")


def _affine(m: Method, p: Probe) -> None:
    other = m.transition(p.x, p.other_v, p.sigma, p.sigma_next)
    middle = m.transition(p.x, 0.25 * p.v + 0.75 * p.other_v, p.sigma, p.sigma_next)
    expected = 0.25 * p.step.mean + 0.75 * other.mean
    _close(middle.mean, expected, "the mean is not affine in v, so that the equalizer's d mean / d v is not defined")
    _close(other.std, p.step.std, "the std depends on v")


def _independent(m: Method, p: Probe) -> None:
    flipped = m.transition(p.x.flip(0), p.v.flip(0), p.sigma.flip(0), p.sigma_next.flip(0))
    _close(flipped.mean.flip(0), p.step.mean, "a sample's mean changes with its place in the batch")
    _close(flipped.std.flip(0), p.step.std, "a sample's std changes with its place in the batch")
    alone = m.transition(p.x[1:2], p.v[1:2], p.sigma[1:2], p.sigma_next[1:2])
    _close(alone.mean, p.step.mean[1:2], "a sample's mean depends on the other samples of the batch")


def _log_prob(m: Method, p: Probe) -> None:
    v = p.v.clone().requires_grad_(True)
    step, x_next, _, _ = p._replace(step=m.transition(p.x, v, p.sigma, p.sigma_next)).noisy()
    if len(x_next) == 0:  # eta 0: nothing to train
        return
    x_next = x_next.detach().requires_grad_(True)
    logp = m.log_prob(step, x_next)
    _shape(logp, (len(x_next),), "log_prob")
    _finite(logp, "log_prob")
    _need(logp.requires_grad, "no gradient of log_prob reaches v")
    grad_v, grad_x = torch.autograd.grad(logp.sum(), [v, x_next], allow_unused=True)
    _need(grad_v is not None, "no gradient of log_prob reaches v")
    grad_v = grad_v[p.step.std > 0]
    _finite(grad_v, "the gradient of log_prob to v")
    _need((grad_v.flatten(1).abs().amax(1) > 0).all(), "no gradient of log_prob reaches v at one of the noisy steps")
    _need(grad_x is None or not grad_x.any(), "a gradient of log_prob flows into x_next, which must be detached")


def _step_weights(m: Method, p: Probe) -> None:
    weights = m.step_weights(p.sigmas)
    _shape(weights, (len(p.x),), "step_weights")
    _finite(weights, "step_weights")
    _need((weights >= 0).all(), f"step_weights has a negative entry: {weights.min().item():.3g}")


def _steps(m: Method, p: Probe) -> None:
    mask = m.stochastic(p.sigmas, 0, torch.Generator().manual_seed(0))
    _shape(mask, (len(p.x),), "stochastic")
    _need(mask.dtype == torch.bool, f"stochastic gives {mask.dtype}, expected bool")
    if len(p.x) > 1:
        index = m.train_steps(p.sigmas, 1, torch.Generator().manual_seed(0))
        _need(
            index.shape[-1] == 1 and not index.is_floating_point(), "train_steps does not give the n indices asked for"
        )
        _need(((index >= 0) & (index < len(p.x))).all(), f"train_steps gives an index outside 0 to {len(p.x) - 1}")


def _credit(m: Method, p: Probe) -> None:
    draws = torch.randn(2, PROMPTS, GROUP, generator=torch.Generator().manual_seed(1))
    adv = m.advantages(Rewards({"a": draws[0], "b": draws[1]}, {"a": 0.5, "b": 1.0}))
    _need(
        adv.ndim == 3 and adv.shape[1:] == (PROMPTS, GROUP),
        f"advantages has shape {list(adv.shape)}, expected [k, p, g]",
    )
    _finite(adv, "advantages")
    chosen = m.select(adv)
    _shape(chosen, (PROMPTS, GROUP), "select")
    _need(chosen.dtype == torch.bool, f"select gives {chosen.dtype}, expected bool")


def _surrogate(m: Method, p: Probe) -> None:
    adv = torch.tensor([1.0, -1.0, 0.5])
    logp = torch.tensor([-1.0, 0.3, 2.0])
    new = logp.clone().requires_grad_(True)
    loss = m.surrogate(new, logp, adv)
    _shape(loss, (3,), "surrogate")
    _finite(loss, "surrogate")
    _need(loss.requires_grad, "no gradient of surrogate reaches logp_new")
    (grad,) = torch.autograd.grad(loss.sum(), new)
    _need((grad * adv < 0).all(), "descending the surrogate does not raise the log-probability of a good sample")


def _divergence(m: Method, p: Probe) -> None:
    step, _, sigma, sigma_next = p.noisy()
    if len(sigma) == 0:  # eta 0: no density to compare
        return
    ref = Gaussian(step.mean + 0.1, step.std)
    value = m.divergence(step, ref, sigma, sigma_next)
    _shape(value, (len(sigma),), "divergence")
    _finite(value, "divergence")
    _need((value >= 0).all(), "divergence is negative")
    _close(m.divergence(step, step, sigma, sigma_next), torch.zeros_like(value), "divergence of equal steps is not 0")


CHECKS: dict[str, Callable[[Method, Probe], None]] = {
    "transition": _transition,
    "affine in v": _affine,
    "independent samples": _independent,
    "log_prob": _log_prob,
    "step_weights": _step_weights,
    "steps": _steps,
    "credit": _credit,
    "surrogate": _surrogate,
    "divergence": _divergence,
}


def _probe(m: Method, sigmas: Tensor) -> Probe:
    """The made-up batch; its step shows that two calls agree and that the inputs are left as they were."""
    shape = (4, len(sigmas) - 1, 2, 1, 2, 2)
    x, v, other_v, noise = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = [x, v, sigmas[:-1].clone(), sigmas[1:].clone()]
    before = [tensor.clone() for tensor in inputs]
    first, second = m.transition(*inputs), m.transition(*inputs)
    _need(
        all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True)), "transition changes its inputs in place"
    )
    same = torch.equal(first.mean, second.mean) and torch.equal(first.std, second.std)
    _need(same, "two calls of transition with the same inputs differ: the harness draws the noise, not the method")
    return Probe(x, v, other_v, noise, sigmas, first)


def _global_state() -> tuple[bytes, str]:
    # Python's own random is left to the repeated call: runtime type checkers draw from it.
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), str(numpy_state["state"]["pos"]) + numpy_state["state"][
        "key"
    ].tobytes().hex()


def check_method(m: Method, sigmas: Float[Tensor, "t1"] | None = None) -> tuple[str, ...]:
    """The names of the checks that `m` passed, all of them; the first that fails raises `BenchError`.

    `sigmas` is the schedule that the method will meet, from 1 to 0; 10 steps with shift 5 if not given.
    """
    name = f"method {type(m).__module__}:{type(m).__qualname__}"
    sigmas = sigma_schedule(10, 5.0) if sigmas is None else sigmas.clone()
    kept, state = sigmas.clone(), _global_state()
    check = "pure and deterministic"
    try:
        probe = _probe(m, sigmas)
        for check, run in CHECKS.items():  # noqa: B007  (read in the handlers)
            run(m, probe)
        check = "pure and deterministic"
        _need(torch.equal(sigmas, kept), "a hook changes the schedule in place")
        check = "no global randomness"
        _need(
            _global_state() == state,
            "a hook moves torch's or numpy's global random state: use the generator it is given",
        )
    except BenchError as error:
        raise BenchError(f"{name} fails the check '{check}': {error}") from error
    except CheckError as broken:
        raise BenchError(f"{name} fails the check '{check}': {broken}.") from None
    except Exception as error:
        raise BenchError(f"{name} fails the check '{check}': {type(error).__name__}: {error}") from error
    return ("pure and deterministic", *CHECKS, "no global randomness")
