"""What every row of a suite shares: the budget and the advantage rule. Nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from bench.core.errors import BenchError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every row of a suite spends, no more and no less (protocol, "Equal budget")."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    updates: int
    """Rounds: one rollout and `minibatches` optimizer steps each."""
    prompts: int
    """Prompts per round."""
    group_size: int
    """Samples per prompt."""
    steps: int
    """Sampling steps of a rollout."""
    train_steps: int
    """How many of the noisy steps of each rollout are trained."""
    shift: float
    """Shift of the sigma schedule."""
    guidance: float
    """Classifier-free guidance scale; 1 means no unconditional branch."""
    minibatches: int = 1
    """Optimizer steps per rollout. With 1 the importance ratio is 1 and the clip never acts."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon takes the matrices (all of a LoRA's weights) and leaves the other parameters to AdamW."""
    lr: float
    weight_decay: float = 1e-4
    grad_clip: float = 1.0
    """Largest norm of the gradient of one optimizer step."""
    micro_batch: int = 64
    """Samples per forward pass, in the rollout and in training: fixed by the suite, never by the machine."""

    def __post_init__(self) -> None:
        for name in ("updates", "prompts", "group_size", "steps", "train_steps", "minibatches", "micro_batch"):
            if getattr(self, name) < 1:
                raise BenchError(f"budget.{name} is {getattr(self, name)}: set it to at least 1.")
        for name in ("shift", "lr", "grad_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise BenchError(f"budget.{name} is {getattr(self, name)}: set it to a finite value above 0.")
        if not 0 <= self.weight_decay < math.inf:
            raise BenchError(f"budget.weight_decay is {self.weight_decay}: set it to a finite value of at least 0.")
        if not 1 <= self.guidance < math.inf:
            raise BenchError(f"budget.guidance is {self.guidance}: 1 means no guidance, larger values guide.")
        self._check_shape()

    def _check_shape(self) -> None:
        if self.group_size < 2:
            raise BenchError("budget.group_size is 1, so every advantage is 0: a group needs at least 2 samples.")
        if self.train_steps > self.steps:
            raise BenchError(
                f"budget.train_steps ({self.train_steps}) exceeds budget.steps ({self.steps}): "
                "train at most all steps."
            )
        samples = self.prompts * self.group_size
        if samples % self.minibatches:
            raise BenchError(f"budget: {samples} samples do not split into {self.minibatches} minibatches.")
        share = samples // self.minibatches
        if share > self.micro_batch and share % self.micro_batch:
            raise BenchError(
                f"budget: minibatches of {share} samples do not split into whole micro-batches of {self.micro_batch}: "
                f"choose a budget.micro_batch that divides {share}."
            )


#: Names that belong to the suite: a method that declares one of them could spend more than the others.
RESERVED_FIELDS = frozenset(
    {
        *(field.name for field in fields(Budget)),
        *("seed", "seeds", "batch_size", "learning_rate", "num_generations", "num_steps", "sampling_steps", "budget"),
    }
)


PROBE_EVERY = 3
"""Updates between two measurements of the KL term's share of the gradient: coprime to the usual refreshes of an
anchor (10), so that all of its ages are sampled."""


@dataclass(frozen=True)
class AdvantageRule:
    """How rewards become advantages: (r - group mean) / (max(std, floor) + eps), clipped to [-clip, clip].

    The closed division has one rule for all rows; the defaults are its. The other options belong to the presets.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    std: Literal["group", "global", "each"] = "group"
    """Std of the weighted sum in each group or over the round; or one advantage for each reward, by its group std."""
    ddof: int = 0
    eps: float = 1e-4
    clip: float = 5.0
    floor: float | None = None
    """Smallest std that divides; None: whatever it is."""

    def __post_init__(self) -> None:
        if self.ddof not in (0, 1):
            raise BenchError(f"advantage.ddof is {self.ddof}: 0 divides by the group size, 1 by one less.")
        if not 0 <= self.eps < math.inf:
            raise BenchError(f"advantage.eps is {self.eps}: set it to a finite value of at least 0.")
        if self.floor is not None and not 0 < self.floor < math.inf:
            raise BenchError(f"advantage.floor is {self.floor}: set it to a finite value above 0, or leave it out.")
        if not 0 < self.clip < math.inf:
            raise BenchError(f"advantage.clip is {self.clip}: set it to a finite value above 0.")
