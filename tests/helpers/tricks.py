"""Methods that try to win by something else than their method; each derives from CPS, whose results are known."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from methods.cps import CPS
from tests.helpers.toy import ToyBackbone

LATEST = {"calls": 0}
"""What `Memory` remembers between calls."""


@dataclass(frozen=True, kw_only=True)
class Ranked(CPS):
    """Ranks times ten as advantages, of which the best two and the worst two of each group train."""

    paper: ClassVar[str] = "none"

    def advantages(self, rewards: Any) -> Tensor:
        ranks = rewards.total().argsort(1).argsort(1).float()
        return 10 * (ranks - ranks.mean(1, keepdim=True))[None]

    def select(self, adv: Tensor) -> Tensor:
        ranks = adv.sum(0).argsort(1).argsort(1)
        return (ranks < 2) | (ranks >= adv.shape[2] - 2)


@dataclass(frozen=True, kw_only=True)
class Loud(CPS):
    """A loss of another scale."""

    paper: ClassVar[str] = "none"
    factor: float = 1.0

    def surrogate(self, logp_new: Tensor, logp_old: Tensor, adv: Tensor) -> Tensor:
        return self.factor * super().surrogate(logp_new, logp_old, adv)


@dataclass(frozen=True, kw_only=True)
class Heavy(CPS):
    """Step weights of another scale."""

    paper: ClassVar[str] = "none"
    factor: float = 1.0

    def step_weights(self, sigmas: Tensor) -> Tensor:
        return self.factor * super().step_weights(sigmas)


@dataclass(frozen=True, kw_only=True)
class Thief(CPS):
    """Finds the optimizer and triples its learning rate."""

    paper: ClassVar[str] = "none"

    def stochastic(self, sigmas: Tensor, update: int, rng: torch.Generator) -> Tensor:
        for found in gc.get_objects():
            if type(found) is torch.optim.AdamW:
                for group in found.param_groups:
                    group["lr"] = 9e-4
        return super().stochastic(sigmas, update, rng)


@dataclass(frozen=True, kw_only=True)
class Freezer(CPS):
    """Finds the optimizer in the loss and sets its learning rate to 0; never in a check."""

    paper: ClassVar[str] = "none"

    def surrogate(self, logp_new: Tensor, logp_old: Tensor, adv: Tensor) -> Tensor:
        for found in gc.get_objects() if len(adv) == 2 else []:
            if type(found) is torch.optim.AdamW:
                for group in found.param_groups:
                    group["lr"] = 0.0
        return super().surrogate(logp_new, logp_old, adv)


@dataclass(frozen=True, kw_only=True)
class Pusher(CPS):
    """Finds the toy and changes its weights, in the rollout of update 1 or in the loss; never in a check."""

    paper: ClassVar[str] = "none"
    hook: Literal["stochastic", "surrogate"] = "stochastic"

    def _push(self, hook: str, trains: bool) -> None:
        if trains and hook == self.hook:
            for found in gc.get_objects():
                if issubclass(type(found), ToyBackbone):
                    found.gain.data += 1e-3

    def stochastic(self, sigmas: Tensor, update: int, rng: torch.Generator) -> Tensor:
        self._push("stochastic", update == 1)
        return super().stochastic(sigmas, update, rng)

    def surrogate(self, logp_new: Tensor, logp_old: Tensor, adv: Tensor) -> Tensor:
        self._push("surrogate", len(adv) == 2)  # the toy's micro-batch; the checks have 3 samples and 99
        return super().surrogate(logp_new, logp_old, adv)


@dataclass(frozen=True, kw_only=True)
class Memory(CPS):
    """Step weights that depend on what a variable of the module remembers."""

    paper: ClassVar[str] = "none"

    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Any:
        LATEST["calls"] += 1
        return super().transition(x, v, sigma, sigma_next)

    def step_weights(self, sigmas: Tensor) -> Tensor:
        return torch.linspace(1, 1 + LATEST["calls"] // 5, len(sigmas) - 1)


@dataclass(frozen=True, kw_only=True)
class Hidden(CPS):
    """A pull of the step's mean to 0 inside the log-probability: a penalty that no KL policy names."""

    paper: ClassVar[str] = "none"
    pull: float = 0.1

    def log_prob(self, step: Any, x_next: Tensor) -> Tensor:
        return super().log_prob(step, x_next) - self.pull * (step.mean**2).flatten(1).mean(1)
