"""The packaged noise policies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from bench.api import NoisePolicy
from bench.core.errors import BenchError

LARGEST_ETA, BISECTIONS = 1.0, 60
"""The largest eta that is tried for a method whose own is not larger (the noise of CPS falls again above 1)."""
TOLERANCE = 1e-6
"""Largest relative error of the noise that is found."""


def largest_eta(own: float | None) -> float:
    """The largest eta that is tried for a method with this eta of its own."""
    return max(LARGEST_ETA, own or 0.0)


@dataclass(frozen=True, kw_only=True)
class Native(NoisePolicy):
    """Each method keeps its own eta."""

    def choose_eta(self, own: float | None, variance: Callable[[float], Float[Tensor, "n"]]) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class CommonEta(NoisePolicy):
    """One eta for all methods."""

    eta: float
    """Finite and at least 0."""

    def choose_eta(self, own: float | None, variance: Callable[[float], Float[Tensor, "n"]]) -> float:
        return self.eta


@dataclass(frozen=True, kw_only=True)
class MatchedRSS(NoisePolicy):
    """The eta, up to 1 or the method's own, with which a rollout injects a given noise, by 60 bisections."""

    rss: float
    """Root of the summed variance that the noisy steps of a rollout add to a latent element, above 0. Where the steps
    differ between rollouts, the variance is the mean over all rollouts of the budget."""

    def choose_eta(self, own: float | None, variance: Callable[[float], Float[Tensor, "n"]]) -> float:
        """Raises `BenchError` for an rss out of reach."""

        def rss(eta: float) -> float:
            return float(variance(eta).sum().sqrt())

        low, high = 0.0, largest_eta(own)
        if rss(high) < self.rss:
            raise BenchError(f"it injects at most {rss(high):.3f} at eta {high:g}, below rss {self.rss}: lower rss.")
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if rss(middle) < self.rss else (low, middle)
        if rss(high) > self.rss * (1 + TOLERANCE):
            raise BenchError(
                f"it injects at least {rss(high):.3f} at any eta above 0, above rss {self.rss}: raise rss."
            )
        return high
