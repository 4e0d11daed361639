"""One GRPO update from a method's parts: clipped surrogates of the trained steps, KL terms, optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench.algorithm.gradients import KLProbe, added_norm, full_tensor, gradients
from bench.algorithm.kl import KLPolicy
from bench.algorithm.optimizers import Optimizer
from bench.algorithm.rollout import Rollout
from bench.algorithm.sampling import micro_batches
from bench.api import Backbone, BenchError, Budget, Conditioning, DivergedError, Gaussian, Method, Rewards
from bench.core.budget import PROBE_EVERY
from bench.core.ledger import TRAIN_COST, Ledger, guidance_multiplicity
from bench.core.rng import stream
from bench.core.world import SINGLE_PROCESS, World


@dataclass(frozen=True)
class Advantages:
    """Who trains, and by how much: k advantages per sample with their weights, samples in the rollout's order."""

    adv: Float[Tensor, "k b"]
    weights: list[float]
    keep: Bool[Tensor, "b"]

    @classmethod
    def of(cls, method: Method, rewards: Rewards) -> Advantages:
        """Ask the method; shapes and finiteness are checked here, once, before any statistics."""
        rewards.check()
        name, (p, g) = type(method).__name__, next(iter(rewards.values())).shape
        adv = method.advantages(rewards)
        if adv.ndim != 3 or adv.shape[1:] != (p, g):
            raise BenchError(f"{name}.advantages returned {list(adv.shape)}: return [k, {p}, {g}].")
        if not torch.isfinite(adv).all():
            raise DivergedError(f"{name}.advantages is not finite: a group may be tied; add an epsilon to its std.")
        if len(adv) not in (1, len(rewards.weights)):
            raise BenchError(
                f"{name}.advantages returned {len(adv)} advantages: return one, or one per reward "
                f"({len(rewards.weights)}: {', '.join(rewards.weights)})."
            )
        keep = method.select(adv).flatten()
        if not keep.any():
            raise DivergedError(f"{name}.select keeps no sample of this round: nothing is left to train on.")
        return cls(adv.flatten(1), [1.0] if len(adv) == 1 else list(rewards.weights.values()), keep)


class Predictor(Protocol):
    """What scoring a transition asks of a backbone."""

    def velocity(
        self,
        x: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        cond: Conditioning,
        guidance: float,
        uncond_grad: bool = True,
    ) -> Float[Tensor, "b ..."]: ...


class Rescored(NamedTuple):
    """Stored transitions of one trained step under the policy of now; gradients flow into `step` and `new`."""

    x: Float[Tensor, "m ..."]
    sigma: Float[Tensor, "m"]
    sigma_next: Float[Tensor, "m"]
    step: Gaussian
    new: Float[Tensor, "m"]
    """Log-probability of the stored next latent now."""
    old: Float[Tensor, "m"]
    """The same as the rollout stored it."""

    @property
    def log_ratio(self) -> Float[Tensor, "m"]:
        return self.new.detach() - self.old


def rescore(
    backbone: Predictor,
    method: Method,
    rollout: Rollout,
    n: int,
    rows: Int[Tensor, "m"],
    guidance: float,
    uncond_grad: bool = True,
) -> Rescored:
    """Score these samples' transitions of trained step n again, in one call of the backbone."""
    i, at = int(rollout.view.steps[n]), rollout.places(rows)
    x = rollout.x[n][at]
    sigma, sigma_next = rollout.sigmas[i].expand(len(rows)), rollout.sigmas[i + 1].expand(len(rows))
    v = backbone.velocity(x, sigma, rollout.cond.take(rows.tolist()), guidance, uncond_grad)
    step = method.transition(x, v, sigma, sigma_next)
    new = method.log_prob(step, rollout.x_next[n][at])
    return Rescored(x, sigma, sigma_next, step, new, rollout.logp_old[n][at])


def ratio_error(log_ratio: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """|ratio - 1| of each transition."""
    return (torch.exp(log_ratio) - 1).abs()


def minibatches(budget: Budget, seed: int, index: int) -> list[Int[Tensor, "m"]]:
    """Samples of each optimizer step of an update: all in order for one, otherwise a split of a seeded permutation."""
    b = budget.prompts * budget.group_size
    if budget.minibatches == 1:
        return [torch.arange(b)]
    return list(torch.randperm(b, generator=stream(seed, "minibatches", index)).chunk(budget.minibatches))


def pieces(rows: Int[Tensor, "m"], budget: Budget) -> list[Int[Tensor, "k"]]:
    """The micro-batches of a minibatch."""
    return [rows[part] for part in micro_batches(len(rows), budget.micro_batch)]


@dataclass
class UpdateStats:
    """Sums over samples and trained steps of one update; `means` gives the averages."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    ratio_error: dict[int, float] = field(default_factory=dict)
    """Largest |ratio - 1| of each trained step before the first optimizer step of the update."""
    clipped: int = 0
    grad_norm: list[float] = field(default_factory=list)
    """Norm of each optimizer step's gradient before clipping."""
    grad_norm_of_step: dict[int, float] = field(default_factory=dict)
    """Norm of what each trained step adds to the gradient of the first optimizer step: its weight and KL included."""
    kl_gradient: dict[str, float] | None = None
    """Norms of the two parts of the first optimizer step's gradient, "kl" (weighted) and "policy" (all the rest)."""

    def add(self, **values: Tensor | float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def means(self) -> dict[str, float]:
        return {name: value / self.count for name, value in self.sums.items()}


@dataclass(frozen=True)
class MicroBatchStats:
    """What one micro-batch contributed to the logs: sums over its samples, float32 values as Python numbers."""

    samples: int
    loss: float
    sums: dict[str, float]
    """policy_loss and log_prob."""
    terms: dict[str, float]
    """KL terms by name."""
    clipped: int
    error: float
    """Largest |ratio - 1|."""


@dataclass(frozen=True)
class Updater:
    """Everything that stays the same from update to update.

    loss = mean over samples and trained steps of (step weight * sum over k of weight_k * surrogate_k), plus the mean
    of each KL term times its weight before the controller's tick.
    """

    backbone: Backbone
    method: Method
    policy: KLPolicy
    optimizer: Optimizer
    budget: Budget
    seed: int
    ledger: Ledger
    uncond_grad: bool = True
    """Whether gradients flow through the unconditional branch of guidance too."""
    probe_every: int = PROBE_EVERY
    """Updates between two splits of the gradient into the KL's part and the rest; 0: never."""
    world: World = SINGLE_PROCESS
    """The processes that share the micro-batches."""

    def __call__(
        self, rollout: Rollout, rewards: Rewards, kl_state: Mapping[str, Any], index: int
    ) -> tuple[dict[str, Any], UpdateStats]:
        """Train on one rollout. Returns the KL policy's next state and what happened."""
        credit, state, log = Advantages.of(self.method, rewards), dict(kl_state), UpdateStats()
        parts = minibatches(self.budget, self.seed, index)
        if len(parts) > 1 and self.world.shares > 1:
            own = torch.cat([piece for rows in parts for piece in self.world.mine(pieces(rows, self.budget))])
            rollout = rollout.holding(own.sort().values, self.world)
        for number, rows in enumerate(parts):
            self.optimizer.zero_grad(set_to_none=True)
            first = number == 0
            probe = KLProbe(self.backbone, self.world) if first and self._probes(index) else None
            for n in range(len(rollout.view.steps)):
                before = gradients(self.backbone) if first else []
                terms = self._backward(rollout, credit, n, rows, self.policy.weights(state), log, first, probe)
                if first:
                    log.grad_norm_of_step[int(rollout.view.steps[n])] = added_norm(self.backbone, before, self.world)
                state = self.policy.next_state(state, terms)
            self.world.sum_gradients(self.backbone.parameters())
            if probe is not None:
                log.kl_gradient = probe.norms()
            log.grad_norm.append(self._step(index))
        self.ledger.spend("updates", 1)
        return state, log

    def _probes(self, index: int) -> bool:
        return self.probe_every > 0 and index % self.probe_every == self.probe_every - 1

    def _backward(
        self,
        rollout: Rollout,
        credit: Advantages,
        n: int,
        rows: Tensor,
        factors: Mapping[Any, float],
        log: UpdateStats,
        first: bool,
        probe: KLProbe | None,
    ) -> dict[str, float]:
        """Gradient of trained step n over this process's micro-batches of one minibatch; the means of its KL terms.

        What is logged is added up over all micro-batches in their order, so that it does not depend on who did which.
        """
        trained = float(credit.keep[rows].sum()) * len(rollout.view.steps)
        if not trained:
            raise DivergedError("select keeps no sample of a minibatch: use fewer minibatches, or keep more samples.")
        own = []
        for piece in self.world.mine(pieces(rows, self.budget)):
            policy_loss, kl, found = self._loss(rollout, credit, n, piece, factors)
            if probe is not None and kl is not None:
                probe.add(kl / trained)
            ((policy_loss if kl is None else policy_loss + kl) / trained).backward()
            own.append(found)
        terms: dict[str, float] = dict.fromkeys(factors, 0.0)
        for found in self.world.in_order(own):
            self._note(found, int(rollout.view.steps[n]), log, first)
            for name, value in found.terms.items():
                terms[name] += value / len(rows)
        return terms

    def _note(self, found: MicroBatchStats, step: int, log: UpdateStats, first: bool) -> None:
        """Add one micro-batch to the log and to the ledger."""
        if not math.isfinite(found.loss):
            raise DivergedError(f"loss at step {step} is not finite: lower budget.lr, or look at the rewards.")
        self.ledger.spend("nfe_train", TRAIN_COST * found.samples * guidance_multiplicity(self.budget.guidance))
        log.count += found.samples
        log.clipped += found.clipped
        log.add(**found.sums, **{f"kl_{name}": value for name, value in found.terms.items()})
        if first:
            log.ratio_error[step] = max(log.ratio_error.get(step, 0.0), found.error)

    def _loss(
        self, rollout: Rollout, credit: Advantages, n: int, rows: Tensor, factors: Mapping[Any, float]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""] | None, MicroBatchStats]:
        """Policy loss and weighted KL, summed over the samples of one micro-batch, and what is logged of them."""
        again = rescore(self.backbone, self.method, rollout, n, rows, self.budget.guidance, self.uncond_grad)
        x, sigma, sigma_next, step, new, old = again
        pairs = zip(credit.weights, credit.adv[:, rows], strict=True)
        surrogate = torch.stack([w * self.method.surrogate(new, old, adv) for w, adv in pairs]).sum(0)
        counts = credit.keep[rows].to(surrogate.dtype)
        policy_loss = (surrogate * rollout.view.weight[n] * counts).sum()
        terms: dict[str, Tensor] = {}
        kl = None
        for name, factor in factors.items():
            if name == "stepwise":
                terms[name] = old - new
            else:
                (velocities,) = rollout.anchors.values()
                reference = self.method.transition(x, velocities[n][rollout.places(rows)], sigma, sigma_next)
                terms[name] = self.method.divergence(step, reference, sigma, sigma_next)
            weighted = factor * (terms[name] * counts).sum()
            kl = weighted if kl is None else kl + weighted
        error = ratio_error(again.log_ratio)
        found = MicroBatchStats(
            samples=len(rows),
            loss=float((policy_loss if kl is None else policy_loss + kl).detach()),
            sums={"policy_loss": float(policy_loss.detach()), "log_prob": float(new.detach().sum())},
            terms={name: float(value.detach().sum()) for name, value in terms.items()},
            clipped=int((error > self.method.clip_range).sum()),
            error=float(error.max()),
        )
        return policy_loss, kl, found

    def _step(self, index: int) -> float:
        """Clip, check and apply the gradient; its norm before clipping."""
        trained = [p for p in self.backbone.parameters() if p.grad is not None]
        if not trained:
            raise BenchError("no trained parameter got a gradient: the policy is not the backbone's active adapter.")
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(trained, self.budget.grad_clip))
        if not torch.isfinite(norm):
            raise DivergedError(f"gradient norm of update {index} is not finite: lower budget.lr.")
        self.optimizer.step()
        self.ledger.spend("optimizer_steps", 1)
        return float(norm)
