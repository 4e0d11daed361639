"""The optimizer steps of one GRPO update: clipped surrogates of the trained steps, KL terms, gradients."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench.algorithm.gradients import KLProbe, added_norm, full_tensor, gradients
from bench.algorithm.optimizers import Optimizer
from bench.algorithm.ratio import Rescored, Rescorer, ratio_error
from bench.algorithm.rollout import Rollout
from bench.algorithm.sampling import micro_batches
from bench.algorithm.weights import (
    check_settings,
    check_weights,
    learning_rate,
    measured_step,
    optimizer_settings,
    weights_hash,
)
from bench.api import Backbone, KLPolicy, KLStep, Method
from bench.core.budget import PROBE_EVERY, Budget
from bench.core.errors import BenchError, DivergedError
from bench.core.ledger import TRAIN_COST, Ledger, guidance_multiplicity
from bench.core.rewards import Rewards
from bench.core.rng import stream
from bench.core.world import SINGLE_PROCESS, World


@dataclass(frozen=True)
class Advantages:
    """Advantages of the b samples of an update, in their order."""

    adv: Float[Tensor, "k b"]
    """One advantage per sample, or one per reward."""
    weights: list[float]
    """Weight of each of the k advantages in the loss."""
    keep: Bool[Tensor, "b"]
    """Marks the samples that train."""

    @classmethod
    def compute(cls, method: Method, rewards: Rewards, closed: bool = False) -> Advantages:
        """The method's advantages and selection, after checks of their shapes and that all values are finite.

        `closed`: those of `Method`, whatever the class has: the row stands in the closed division.
        """
        rewards.check()
        name, (p, g) = type(method).__name__, next(iter(rewards.values())).shape
        adv = Method.advantages(method, rewards) if closed else method.advantages(rewards)
        if adv.ndim != 3 or adv.shape[1:] != (p, g):
            raise BenchError(f"{name}.advantages returned {list(adv.shape)}: return [k, {p}, {g}].")
        if not torch.isfinite(adv).all():
            raise DivergedError(f"{name}.advantages is not finite: a group may be tied; add an epsilon to its std.")
        if len(adv) not in (1, len(rewards.weights)):
            raise BenchError(
                f"{name}.advantages returned {len(adv)} advantages: return one, or one per reward "
                f"({len(rewards.weights)}: {', '.join(rewards.weights)})."
            )
        keep = (Method.select(method, adv) if closed else method.select(adv)).flatten()
        if not keep.any():
            raise DivergedError(f"{name}.select keeps no sample of this update: nothing is left to train on.")
        return cls(adv.flatten(1), [1.0] if len(adv) == 1 else list(rewards.weights.values()), keep)


def minibatches(budget: Budget, seed: int, update: int) -> list[Int[Tensor, "m"]]:
    """Samples of each optimizer step of an update: all in order for one step, else a split of a seeded permutation."""
    b = budget.prompts * budget.group_size
    if budget.minibatches == 1:
        return [torch.arange(b)]
    return list(torch.randperm(b, generator=stream(seed, "minibatches", update)).chunk(budget.minibatches))


def split_micro_batches(rows: Int[Tensor, "m"], budget: Budget) -> list[Int[Tensor, "k"]]:
    """The micro-batches of a minibatch."""
    return [rows[part] for part in micro_batches(len(rows), budget.micro_batch)]


@dataclass(frozen=True)
class UpdateConfig:
    """The settings of a suite that the optimizer steps depend on."""

    budget: Budget
    seed: int
    uncond_grad: bool = True
    """Whether gradients flow through the unconditional branch of guidance too."""
    probe_every: int = PROBE_EVERY
    """Updates between two splits of the gradient into the KL part and the rest; 0: never."""
    world: World = SINGLE_PROCESS
    """The processes over which the micro-batches are distributed."""
    closed: bool = False
    """Whether the row stands in the closed division, whose credit is that of the suite."""
    culprit: str = "a plug-in"
    """Row, method and backbone, for the error of a plug-in that changes what only the harness may change."""

    def probes(self, update: int) -> bool:
        """Whether the gradient of this update is split into the KL part and the rest."""
        return self.probe_every > 0 and update % self.probe_every == self.probe_every - 1


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
    """Norm of the gradient that each trained step adds at the first optimizer step, with its weight and its KL."""
    kl_gradient: dict[str, float] | None = None
    """Norms of the parts of the gradient at the first optimizer step: "kl" (weighted) and "policy" (the rest)."""

    def add(self, **values: Tensor | float) -> None:
        """Add to the sums."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

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
    """policy_loss and log_prob."""
    terms: dict[str, float]
    """KL terms by name, without their weights."""
    clipped: int
    """Number of samples whose ratio is outside of the clip range."""
    ratio_error: float
    """Largest |ratio - 1|."""


@dataclass(frozen=True)
class Minibatch:
    """The samples of one optimizer step."""

    rows: Int[Tensor, "m"]
    first: bool
    """Whether this is the first optimizer step of the update, at which ratio and gradient norms are logged."""
    probe: KLProbe | None
    """Splits the gradient into the KL part and the rest; None: no split at this step."""


@dataclass(frozen=True)
class Updater:
    """The optimizer steps of an update.

    loss = mean over samples and trained steps of (step weight * sum over k of weight_k * surrogate_k), plus the mean
    of each KL term times its weight before the tick of the controller.
    """

    backbone: Backbone
    method: Method
    kl_policy: KLPolicy
    optimizer: Optimizer
    config: UpdateConfig
    ledger: Ledger

    def __call__(
        self, rollout: Rollout, rewards: Rewards, kl_state: Mapping[str, Any], update: int
    ) -> tuple[dict[str, Any], UpdateStats]:
        """Train on one rollout. Returns the KL policy's next state and the statistics of the update."""
        world, budget = self.config.world, self.config.budget
        stats = UpdateStats(weights_before=weights_hash(self.backbone.parameters()))
        stats.weights_after = stats.weights_before
        settings = optimizer_settings(self.optimizer)
        advantages, state = Advantages.compute(self.method, rewards, self.config.closed), dict(kl_state)
        parts = minibatches(budget, self.config.seed, update)
        if len(parts) > 1 and world.dp_size > 1:
            local = [rows for part in parts for rows in world.local_items(split_micro_batches(part, budget))]
            rollout = rollout.redistribute(torch.cat(local).sort().values, world)
        for number, rows in enumerate(parts):
            probe = KLProbe(self.backbone, world) if number == 0 and self.config.probes(update) else None
            minibatch = Minibatch(rows, number == 0, probe)
            self.optimizer.zero_grad(set_to_none=True)
            for n in range(len(rollout.view.steps)):
                before = gradients(self.backbone) if minibatch.first else []
                terms = self._backward(rollout, advantages, n, minibatch, self.kl_policy.weights(state), stats)
                if minibatch.first:
                    step = int(rollout.view.steps[n])
                    stats.grad_norm_of_step[step] = added_norm(self.backbone, before, world)
                stats.kl_ticks.append(terms)
                state = self.kl_policy.next_state(state, terms)
            world.sum_gradients(self.backbone.parameters())
            if probe is not None:
                stats.kl_gradient = probe.norms()
            self._step(update, settings, stats)
        self.ledger.spend("updates", 1)
        return state, stats

    def _backward(
        self,
        rollout: Rollout,
        advantages: Advantages,
        n: int,
        minibatch: Minibatch,
        kl_weights: Mapping[str, float],
        stats: UpdateStats,
    ) -> dict[str, float]:
        """Add the gradient of trained step n over this process's micro-batches; returns the means of the KL terms.

        Logged values are summed over all micro-batches in their order, so they do not depend on the number of
        processes.
        """
        rows = minibatch.rows
        transitions = float(advantages.keep[rows].sum()) * len(rollout.view.steps)
        if not transitions:
            raise DivergedError("select keeps no sample of a minibatch: use fewer minibatches, or keep more samples.")
        local = []
        for part in self.config.world.local_items(split_micro_batches(rows, self.config.budget)):
            policy_loss, kl, micro_batch = self._loss(rollout, advantages, n, part, kl_weights)
            if minibatch.probe is not None and kl is not None:
                minibatch.probe.add(kl / transitions)
            ((policy_loss if kl is None else policy_loss + kl) / transitions).backward()
            local.append(micro_batch)
        terms: dict[str, float] = dict.fromkeys(kl_weights, 0.0)
        for micro_batch in self.config.world.gather_in_order(local):
            self._record(micro_batch, int(rollout.view.steps[n]), stats, minibatch.first)
            for name, value in micro_batch.terms.items():
                terms[name] += value / len(rows)
        return terms

    def _record(self, micro_batch: MicroBatchStats, step: int, stats: UpdateStats, first: bool) -> None:
        """Add one micro-batch to the statistics and to the ledger."""
        if not math.isfinite(micro_batch.loss):
            raise DivergedError(f"loss at step {step} is not finite: lower budget.lr, or look at the rewards.")
        branches = guidance_multiplicity(self.config.budget.guidance)
        self.ledger.spend("nfe_train", TRAIN_COST * micro_batch.samples * branches)
        stats.count += micro_batch.samples
        stats.clipped += micro_batch.clipped
        stats.add(**micro_batch.sums, **{f"kl_{name}": value for name, value in micro_batch.terms.items()})
        if first:
            stats.ratio_error[step] = max(stats.ratio_error.get(step, 0.0), micro_batch.ratio_error)

    def _loss(
        self, rollout: Rollout, advantages: Advantages, n: int, rows: Tensor, kl_weights: Mapping[str, float]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""] | None, MicroBatchStats]:
        """Policy loss and weighted KL, summed over the samples of one micro-batch, and their statistics."""
        budget = self.config.budget
        rescored = Rescorer(self.backbone, self.method, budget.guidance, self.config.uncond_grad)(rollout, n, rows)
        new, old = rescored.new, rescored.old
        pairs = zip(advantages.weights, advantages.adv[:, rows], strict=True)
        surrogate = torch.stack([w * self.method.surrogate(new, old, adv) for w, adv in pairs]).sum(0)
        keep = advantages.keep[rows].to(surrogate.dtype)
        policy_loss = (surrogate * rollout.view.weight[n] * keep).sum()
        terms = self._kl_terms(rollout, n, rows, rescored, kl_weights)
        kl = None
        for name, kl_weight in kl_weights.items():
            weighted = kl_weight * (terms[name] * keep).sum()
            kl = weighted if kl is None else kl + weighted
        error = ratio_error(rescored.log_ratio)
        stats = MicroBatchStats(
            samples=len(rows),
            loss=float((policy_loss if kl is None else policy_loss + kl).detach()),
            sums={"policy_loss": float(policy_loss.detach()), "log_prob": float(new.detach().sum())},
            terms={name: float(value.detach().sum()) for name, value in terms.items()},
            clipped=int((error > self.method.clip_range).sum()),
            ratio_error=float(error.max()),
        )
        return policy_loss, kl, stats

    def _kl_terms(
        self, rollout: Rollout, n: int, rows: Tensor, rescored: Rescored, names: Collection[str]
    ) -> dict[str, Tensor]:
        """The KL policy's terms with these names, per sample of one micro-batch."""
        if not names:
            return {}
        x, sigma, sigma_next, step, new, old = rescored
        positions = rollout.local_positions(rows)
        references = {
            name: self.method.transition(x, velocities[n][positions], sigma, sigma_next)
            for name, velocities in rollout.anchors.items()
        }
        divergences = {
            name: self.method.divergence(step, reference, sigma, sigma_next) for name, reference in references.items()
        }
        terms = dict(self.kl_policy.terms(KLStep(new, old, step, references, divergences, sigma, sigma_next)))
        shapes = {name: list(values.shape) for name, values in terms.items()}
        if shapes != {name: [len(rows)] for name in names}:
            expected = ", ".join(f"{name} [{len(rows)}]" for name in names)
            raise BenchError(
                f"{type(self.kl_policy).__name__}.terms returned {shapes}: return one value per sample for each name "
                f"of its weights ({expected})."
            )
        return terms

    def _step(self, update: int, settings: Sequence[Mapping[str, Any]], stats: UpdateStats) -> None:
        """Clip, check and apply the gradient, and record the step. `settings`: those of the optimizer at the start."""
        parameters, budget = list(self.backbone.parameters()), self.config.budget
        trained = [p for p in parameters if p.grad is not None]
        if not trained:
            raise BenchError("no trained parameter got a gradient: the policy is not the backbone's active adapter.")
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(trained, budget.grad_clip))
        if not torch.isfinite(norm):
            raise DivergedError(f"gradient norm of update {update} is not finite: lower budget.lr.")
        where = f"in the loss of update {update} (advantages, select, transition, log_prob, surrogate or divergence)"
        check_settings(self.optimizer, settings, self.config.culprit, where)
        check_weights(weights_hash(parameters), stats.weights_after, self.config.culprit, where)
        lr = learning_rate(self.optimizer)
        stats.step_rms.append(measured_step(self.optimizer, parameters, lr))
        stats.lr.append(lr)
        stats.grad_norm.append(float(norm))
        stats.grad_clipped += float(norm) > budget.grad_clip
        stats.weights_after = weights_hash(parameters)
        self.ledger.spend("optimizer_steps", 1)
