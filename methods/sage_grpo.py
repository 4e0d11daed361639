"""SAGE-GRPO: a manifold-aware SDE and a gradient equalizer over the steps; used with the `dual` KL policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bench.api import LATE, BenchError, Gaussian, Method, latent_mean
from bench.flow import need_first_sigma, sde_step

SIGNAL_FLOOR = 3e-3
"""Least 1 - sigma in the variance, whose exact integral diverges at sigma = 1. In the released code only, not in the
paper; it decides the variance of the first step."""

LEAST_REST = 0.0030091
"""Smallest 1 - sigma_next for which the released variance of a first step is positive: the solution of
r = SIGNAL_FLOOR exp(r), rounded up."""

KL_EPSILON = 1e-6
"""Added to the variance in the released KL (hyvideo/utils/grpo_utils.py, train_one_step)."""

EQUALIZER_EPSILON = 1e-8
"""The small constant in the equalizer's divisor; the paper does not state its size."""

OPTIONS = {
    "variance": ("released", "exact"),
    "objective": ("clipped", "plain"),
    "equalizer_norm": ("jacobian", "variance"),
    "kl_scale": ("released", "paper"),
}
"""Values of the options that choose between the paper and its released code."""


@dataclass(frozen=True, kw_only=True)
class SAGEGRPO(Method):
    """SAGE-GRPO's transition: the noise rate eta sqrt(sigma / (1 - sigma)), its variance integrated over the step.

    Reference code: Tencent-Hunyuan/SAGE-GRPO, hyvideo/schedulers/scheduling_flow_match_discrete.py,
    sde_step_with_logprob.
    Departs: a step whose variance is not positive is an error; the code returns NaN and continues to train.
    Departs: the score is -predicted_noise / sigma directly. The paper prints -(x - x0) / sigma^2, without its code's
      factor 1 - sigma on x0, and the update as + v d for d > 0. Both are misprints (no sampler works so), and there
      is no option for them.
    Departs: with eta = 0 the step is the deterministic Euler step with std 0.
    """

    paper: ClassVar[str] = (
        'arXiv:2603.21872, "Manifold-Aware Exploration for Reinforcement Learning in Video Generation"'
    )

    eta: float = 0.5
    """Noise scale, at least 0; 0.5 in the released TrainingConfig (not exposed on its command line)."""
    equalizer: Literal["off", "derived", "released"] = "derived"
    """The paper's temporal gradient equalizer, on by default; both forms are equal for a Gaussian log-probability."""

    variance: Literal["released", "exact"] = field(default="released", metadata=LATE)
    """The variance of the first steps, an integral of eta^2 s / (1 - s) that diverges at sigma = 1.

    `released`: 1 - sigma is at least `SIGNAL_FLOOR` in the integral's logarithm, as in the released code. The first
    step's variance then decreases with more steps or a larger shift, and is zero or negative for shift (steps - 1) of
    331 or more: from 68 steps with shift 5, from 49 with shift 7 and from 38 with shift 9; so also with 50 steps for
    720p HunyuanVideo-1.5.
    `exact` works on every schedule. A step from sigma < 1 has the integral itself, without a floor. A step from
    sigma = 1 follows FlowGRPO (arXiv:2505.05470, sigma_max): the denominator 1 - s of the noise rate has its value at
    the step's end, so the variance is eta^2 (1 - sigma_next) / (1 - sigma_next) = eta^2 for every schedule. The two
    options differ only in steps that begin above 1 - `SIGNAL_FLOOR`: with 20 steps and shift 5 only in the first,
    1.23 eta^2 against eta^2.
    Departs: `exact` is neither in the paper nor in its code; rows that use it need a label.
    """

    objective: Literal["clipped", "plain"] = field(default="clipped", metadata=LATE)
    """The policy loss: the released code's clipped ratio, or the paper's advantage times log-probability (`plain`).

    Their gradients are equal if the policy has not changed since the rollout, so always with one optimizer step per
    rollout.
    Departs: the default is the released code's; the paper's is `plain`.
    """
    equalizer_norm: Literal["jacobian", "variance"] = field(default="jacobian", metadata=LATE)
    """The equalizer's estimate of a step's gradient norm: |J| / std as released, or the paper's Sigma^(-1/2).

    `variance` does not include how strongly the step's mean depends on the network: at 20 steps and shift 5 its
    weights span a factor of 7 over the steps instead of 148.
    Departs: the default is the released code's; the paper's is `variance`, with its small constant in the divisor.
    """
    kl_scale: Literal["released", "paper"] = field(default="released", metadata=LATE)
    """The divisor of the position KL: 2 (std^2 + 1e-6) as released, or the paper's 2 Sigma^2 with Sigma a variance.

    Departs: the default is the released code's, which is the KL of two Gaussians except for its constant; with
      `paper` the squared distance is divided by std^4.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in OPTIONS.items():
            if getattr(self, name) not in allowed:
                choices = ", ".join(map(repr, allowed))
                raise BenchError(f"SAGEGRPO: {name} is {getattr(self, name)!r}; choose one of {choices}.")

    def transition(
        self,
        x: Float[Tensor, "b ..."],
        v: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Gaussian:
        """One step with variance eta^2 [ln((1 - sigma_next) / (1 - sigma)) - (sigma - sigma_next)].

        That is the integral of eta^2 s / (1 - s) from sigma_next to sigma; see `variance` for sigma near 1. If the
        released floor makes it zero or negative, it is a `BenchError`.
        """
        now, after = sigma.double(), sigma_next.double()
        if self.variance == "released":
            integral = torch.log((1 - after) / (1 - now).clamp_min(SIGNAL_FLOOR)) - (now - after)
        else:
            need_first_sigma("SAGE-GRPO", now, after)
            inside = torch.where(now == 1, after, now)
            integral = torch.log((1 - after) / (1 - inside)) - (inside - after)
            integral = torch.where((now == 1) & (after < 1), torch.ones_like(now), integral)
        not_positive = ~(integral > 0)
        if self.eta > 0 and bool(not_positive.any()):
            i = int(not_positive.nonzero()[0])
            raise BenchError(
                f"SAGE-GRPO's variance is {self.eta**2 * integral[i]:.3g}, not positive, for the step from sigma "
                f"{now[i]:.6f} to {after[i]:.6f}: the first step must reach below about 0.997, so use fewer steps or "
                "a smaller shift (at most 67 steps with shift 5, 48 with shift 7, 37 with shift 9), or set the row's "
                "params to {variance: exact}."
            )
        return sde_step(x, v, sigma, sigma_next, self.eta**2 * integral)

    def stochastic(self, sigmas: Float[Tensor, "t1"], update: int, rng: torch.Generator) -> Bool[Tensor, "t"]:
        """All steps; a schedule whose first step has no variance is a `BenchError` with the number of steps to use."""
        steps, rest = len(sigmas) - 1, 1 - float(sigmas[1])
        if self.variance == "released" and self.eta > 0 and rest <= LEAST_REST and steps > 1:
            shift = (1 / rest - 1) / (steps - 1) if rest > 0 else math.inf
            most = max(1, math.floor(1 + (1 / LEAST_REST - 1) / shift))
            raise BenchError(
                f"SAGE-GRPO's first step has no variance on this schedule ({steps} steps, shift {shift:.3g}): set "
                f"budget.steps to at most {most} at this shift, use a smaller shift, or set the row's params to "
                "{variance: exact}."
            )
        return super().stochastic(sigmas, update, rng)

    def divergence(
        self, step: Gaussian, ref: Gaussian, sigma: Float[Tensor, "b"], sigma_next: Float[Tensor, "b"]
    ) -> Float[Tensor, "b"]:
        """Squared distance of the means over 2 (std^2 + 1e-6): the released position term; see `kl_scale`."""
        scale = step.std**2 + KL_EPSILON if self.kl_scale == "released" else step.std**4
        return latent_mean((step.mean - ref.mean) ** 2) / (2 * scale)

    def surrogate(
        self, logp_new: Float[Tensor, "b"], logp_old: Float[Tensor, "b"], adv: Float[Tensor, "b"]
    ) -> Float[Tensor, "b"]:
        """PPO's clipped loss, or minus the advantage times the log-probability; see `objective`."""
        return super().surrogate(logp_new, logp_old, adv) if self.objective == "clipped" else -adv * logp_new

    def step_weights(self, sigmas: Float[Tensor, "t1"]) -> Float[Tensor, "t"]:
        """The equalizer's lower_median(N) / N_i; with `equalizer_norm` variance N_i = 1 / std_i."""
        if self.equalizer == "off" or self.equalizer_norm == "jacobian":
            return super().step_weights(sigmas)
        zero = torch.zeros(len(sigmas) - 1, 1, dtype=torch.float64, device=sigmas.device)
        norm = 1 / self.transition(zero, zero, sigmas[:-1].double(), sigmas[1:].double()).std.double()
        norm = torch.where(torch.isfinite(norm), norm, torch.ones_like(norm))
        return (norm.median() / (norm + EQUALIZER_EPSILON)).float()
