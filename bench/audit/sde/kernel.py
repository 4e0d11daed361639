"""What a method's step does to a Gaussian, read off the method itself: no kernel's formula is written down here.

Every transition is affine in x and v, x_next = keep x + slope v + offset + sqrt(variance) noise, and so is the exact
velocity of Gaussian data in x. Mean and variance therefore follow a recursion that is exact up to rounding, and
nothing is sampled. All numbers are float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Method
from bench.backbones.gaussian import flow_line, velocity_line

#: `noisy`: the last step as the method has it, so that its noise stays in the result. `clean`: the last step is the
#: Euler step to the predicted x0, which is what the harness decodes.
Last = Literal["noisy", "clean"]

#: What a step is, in `Kernel.status`; anything else there is the reason why it is invalid.
NOISY, QUIET, ODE = "noisy", "no noise", "ODE"

#: Relative gap between a mean and its affine prediction: a hundred roundings of a method that computes in float32.
AFFINE_TOLERANCE = 1e-5

#: Pieces of a step in `refined_variance`, and the change that doubling them may make before there is no limit.
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
    """Per step: NOISY, QUIET (its kernel injects nothing), ODE (made deterministic), or why it is invalid."""

    @property
    def excess(self) -> Float[Tensor, "t"]:
        """Energy of the noise in x_next beyond sigma_next^2, if the velocity is that of a single video.

        With x = (1 - sigma) x0 + sigma n and v = n - x0 the mean holds (keep sigma + slope) n, hence
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
        """The first invalid step with its reason; "" if all are sound."""
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
    """The method's kernel on this schedule, with the plain ODE where the method or `last` wants no noise.

    Which steps are noisy is the method's `stochastic` at update 0. A step that the method refuses (`BenchError`) or
    whose mean or std is not finite is marked invalid with the reason. A transition that is not affine is a
    `BenchError`.
    """
    plain = euler_kernel(sigmas)
    try:
        noisy = method.stochastic(sigmas, 0, torch.Generator().manual_seed(0)).clone()
    except BenchError:  # a schedule that the method refuses as a whole: its steps say which of them is invalid
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
    """keep, slope, offset and variance of each step, and per step why it is invalid ("" if it is not)."""
    sigma, sigma_next = sigmas[:-1], sigmas[1:]
    try:
        return _probe(method, sigma, sigma_next)
    except BenchError:  # one bad step refuses the whole batch: find out which
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
    """A transition that no affine map describes."""


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
    """What each step would inject if the method took it in ever smaller pieces: the integral of its own noise rate.

    The sums over PIECES and twice as many are extrapolated once (a Riemann sum errs in first order). NaN where they
    show no limit: at sigma = 1 where the rate is not integrable, and for kernels that have no rate.
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
    """Injected variances, NaN if any step is refused."""
    zero = torch.zeros(len(sigmas) - 1, 1, dtype=torch.float64)
    try:
        return method.transition(zero, zero, sigmas[:-1], sigmas[1:]).std.double() ** 2
    except BenchError:
        return torch.full((len(zero),), torch.nan, dtype=torch.float64)


class Terminal(NamedTuple):
    """Law of the last latent; all [n], one per data std."""

    mean: Tensor
    variance: Tensor
    fresh: Tensor
    """Share of the variance that is noise injected on the way, not the initial noise."""


def terminal(kernel: Kernel, data_mean: float, data_std: Float[Tensor, "n"], isolated: bool = False) -> Terminal:
    """Run x ~ N(0, 1) at sigma = 1 down the schedule with the exact velocity of N(data_mean, data_std^2).

    With v = alpha x + beta a step is x_next = a x + b + noise, a = keep + slope alpha, b = offset + slope beta, so

        mean' = a mean + b          variance' = a^2 variance + S.

    `isolated` replaces the deterministic part, the Euler step, by the exact flow and leaves what the method adds to
    Euler: only noise and its correction can then err.
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


def with_eta(method: Method, eta: float) -> Method:
    """The method with another noise scale; one without a field `eta` is a `BenchError`."""
    if not hasattr(method, "eta"):
        raise BenchError(f"{_name(method)} has no field 'eta', so its noise cannot be set.")
    return replace(method, eta=eta)  # type: ignore[call-arg]
