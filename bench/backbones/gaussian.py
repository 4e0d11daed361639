"""Gaussian data: velocity, score and flow in closed form, so that all error is the sampler's.

Data x0 ~ N(mean, std^2), element by element, is Gaussian at every noise level too, x = (1 - sigma) x0 + sigma noise:

    E x = (1 - sigma) mean          Var x = P(sigma) = (1 - sigma)^2 std^2 + sigma^2

and v = E[noise - x0 | x] is affine in x. All functions are float64; `sigma` and `std` broadcast against each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Conditioning
from bench.flow import per_sample


def marginal_variance(sigma: Float[Tensor, "..."], std: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """P(sigma) = (1 - sigma)^2 std^2 + sigma^2, the variance of x at this noise level."""
    sigma, std = sigma.double(), std.double()
    return ((1 - sigma) * std) ** 2 + sigma**2


def velocity_line(
    sigma: Float[Tensor, "..."], mean: float, std: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Slope and offset of the velocity, v = slope x + offset.

    slope = Cov(noise - x0, x) / Var x = (sigma - (1 - sigma) std^2) / P(sigma); the offset makes the mean velocity
    E v = -mean. Undefined where P = 0 (sigma 0 and std 0).
    """
    sigma, std = sigma.double(), std.double()
    slope = (sigma - (1 - sigma) * std**2) / marginal_variance(sigma, std)
    return slope, -mean - slope * (1 - sigma) * mean


def flow_line(
    sigma: Float[Tensor, "..."], sigma_next: Float[Tensor, "..."], mean: float, std: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Gain and offset of the exact flow over one step, x_next = gain x + offset.

    The probability-flow ODE dx/dsigma = v is linear here, and its solution keeps each point's number of standard
    deviations from the mean: gain = sqrt(P(sigma_next) / P(sigma)).
    """
    gain = (marginal_variance(sigma_next, std) / marginal_variance(sigma, std)).sqrt()
    return gain, ((1 - sigma_next.double()) - gain * (1 - sigma.double())) * mean


class GaussianData:
    """A backbone without a network: the exact velocity of N(mean, std^2) data, the same for every prompt.

    It has no trained weights and no pixels: `decode` raises `BenchError`.
    """

    def __init__(
        self, mean: float = 0.0, std: float = 1.0, latent_shape: tuple[int, int, int, int] = (1, 1, 1, 1)
    ) -> None:
        """`latent_shape` is c f h w; `mean` and `std` in latent units, finite, std above 0."""
        if not math.isfinite(mean) or not 0 < std < math.inf:
            raise BenchError(f"Gaussian data need a finite mean and a finite std above 0, got mean={mean}, std={std}.")
        self.mean, self.std = mean, std
        self.latent_shape = latent_shape
        self.fps = 1.0

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Empty conditioning, one entry per prompt: the data do not depend on the prompt."""
        return Conditioning([torch.zeros(0, 1) for _ in prompts])

    def velocity(
        self,
        x: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        cond: Conditioning | None = None,
        guidance: float = 1.0,
        uncond_grad: bool = True,
    ) -> Float[Tensor, "b ..."]:
        """E[noise - x0 | x], in the dtype of x; guidance between two equal branches changes nothing."""
        slope, offset = velocity_line(sigma, self.mean, self._std())
        return per_sample(slope, x) * x + per_sample(offset, x)

    def score(self, x: Float[Tensor, "b ..."], sigma: Float[Tensor, "b"]) -> Float[Tensor, "b ..."]:
        """d log p / dx of the marginal: -(x - (1 - sigma) mean) / P(sigma); equals -predicted_noise / sigma."""
        centre = (1 - sigma.double()) * self.mean
        return -(x - per_sample(centre, x)) / per_sample(marginal_variance(sigma, self._std()), x)

    def _std(self) -> Float[Tensor, ""]:
        return torch.tensor(self.std, dtype=torch.float64)

    def decode(self, x0: Float[Tensor, "b c f h w"]) -> NoReturn:
        """Not possible: these latents have no pixels."""
        raise BenchError("Gaussian data have no pixels: score their latents, not videos.")

    def reset(self, rng: torch.Generator) -> None:
        """Nothing to reset."""

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """None: the velocity is exact."""
        return ()

    def as_anchor(self, name: str) -> AbstractContextManager[None]:
        """The policy, which is its own reference."""
        return nullcontext()

    def refresh_anchor(self, name: str) -> None:
        """Nothing to copy."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state:
            raise BenchError(f"Gaussian data have no state, got {', '.join(sorted(state))}.")

    def fingerprint(self) -> Mapping[str, str]:
        return {"kind": "gaussian", "mean": repr(self.mean), "std": repr(self.std)}
