"""What all rows of a suite share: the budget, and the settings of the advantage rule. Nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from bench.core.errors import BenchError
from bench.core.limits import STEPS, UPDATES


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What each row of a suite spends, exactly: `Ledger.settle` compares it with the counts after every update."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    updates: int
    """Number of updates. An update is one rollout with its `minibatches` optimizer steps."""
    prompts: int
    """Prompts per update."""
    group_size: int
    """Samples per prompt."""
    steps: int
    """Sampling steps of a rollout."""
    train_steps: int
    """Trained steps of each rollout, drawn from its noisy steps."""
    shift: float
    """Shift of the sigma schedule (`bench.flow.sigma_schedule`), above 0."""
    guidance: float
    """Classifier-free guidance scale; 1 means no unconditional branch."""
    minibatches: int = 1
    """Optimizer steps per update. With 1 the importance ratio is 1 and the clip has no effect."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon for matrices (all weights of a LoRA), AdamW for the other parameters."""
    lr: float
    """Learning rate."""
    weight_decay: float = 1e-4
    """Weight decay of the optimizer."""
    grad_clip: float = 1.0
    """Largest norm of the gradient of one optimizer step; a larger gradient is scaled down to it."""
    micro_batch: int = 64
    """Samples per forward pass, in the rollout and in training. The suite sets it, the machine does not."""

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
        if self.updates > UPDATES:
            raise BenchError(f"budget.updates is {self.updates}: set it to at most {UPDATES}.")
        if self.steps > STEPS:
            raise BenchError(f"budget.steps is {self.steps}: set it to at most {STEPS}.")
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
        minibatch = samples // self.minibatches
        if minibatch > self.micro_batch and minibatch % self.micro_batch:
            raise BenchError(
                f"budget: minibatches of {minibatch} samples do not split into whole micro-batches of "
                f"{self.micro_batch}: choose a budget.micro_batch that divides {minibatch}."
            )


RESERVED_FIELDS = frozenset(
    {
        *(field.name for field in fields(Budget)),
        *("seed", "seeds", "batch_size", "learning_rate", "num_generations", "num_steps", "sampling_steps", "budget"),
    }
)
"""Names that belong to the suite: a method with a field of this name could spend more than the others."""

PROBE_EVERY = 3
"""Updates between two measurements of the KL term's part of the gradient. 3 is coprime to the usual 10 updates between
refreshes of an anchor, so the measurements cover all ages of the anchor."""


@dataclass(frozen=True)
class AdvantageSettings:
    """How rewards become advantages: (r - group mean) / (max(std, floor) + eps), clipped to [-clip, clip].

    The closed division has one rule for all rows, which is the default. The other options are for the presets that
    reproduce a paper.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    std: Literal["group", "global", "each"] = "group"
    """Which std divides. `group`: of the weighted sum in each group. `global`: of the weighted sum over the update.
    `each`: one advantage per reward, by its own std in each group."""
    ddof: int = 0
    """0: the std divides by the group size. 1: by one less."""
    eps: float = 1e-4
    """Added to the std."""
    clip: float = 5.0
    """Largest absolute advantage."""
    floor: float | None = None
    """Smallest std that divides; None: no limit."""

    def __post_init__(self) -> None:
        if self.ddof not in (0, 1):
            raise BenchError(f"advantage.ddof is {self.ddof}: 0 divides by the group size, 1 by one less.")
        if not 0 <= self.eps < math.inf:
            raise BenchError(f"advantage.eps is {self.eps}: set it to a finite value of at least 0.")
        if self.floor is not None and not 0 < self.floor < math.inf:
            raise BenchError(f"advantage.floor is {self.floor}: set it to a finite value above 0, or leave it out.")
        if not 0 < self.clip < math.inf:
            raise BenchError(f"advantage.clip is {self.clip}: set it to a finite value above 0.")
