"""The optimizer steps of one update: losses of the trained steps, KL terms, gradients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.algorithm.advantages import Advantages
from bench.algorithm.gradients import KLProbe, added_norm, full_tensor, gradients
from bench.algorithm.optimizers import Optimizer
from bench.algorithm.ratio import Rescored, Rescorer, policy_loss, ratio_error
from bench.algorithm.rollout import Rollout
from bench.algorithm.sampling import micro_batches
from bench.algorithm.update_stats import Measured, MicroBatchStats, UpdateStats, read
from bench.algorithm.weights import (
    check_settings,
    check_weights,
    learning_rate,
    measured_step,
    optimizer_settings,
    weights_hash,
)
from bench.api import AnyMethod, Backbone, KLPolicy, KLStep, Method
from bench.core.budget import PROBE_EVERY, Budget
from bench.core.errors import BenchError, DivergedError
from bench.core.ledger import TRAIN_COST, Ledger, guidance_multiplicity
from bench.core.rewards import Rewards
from bench.core.rng import stream
from bench.core.world import SINGLE_PROCESS, World


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


@dataclass(frozen=True)
class Minibatch:
    """The samples of one optimizer step."""

    rows: Int[Tensor, "m"]
    first: bool
    """Whether this is the first optimizer step of the update, at which ratio and gradient norms are logged."""
    probe: KLProbe | None
    """Splits the gradient into the KL part and the rest; None: no split at this step."""


class Trained(Protocol):
    """The rollout of a kind of method."""

    @property
    def trained(self) -> int: ...
    @property
    def shared(self) -> bool: ...
    def step_name(self, n: int) -> int: ...
    def redistribute(self, samples: Int[Tensor, "m"], world: World) -> Self: ...


RolloutT = TypeVar("RolloutT", bound=Trained)
MethodT = TypeVar("MethodT", bound=AnyMethod)


@dataclass(frozen=True)
class Updater(ABC, Generic[RolloutT, MethodT]):
    """The optimizer steps of an update; a subclass has the loss of its kind of method."""

    backbone: Backbone
    method: MethodT
    kl_policy: KLPolicy
    optimizer: Optimizer
    config: UpdateConfig
    ledger: Ledger

    def __call__(
        self, rollout: RolloutT, rewards: Rewards, kl_state: Mapping[str, Any], update: int
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
            for n in range(rollout.trained):
                measured = minibatch.first and rollout.shared
                before = gradients(self.backbone) if measured else []
                terms = self._backward(rollout, advantages, n, minibatch, self.kl_policy.weights(state), stats)
                if measured:
                    stats.grad_norm_of_step[rollout.step_name(n)] = added_norm(self.backbone, before, world)
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
        rollout: RolloutT,
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
        transitions = float(advantages.keep[rows].sum()) * rollout.trained
        if not transitions:
            raise DivergedError("select keeps no sample of a minibatch: use fewer minibatches, or keep more samples.")
        local = []
        for part in self.config.world.local_items(split_micro_batches(rows, self.config.budget)):
            policy, kl, measured = self._loss(rollout, advantages, n, part, kl_weights)
            if minibatch.probe is not None and kl is not None:
                minibatch.probe.add(kl / transitions)
            ((policy if kl is None else policy + kl) / transitions).backward()
            local.append(measured)
        terms: dict[str, float] = dict.fromkeys(kl_weights, 0.0)
        for micro_batch in self.config.world.gather_in_order(read(local)):
            self._record(micro_batch, rollout.step_name(n), stats, minibatch.first)
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
        if micro_batch.references:
            self.ledger.spend("nfe_anchor", micro_batch.references * micro_batch.samples * branches)
        if first and micro_batch.ratio_error is not None:
            stats.ratio_error[step] = max(stats.ratio_error.get(step, 0.0), micro_batch.ratio_error)

    @abstractmethod
    def _loss(
        self, rollout: RolloutT, advantages: Advantages, n: int, rows: Tensor, kl_weights: Mapping[str, float]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""] | None, Measured]:
        """Policy loss and weighted KL, summed over the samples of one micro-batch, and their statistics."""

    def _step(self, update: int, settings: Sequence[Mapping[str, Any]], stats: UpdateStats) -> None:
        """Clip, check and apply the gradient, and record the step. `settings`: those of the optimizer at the start."""
        parameters, budget = list(self.backbone.parameters()), self.config.budget
        trained = [p for p in parameters if p.grad is not None]
        if not trained:
            raise BenchError("no trained parameter got a gradient: the policy is not the backbone's active adapter.")
        norm = float(full_tensor(torch.nn.utils.clip_grad_norm_(trained, budget.grad_clip)))
        if not math.isfinite(norm):
            raise DivergedError(f"gradient norm of update {update} is not finite: lower budget.lr.")
        where = f"in the loss of update {update} (advantages, select, transition, log_prob, the loss or divergence)"
        check_settings(self.optimizer, settings, self.config.culprit, where)
        check_weights(weights_hash(parameters), stats.weights_after, self.config.culprit, where)
        lr = learning_rate(self.optimizer)
        stats.step_rms.append(measured_step(self.optimizer, parameters, lr))
        stats.lr.append(lr)
        stats.grad_norm.append(norm)
        stats.grad_clipped += norm > budget.grad_clip
        stats.weights_after = weights_hash(parameters)
        self.ledger.spend("optimizer_steps", 1)


@dataclass(frozen=True)
class StepUpdater(Updater[Rollout, Method]):
    """The optimizer steps of an update on noisy steps.

    loss = mean over samples and trained steps of (step weight * sum over k of weight_k * policy_loss_k), plus the mean
    of each KL term times its weight before the tick of the controller.
    """

    def _loss(
        self, rollout: Rollout, advantages: Advantages, n: int, rows: Tensor, kl_weights: Mapping[str, float]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""] | None, Measured]:
        """Policy loss and weighted KL, summed over the samples of one micro-batch, and their statistics."""
        budget = self.config.budget
        rescored = Rescorer(self.backbone, self.method, budget.guidance, self.config.uncond_grad)(rollout, n, rows)
        pairs = zip(advantages.weights, advantages.adv[:, rows], strict=True)
        surrogate = torch.stack([w * policy_loss(self.method, rescored, adv) for w, adv in pairs]).sum(0)
        keep = advantages.keep[rows].to(surrogate.dtype)
        policy = (surrogate * rollout.weights(n, rows) * keep).sum()
        terms = self._kl_terms(rollout, n, rows, rescored, kl_weights)
        kl = None
        for name, kl_weight in kl_weights.items():
            weighted = kl_weight * (terms[name] * keep).sum()
            kl = weighted if kl is None else kl + weighted
        error = ratio_error(rescored.log_ratio).detach()
        measured = Measured(
            samples=len(rows),
            loss=(policy if kl is None else policy + kl).detach(),
            sums={"policy_loss": policy.detach(), "log_prob": rescored.new.detach().sum()},
            terms={name: value.detach().sum() for name, value in terms.items()},
            clipped=(error > self.method.clip_range).sum(),
            ratio_error=error.max(),
        )
        return policy, kl, measured

    def _kl_terms(
        self, rollout: Rollout, n: int, rows: Tensor, rescored: Rescored, names: Collection[str]
    ) -> dict[str, Tensor]:
        """The KL policy's terms with these names, per sample of one micro-batch."""
        if not names:
            return {}
        x, sigma, sigma_next, step, new, old, *_ = rescored
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
