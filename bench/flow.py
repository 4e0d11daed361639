"""Formulas of flow matching: sigma schedule, clean latent and noise from the velocity, reverse steps, Gaussian KL.

Notation: `sigma` is the noise level (1 = noise, 0 = video), `x = (1 - sigma) * x0 + sigma * noise`, `v = noise - x0`.
Latents are [b, ...] of any rank and any float dtype; `sigma`, `sigma_next`, `variance` and `pull` are [b], one per
sample. Coefficients are computed in float64 and rounded once to the latent's dtype: 1 - sigma loses digits near 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import Gaussian, latent_mean
from bench.core.errors import BenchError

TIMESTEPS = 1000.0
"""A model's timestep is 1000 * sigma."""


def sigma_schedule(steps: int, shift: float) -> Float[Tensor, "t1"]:
    """Noise levels of a rollout, float32, from 1 to 0, `steps + 1` values.

    sigma = shift s / (1 + (shift - 1) s) for s uniform on [0, 1]. A shift above 1 puts more of the steps at high
    noise (the timestep shift of SD3, arXiv:2403.03206, section 5.3.2).
    """
    if steps < 1 or not 0 < shift < float("inf"):
        raise BenchError(f"sigma_schedule needs steps >= 1 and a finite shift > 0, got steps={steps}, shift={shift}.")
    s = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (shift * s / (1 + (shift - 1) * s)).float()


NEAR_ONE, LONGEST = 0.99, 3.0
"""A step that starts between `NEAR_ONE` and 1 must not be longer than `LONGEST` times its distance to 1. With N steps
of any shift, 1 - sigma_i = i / (shift (N - i) + i). On every schedule that starts at 1, the length over the distance
is therefore at most 3 before the last step (N = 3, i = 1, shift to infinity)."""


def need_first_sigma(name: str, sigma: Float[Tensor, "b"], sigma_next: Float[Tensor, "b"]) -> None:
    """Raise on a first step that starts almost at sigma = 1, for kernels that treat sigma = 1 as a special case.

    A noise rate proportional to sigma / (1 - sigma) explodes there: at 0.9999 it is a hundred times the rate at 1.
    """
    now, after = sigma.double(), sigma_next.double()
    too_long = (now > NEAR_ONE) & (now < 1) & (after > 0) & (now - after > LONGEST * (1 - now))
    if bool(too_long.any()):
        i = int(too_long.nonzero()[0])
        raise BenchError(
            f"{name}'s first step starts at sigma {now[i]:.6f} and is {(now[i] - after[i]) / (1 - now[i]):.0f} times "
            "longer than its distance to 1, so its noise would explode: start the schedule at sigma = 1 exactly, in "
            "float32 (bench.flow.sigma_schedule does)."
        )


def per_sample(values: Float[Tensor, "b"], x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """One value per sample, in the dtype of x and with trailing dimensions of size 1 to broadcast over x."""
    if values.shape != x.shape[:1]:
        raise BenchError(
            f"expected one value per sample, [{len(x)}], got {list(values.shape)}: expand it to the batch."
        )
    return values.to(x).reshape(-1, *[1] * (x.ndim - 1))


def add_noise(
    x0: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."], sigma: Float[Tensor, "b"]
) -> Float[Tensor, "b ..."]:
    """The forward process: (1 - sigma) x0 + sigma noise."""
    return per_sample(1 - sigma.double(), x0) * x0 + per_sample(sigma, x0) * noise


def predicted_x0(
    x: Float[Tensor, "b ..."], v: Float[Tensor, "b ..."], sigma: Float[Tensor, "b"]
) -> Float[Tensor, "b ..."]:
    """The clean latent of a predicted velocity: x - sigma v."""
    return x - per_sample(sigma, x) * v


def predicted_noise(
    x: Float[Tensor, "b ..."], v: Float[Tensor, "b ..."], sigma: Float[Tensor, "b"]
) -> Float[Tensor, "b ..."]:
    """The noise of a predicted velocity: x + (1 - sigma) v. The score of the marginal is -predicted_noise / sigma."""
    return x + per_sample(1 - sigma.double(), x) * v


def euler(
    x: Float[Tensor, "b ..."], v: Float[Tensor, "b ..."], sigma: Float[Tensor, "b"], sigma_next: Float[Tensor, "b"]
) -> Float[Tensor, "b ..."]:
    """Euler step of the probability-flow ODE: x - (sigma - sigma_next) v."""
    return x - per_sample(sigma.double() - sigma_next.double(), x) * v


def reverse_step(
    x: Float[Tensor, "b ..."],
    v: Float[Tensor, "b ..."],
    sigma: Float[Tensor, "b"],
    sigma_next: Float[Tensor, "b"],
    pull: Float[Tensor, "b"],
    variance: Float[Tensor, "b"],
) -> Gaussian:
    """The form of every kernel: the Euler step minus `pull` times the predicted noise, plus fresh noise.

    Affine in v: mean = x - d v - pull * (x + (1 - sigma) v) with d = sigma - sigma_next. std is the square root of
    `variance`, in the dtype of x. A variance or a pull that is not finite, or a negative variance, is a `BenchError`.
    """
    valid = torch.isfinite(variance) & (variance >= 0) & torch.isfinite(pull)
    if not bool(valid.all()):
        i = int((~valid).nonzero()[0])
        raise BenchError(
            f"the step from sigma {sigma[i]:.6f} to {sigma_next[i]:.6f} has variance {variance[i]:.3g}; it must be "
            "finite and at least 0: check the formula of the variance; sigma must decrease from 1 to 0, in float32 "
            "(bfloat16 rounds 0.999 to 1)."
        )
    mean = euler(x, v, sigma, sigma_next) - per_sample(pull, x) * predicted_noise(x, v, sigma)
    return Gaussian(mean, variance.double().sqrt().to(x))


def sde_step(
    x: Float[Tensor, "b ..."],
    v: Float[Tensor, "b ..."],
    sigma: Float[Tensor, "b"],
    sigma_next: Float[Tensor, "b"],
    variance: Float[Tensor, "b"],
) -> Gaussian:
    """One Euler-Maruyama step of the SDE with the ODE's marginals that injects `variance` (over the whole step).

    Noise of variance S is balanced by a drift of S / 2 along the score, and the score is -predicted_noise / sigma:
    pull = S / (2 sigma). This is the ODE-to-SDE conversion of arXiv:2505.05470; methods that use it differ in S alone.
    """
    return reverse_step(x, v, sigma, sigma_next, variance.double() / (2 * sigma.double()), variance)


def flow_sde_step(
    name: str,
    x: Float[Tensor, "b ..."],
    v: Float[Tensor, "b ..."],
    sigma: Float[Tensor, "b"],
    sigma_next: Float[Tensor, "b"],
    eta: float,
) -> Gaussian:
    """Flow-GRPO's step, which several methods share: variance eta^2 (sigma - sigma_next) sigma / (1 - sigma).

    At sigma = 1 the denominator is that of the step's end, so the variance is eta^2 exactly. A first sigma close to 1,
    but not 1, is a `BenchError` that names the method: 0.9999 would give a hundred times the variance.
    """
    now, after = sigma.double(), sigma_next.double()
    need_first_sigma(name, now, after)
    rate = now / (1 - torch.where(now == 1, after, now))
    return sde_step(x, v, sigma, sigma_next, eta**2 * (now - after) * rate)


def gaussian_kl(step: Gaussian, ref: Gaussian) -> Float[Tensor, "b"]:
    """KL(step || ref) of two diagonal Gaussians with one std per sample, per latent element, in nats.

    A reference: the divergences of the methods of this project are tested against it, and a method whose stds differ
    between policy and anchor can use it as its `divergence`.
    """
    ratio = (step.std / ref.std) ** 2
    return latent_mean((step.mean - ref.mean) ** 2) / (2 * ref.std**2) + (ratio - 1 - torch.log(ratio)) / 2
