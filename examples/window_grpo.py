"""A fifth method in one file: Flow-GRPO's kernel, noisy in a window of steps that moves with the updates."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.api import Gaussian, Method
from bench.flow import sde_step


@dataclass(frozen=True, kw_only=True)
class WindowGRPO(Method):
    """Explores a few neighbouring steps at a time, from the noisiest on; all other steps are the plain ODE."""

    paper: ClassVar[str] = "none: an example"
    eta: float = 0.7
    width: int = 2

    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        now, after = sigma.double(), sigma_next.double()
        rate = now / (1 - torch.where(now == 1, after, now))
        return sde_step(x, v, sigma, sigma_next, self.eta**2 * (now - after) * rate)

    def stochastic(self, sigmas: Tensor, update: int, rng: torch.Generator) -> Tensor:
        first = update % (len(sigmas) - 1 - self.width)
        noisy = torch.zeros(len(sigmas) - 1, dtype=torch.bool)
        noisy[first : first + self.width] = True
        return noisy
