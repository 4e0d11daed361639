"""MixGRPO: noise on a window of steps only, which moves from early to late steps during training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bench.api import BenchError, Gaussian, Method
from bench.flow import flow_sde_step

PACES = ("progressive", "decay", "exp_decay", "random")


@dataclass(frozen=True, kw_only=True)
class MixGRPO(Method):
    """Flow-GRPO's transition inside of the window, the deterministic Euler step elsewhere.

    The window's place is a pure function of the update. All of it trains where `budget.train_steps` is its width.
    Reference code: Tencent-Hunyuan/MixGRPO, fastvideo/utils/grpo_states.py and sampling_utils.py.
    Departs: the window keeps its width, and its last place is the one that ends before the schedule's last two steps;
      in the code it shrinks there, and an update would train fewer steps than the budget says.
    Departs: MixGRPO-Flash, which replaces the steps behind the window by fewer ones of a higher-order solver, is left
      out: the suite sets the sampler and its number of steps.
    """

    paper: ClassVar[str] = 'arXiv:2507.21802, "MixGRPO: Unlocking Flow-based GRPO Efficiency with Mixed ODE-SDE"'

    eta: float = 0.7
    """Noise scale, at least 0."""
    window: int = 4
    """Noisy steps of a rollout, at least 1."""
    stride: int = 1
    """Steps by which the window moves, at least 1."""
    pace: Literal["progressive", "decay", "exp_decay", "random"] = "progressive"
    """How many updates the window stays at a step: `progressive` `quota`; `decay` from 10 at the first step to 1 at
    the last; `exp_decay` 25, less behind step 13; `random` draws the place of each update."""
    quota: int = 25
    """Updates at each place with `progressive`, at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window", "stride", "quota"):
            if getattr(self, name) < 1:
                raise BenchError(f"MixGRPO: {name} is {getattr(self, name)}; set it to at least 1.")
        if self.pace not in PACES:
            raise BenchError(f"MixGRPO: pace is {self.pace!r}; choose one of {', '.join(map(repr, PACES))}.")

    def transition(
        self,
        x: Float[Tensor, "b ..."],
        v: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Gaussian:
        """One step of Flow-GRPO's kernel."""
        return flow_sde_step("MixGRPO", x, v, sigma, sigma_next, self.eta)

    def updates_at(self, first: int, steps: int) -> int:
        """Updates that the window stays at this first step, in a schedule of so many steps."""
        if self.pace == "decay":
            share = first / max(1, steps - 2)
            return int(10 * (1 - share) + share)
        if self.pace == "exp_decay":
            return math.ceil(25 * math.exp(-0.1 * max(first - 13, 0)))
        return self.quota

    def first_step(self, steps: int, update: int, rng: torch.Generator) -> int:
        """The first step of the window at this update; from the last place the window returns to step 0."""
        places = range(0, max(0, steps - 2 - self.window) + 1, self.stride)
        if self.pace == "random":
            return places[int(torch.randint(len(places), (1,), generator=rng))]
        stays = [place for place in places for _ in range(self.updates_at(place, steps))]
        return stays[update % len(stays)]

    def stochastic(self, sigmas: Float[Tensor, "t1"], update: int, rng: torch.Generator) -> Bool[Tensor, "t"]:
        """The window of this update."""
        step = torch.arange(len(sigmas) - 1)
        first = self.first_step(len(step), update, rng)
        return (step >= first) & (step < first + self.window)
