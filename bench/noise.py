"""Noise policies of a suite: native eta, one eta for all, or eta solved so that all methods inject the same noise."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bench.api import BenchError, Method
from bench.config import CommonEta, MatchedRSS, Native


def injected_variance(method: Method, sigmas: Float[Tensor, "t1"]) -> Float[Tensor, "t"]:
    """Variance that each step of the schedule injects per latent element."""
    sigma, sigma_next = sigmas[:-1].double(), sigmas[1:].double()
    zero = torch.zeros(len(sigma), 1, dtype=torch.float64)
    return method.transition(zero, zero, sigma, sigma_next).std.double() ** 2


def apply(
    method: Method, policy: Native | CommonEta | MatchedRSS, sigmas: Float[Tensor, "t1"], noisy: Bool[Tensor, "t"]
) -> Method:
    """The method with the eta of the suite's noise policy; `noisy` marks the steps that count for matched_rss."""
    if isinstance(policy, Native):
        return method
    if not hasattr(method, "eta"):
        raise BenchError(
            f"{type(method).__name__} has no field 'eta', so noise_policy {policy.kind} cannot set it: "
            "use kind native."
        )
    if isinstance(policy, CommonEta):
        return dataclasses.replace(method, eta=policy.eta)  # type: ignore[call-arg]

    def rss(eta: float) -> float:
        changed = dataclasses.replace(method, eta=eta)  # type: ignore[call-arg]
        return float(injected_variance(changed, sigmas)[noisy].sum().sqrt())

    low, high = 0.0, 1.0
    if rss(high) < policy.rss:
        raise BenchError(
            f"{type(method).__name__} injects at most {rss(high):.3f} at eta 1, "
            f"below noise_policy.rss {policy.rss}: lower rss."
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rss(middle) < policy.rss else (low, middle)
    return dataclasses.replace(method, eta=high)  # type: ignore[call-arg]
