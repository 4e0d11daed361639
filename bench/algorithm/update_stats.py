"""Statistics of one update and of its micro-batches, for the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class UpdateStats:
    """Statistics of one update."""

    sums: dict[str, float] = field(default_factory=dict)
    """Sums over samples and trained steps by name; `means` gives the averages."""
    count: int = 0
    """Number of summands."""
    ratio_error: dict[int, float] = field(default_factory=dict)
    """Largest |ratio - 1| of each trained step before the first optimizer step of the update."""
    clipped: int = 0
    """Number of transitions whose ratio is outside of the clip range."""
    grad_norm: list[float] = field(default_factory=list)
    """Norm of each optimizer step's gradient before clipping."""
    grad_clipped: int = 0
    """Number of optimizer steps whose gradient was scaled down to `budget.grad_clip`."""
    lr: list[float] = field(default_factory=list)
    """Learning rate of the optimizer at each step."""
    step_rms: list[float] = field(default_factory=list)
    """Root mean square of the change of the weights in each optimizer step, in units of the learning rate."""
    kl_ticks: list[dict[str, float]] = field(default_factory=list)
    """Means of the KL terms at each tick, which decide the next state of the KL policy."""
    weights_before: str = ""
    """Hash of the trained weights before the first optimizer step."""
    weights_after: str = ""
    """Hash of the trained weights after the last one."""
    grad_norm_of_step: dict[int, float] = field(default_factory=dict)
    """Norm of the gradient that each trained step adds at the first optimizer step, with its weight and its KL; {}
    where each prompt has its own steps."""
    kl_gradient: dict[str, float] | None = None
    """Norms of the parts of the gradient at the first optimizer step: "kl" (weighted) and "policy" (the rest)."""

    def add(self, **values: float) -> None:
        """Add to the sums."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def ratio_fields(self) -> dict[str, float]:
        """Fields of a log line about the importance ratio; {} for a loss without one."""
        if not self.ratio_error:
            return {}
        return {"ratio_error": max(self.ratio_error.values()), "clipped_share": self.clipped / self.count}

    def means(self) -> dict[str, float]:
        """Averages over samples and trained steps."""
        return {name: value / self.count for name, value in self.sums.items()}


@dataclass(frozen=True)
class MicroBatchStats:
    """Sums over the samples of one micro-batch, for logging; float32 values as Python numbers."""

    samples: int
    """Number of samples."""
    loss: float
    """The whole loss: policy loss and weighted KL terms."""
    sums: dict[str, float]
    """policy_loss, and log_prob where there is one."""
    terms: dict[str, float]
    """KL terms by name, without their weights."""
    clipped: int
    """Number of samples whose ratio is outside of the clip range."""
    ratio_error: float | None
    """Largest |ratio - 1|; None for a loss without a ratio."""
    references: int
    """Velocities of anchors for each sample that the loss has computed."""


@dataclass(frozen=True)
class Measured:
    """What becomes the statistics of one micro-batch: scalars without a gradient."""

    samples: int
    loss: Tensor
    sums: dict[str, Tensor]
    terms: dict[str, Tensor]
    clipped: Tensor | None = None
    ratio_error: Tensor | None = None
    references: int = 0

    def scalars(self) -> list[Tensor]:
        """All scalars, in an order that micro-batches of one method share."""
        ratio = [each for each in (self.clipped, self.ratio_error) if each is not None]
        return [self.loss, *self.sums.values(), *self.terms.values(), *ratio]

    def with_numbers(self, numbers: Sequence[float]) -> MicroBatchStats:
        """The statistics, with the values of `scalars` as numbers."""
        values = iter(numbers)
        return MicroBatchStats(
            samples=self.samples,
            loss=next(values),
            sums={name: next(values) for name in self.sums},
            terms={name: next(values) for name in self.terms},
            clipped=0 if self.clipped is None else int(next(values)),
            ratio_error=None if self.ratio_error is None else next(values),
            references=self.references,
        )


def read(measured: Sequence[Measured]) -> list[MicroBatchStats]:
    """The statistics of micro-batches, read from the device at once."""
    if not measured:
        return []
    rows = [torch.stack([scalar.double() for scalar in each.scalars()]) for each in measured]
    return [each.with_numbers(row) for each, row in zip(measured, torch.stack(rows).tolist(), strict=True)]
