"""The effect of a method's steps on a Gaussian, measured on the method itself, without a formula of its kernel.

Every transition is affine in x and v, x_next = keep x + slope v + offset + sqrt(variance) noise, and the exact
velocity of Gaussian data is affine in x. Mean and variance therefore follow a recursion that is exact up to rounding;
nothing is sampled. All numbers are float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import Method
from bench.backbones.gaussian import flow_line, velocity_line
from bench.core.errors import BenchError

#: `noisy`: the last step of the method itself, whose noise stays in the result. `clean`: the last step is the Euler
#: step to the predicted x0, which the harness decodes.
Last = Literal["noisy", "clean"]

#: Kinds of steps in `Kernel.status`; any other text is the reason why a step is invalid.
NOISY, QUIET, ODE = "noisy", "no noise", "ODE"

#: Relative gap between a mean and its affine prediction: about a hundred roundings in float32.
AFFINE_TOLERANCE = 1e-5

#: Pieces of a step in `refined_variance`, and the relative change when they are doubled above which no limit exists.
PIECES, LIMIT_TOLERANCE = 512, 0.01


@dataclass(frozen=True, eq=False)
class Kernel:
    """The steps of one schedule as affine maps; all tensors [t], NaN where a step is invalid."""

    sigmas: Tensor
    """[t + 1], from 1 to 0."""
    keep: Tensor
    """d mean / dx."""
    slope: Tensor
    """d mean / dv."""
    offset: Tensor
    """The mean at x = 0, v = 0."""
    variance: Tensor
    """Variance that the step injects."""
    status: tuple[str, ...]
    """Per step: NOISY, QUIET (a noisy step that injects nothing), ODE (deterministic), or why the step is invalid."""

    @property
    def excess(self) -> Float[Tensor, "t"]:
        """Energy of the noise in x_next beyond sigma_next^2, for the velocity of a single video; [t].

        With x = (1 - sigma) x0 + sigma n and v = n - x0 the mean contains (keep sigma + slope) n, hence
        excess = (keep sigma + slope)^2 + variance - sigma_next^2. For mean = x - d v - k (x + (1 - sigma) v) this is
        (sigma_next - k)^2 + variance - sigma_next^2, the excess noise energy of CPS (arXiv:2509.05952).
        """
        return (self.keep * self.sigmas[:-1] + self.slope) ** 2 + self.variance - self.sigmas[1:] ** 2

    @property
    def rss(self) -> float:
        """Root of the summed injected variances; NaN if a step is invalid."""
        return float(self.variance.sum().sqrt())

    @property
    def invalid(self) -> str:
        """The first invalid step with its reason; "" if all steps are valid."""
        for i, status in enumerate(self.status):
            if status not in (NOISY, QUIET, ODE):
                return f"step {i}: {status}"
        return ""


def euler_kernel(sigmas: Float[Tensor, "t1"]) -> Kernel:
    """The plain ODE: x - (sigma - sigma_next) v, no noise."""
    sigmas = sigmas.double()
    one, zero = torch.ones_like(sigmas[1:]), torch.zeros_like(sigmas[1:])
    return Kernel(sigmas, one, sigmas[1:] - sigmas[:-1], zero, zero, (ODE,) * len(one))


def read(method: Method, sigmas: Float[Tensor, "t1"], last: Last = "noisy") -> Kernel:
    """The kernel of a method on this schedule, with the plain ODE for steps without noise by the method or `last`.

    The noisy steps are those of the method's `stochastic` at update 0. A step that the method rejects (`BenchError`)
    or whose mean or std is not finite is marked invalid with the reason. A transition that is not affine is a
    `BenchError`.
    """
    plain = euler_kernel(sigmas)
    try:
        noisy = method.stochastic(sigmas, 0, torch.Generator().manual_seed(0)).clone()
    except BenchError:  # the method rejects the schedule as a whole: find the invalid steps below
        noisy = torch.ones(len(plain.keep), dtype=torch.bool)
    if noisy.shape != plain.keep.shape or noisy.dtype != torch.bool:
        raise BenchError(f"{_name(method)}.stochastic returned {list(noisy.shape)}: return bool [{len(plain.keep)}].")
    if last == "clean":
        noisy[-1] = False
    lines, reasons = _lines(method, sigmas)
    keep, slope, offset, variance = torch.where(
        noisy, lines, torch.stack([plain.keep, plain.slope, plain.offset, plain.variance])
    )
    status = [
        ODE if not is_noisy else reason or (NOISY if value > 0 else QUIET)
        for is_noisy, reason, value in zip(noisy.tolist(), reasons, variance.tolist(), strict=True)
    ]
    return Kernel(plain.sigmas, keep, slope, offset, variance, tuple(status))


def _name(method: Method) -> str:
    return type(method).__name__


def _lines(method: Method, sigmas: Float[Tensor, "t1"]) -> tuple[Float[Tensor, "4 t"], list[str]]:
    """keep, slope, offset and variance of each step, and per step the reason why it is invalid, else ""."""
    sigma, sigma_next = sigmas[:-1], sigmas[1:]
    try:
        return _probe(method, sigma, sigma_next)
    except BenchError:  # one invalid step rejects the whole batch: find it
        parts = []
        for i in range(len(sigma)):
            try:
                parts.append(_probe(method, sigma[i : i + 1], sigma_next[i : i + 1]))
            except BenchError as error:
                if isinstance(error, NotAffineError):
                    raise
                parts.append((torch.full((4, 1), torch.nan, dtype=torch.float64), [str(error)]))
        return torch.cat([lines for lines, _ in parts], 1), [reason for _, reasons in parts for reason in reasons]


class NotAffineError(BenchError):
    """A transition that is not an affine map."""


def _probe(
    method: Method, sigma: Float[Tensor, "t"], sigma_next: Float[Tensor, "t"]
) -> tuple[Float[Tensor, "4 t"], list[str]]:
    """The affine map of each step from its values at (x, v) = (0, 0), (1, 0), (0, 1), checked at (2, -3)."""
    x = torch.tensor([0.0, 1.0, 0.0, 2.0], dtype=torch.float64).repeat(len(sigma), 1)
    v = torch.tensor([0.0, 0.0, 1.0, -3.0], dtype=torch.float64).repeat(len(sigma), 1)
    step = method.transition(x, v, sigma, sigma_next)
    mean, std = step.mean.double(), step.std.double()
    offset = mean[:, 0]
    keep, slope = mean[:, 1] - offset, mean[:, 2] - offset
    finite = mean.isfinite().all(1) & std.isfinite() & (std >= 0)
    gap = (mean[:, 3] - (2 * keep - 3 * slope + offset)).abs() / mean.abs().amax(1).clamp_min(1)
    if bool((gap[finite] > AFFINE_TOLERANCE).any()):
        raise NotAffineError(
            f"{_name(method)}.transition is not affine in x and v (relative gap {float(gap[finite].max()):.2g}), so "
            "its mean and variance on Gaussian data have no closed recursion."
        )
    lines = torch.where(finite, torch.stack([keep, slope, offset, std**2]), torch.nan)
    bad = [f"std is {value:.3g}, mean or std not finite or std below 0" for value in std.tolist()]
    return lines, ["" if ok else text for ok, text in zip(finite.tolist(), bad, strict=True)]


def refined_variance(method: Method, sigmas: Float[Tensor, "t1"]) -> Float[Tensor, "t"]:
    """Variance that each step injects in the limit of ever smaller pieces: the integral of the method's noise rate.

    The sums over PIECES and twice as many pieces are extrapolated once (the error of a Riemann sum is of first order).
    NaN if they have no limit: at sigma = 1 if the rate is not integrable, and for kernels that have no rate.
    """
    limits = []
    for sigma, sigma_next in zip(sigmas[:-1].double(), sigmas[1:].double(), strict=True):
        sums = []
        for pieces in (PIECES, 2 * PIECES):
            part = torch.linspace(0, 1, pieces + 1, dtype=torch.float64)
            fine = sigma + (sigma_next - sigma) * part
            fine[-1] = sigma_next
            sums.append(float(_lines_or_nan(method, fine).sum()))
        coarse, finer = sums
        converges = abs(finer - coarse) <= LIMIT_TOLERANCE * abs(finer)  # False for NaN
        limits.append(2 * finer - coarse if converges else torch.nan)
    return torch.tensor(limits, dtype=torch.float64)


def _lines_or_nan(method: Method, sigmas: Float[Tensor, "t1"]) -> Float[Tensor, "t"]:
    """Injected variances; NaN if the method rejects a step."""
    zero = torch.zeros(len(sigmas) - 1, 1, dtype=torch.float64)
    try:
        return method.transition(zero, zero, sigmas[:-1], sigmas[1:]).std.double() ** 2
    except BenchError:
        return torch.full((len(zero),), torch.nan, dtype=torch.float64)


class Terminal(NamedTuple):
    """Distribution of the last latent; all [n], one entry per data std."""

    mean: Tensor
    variance: Tensor
    fresh: Tensor
    """Share of the variance that is injected by the steps, not initial noise."""


def terminal(kernel: Kernel, data_mean: float, data_std: Float[Tensor, "n"], isolated: bool = False) -> Terminal:
    """Run x ~ N(0, 1) at sigma = 1 down the schedule with the exact velocity of N(data_mean, data_std^2).

    With v = alpha x + beta a step is x_next = a x + b + noise, a = keep + slope alpha, b = offset + slope beta, so

        mean' = a mean + b          variance' = a^2 variance + S.

    `isolated` replaces the Euler step by the exact flow and keeps what the method adds to it, so that only the noise
    and its correction can cause an error.
    """
    now, after = kernel.sigmas[:-1, None], kernel.sigmas[1:, None]
    alpha, beta = velocity_line(now, data_mean, data_std[None])
    gain = kernel.keep[:, None] + kernel.slope[:, None] * alpha
    shift = kernel.offset[:, None] + kernel.slope[:, None] * beta
    if isolated:
        exact, moved = flow_line(now, after, data_mean, data_std[None])
        gain = exact + gain - (1 - (now - after) * alpha)
        shift = moved + shift + (now - after) * beta
    later = torch.cat([gain.flip(0).cumprod(0).flip(0), torch.ones_like(gain[:1])])  # gain of steps i, i + 1, ...
    start = (1 - kernel.sigmas[0]) * data_mean
    mean = start * later[0] + (shift * later[1:]).sum(0)
    fresh = (kernel.variance[:, None] * later[1:] ** 2).sum(0)
    variance = later[0] ** 2 + fresh  # x has unit variance at sigma = 1
    return Terminal(mean, variance, fresh / variance)
