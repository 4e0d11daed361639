"""Sample trajectories: the method gives the kernel, the harness draws the noise and keeps the steps that train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.algorithm.sampling import micro_batches, rounded_latents
from bench.api import Backbone, BenchError, Budget, Conditioning, DivergedError, Method, StepView
from bench.core.ledger import Ledger, guidance_multiplicity
from bench.core.rng import normal, stream
from bench.core.world import SINGLE_PROCESS, World
from bench.flow import euler, sigma_schedule


def injected_variance(method: Method, sigmas: Float[Tensor, "t1"]) -> Float[Tensor, "t"]:
    """Variance that each step of the schedule injects per latent element."""
    sigma, sigma_next = sigmas[:-1].double(), sigmas[1:].double()
    zero = torch.zeros(len(sigma), 1, dtype=torch.float64)
    return method.transition(zero, zero, sigma, sigma_next).std.double() ** 2


@dataclass(frozen=True)
class RolloutConfig:
    """What a rollout needs to know of the suite."""

    budget: Budget
    decode: Literal["predicted_x0", "final_latent"]
    group_noise: Literal["distinct", "shared"]
    seed: int
    train_last: bool = True
    """Whether the last step may train where it is noisy."""
    world: World = SINGLE_PROCESS
    """The processes that share the samples."""


@dataclass(frozen=True)
class Rollout:
    """Trained steps of trajectories, and where they end: of the samples that this process holds.

    Samples are numbered in prompt order ([p, g] flattened); `b` counts those of `own`.
    """

    sigmas: Float[Tensor, "t1"]
    view: StepView
    x: Float[Tensor, "n b ..."]
    x_next: Float[Tensor, "n b ..."]
    logp_old: Float[Tensor, "n b"]
    anchors: dict[str, Float[Tensor, "n b ..."]]
    """Velocities of each anchor at the trained steps."""
    x0: Float[Tensor, "b ..."]
    cond: Conditioning
    """Of all samples of the round."""
    own: Int[Tensor, "b"]
    """Numbers of the samples held here, ascending; all of them for one process."""

    def places(self, samples: Int[Tensor, "m"]) -> Int[Tensor, "m"]:
        """Where these samples, all held here, stand in the tensors."""
        return torch.searchsorted(self.own, samples)

    def holding(self, samples: Int[Tensor, "m"], world: World) -> Rollout:
        """The same round with these samples (ascending) held here in place of `own`: every process must ask at once.

        One step of one tensor is exchanged at a time, so that no process ever holds the whole round.
        """

        def exchange(part: Tensor) -> Tensor:
            whole = part.new_empty(len(self.cond.text), *part.shape[1:])
            for own, values in world.everyone((self.own, part)):
                whole[own] = values
            return whole[samples]

        def steps(tensor: Tensor) -> Tensor:
            return torch.stack([exchange(part) for part in tensor])

        return Rollout(
            self.sigmas,
            self.view,
            steps(self.x),
            steps(self.x_next),
            steps(self.logp_old),
            {name: steps(tensor) for name, tensor in self.anchors.items()},
            exchange(self.x0),
            self.cond,
            samples,
        )


def noisy_steps(method: Method, sigmas: Tensor, settings: RolloutConfig, update: int) -> Tensor:
    """Which steps are noisy [t]: the method's choice, less those whose kernel injects nothing (CPS's last one).

    Where the predicted x0 is decoded, the last step is not noisy either.
    """
    steps = len(sigmas) - 1
    noisy = method.stochastic(sigmas, update, stream(settings.seed, "stochastic", update))
    if noisy.shape != (steps,) or noisy.dtype != torch.bool:
        raise BenchError(
            f"{type(method).__name__}.stochastic returned {noisy.dtype} {list(noisy.shape)}: return bool [{steps}]."
        )
    noisy = noisy & (injected_variance(method, sigmas) > 0)
    if settings.decode == "predicted_x0":
        noisy[-1] = False
    return noisy


def trained_steps(
    method: Method, sigmas: Tensor, noisy: Tensor, settings: RolloutConfig, update: int
) -> Int[Tensor, "n"]:
    """Which steps train, ascending: the method's choice if it has its own `train_steps`, else drawn from noisy ones.

    The draw's stream does not know the method, so methods with the same noisy steps train the same steps.
    """
    n, rng = settings.budget.train_steps, stream(settings.seed, "train_steps", update)
    name = type(method).__name__
    candidates = (noisy if settings.train_last else noisy[:-1]).nonzero()[:, 0]
    if len(candidates) < n:
        raise BenchError(
            f"{name} makes {len(candidates)} of {len(noisy)} steps noisy, but budget.train_steps is {n}: "
            "widen its window or lower the budget."
        )
    if type(method).train_steps is Method.train_steps:
        return candidates[torch.randperm(len(candidates), generator=rng)[:n]].sort().values
    chosen = method.train_steps(sigmas, n, rng)
    whole = not chosen.is_floating_point() and chosen.dtype != torch.bool
    if (
        chosen.shape != (n,)
        or not whole
        or not set(chosen.tolist()) <= set(candidates.tolist())
        or len(chosen.unique()) != n
    ):
        raise BenchError(
            f"{name}.train_steps returned {chosen.tolist()}: "
            f"it must name {n} different noisy steps out of {candidates.tolist()}."
        )
    return chosen.sort().values


def local_samples(budget: Budget, world: World) -> Int[Tensor, "b"]:
    """Numbers of the samples that this process rolls out: its micro-batches of the round."""
    b = budget.prompts * budget.group_size
    return torch.cat([torch.arange(b)[part] for part in world.mine(micro_batches(b, budget.micro_batch))])


def noise(
    settings: RolloutConfig,
    update: int,
    kind: str,
    step: int,
    shape: Sequence[int],
    samples: Sequence[int] | None = None,
) -> Float[Tensor, "b ..."]:
    """Noise of all samples, or of these: a pure function of (seed, update, prompt position, member, step).

    Never of the method, the batch or the number of processes.
    """
    budget = settings.budget
    shared = kind == "initial" and settings.group_noise == "shared"
    pairs = [(p, g) for p in range(budget.prompts) for g in range(budget.group_size)]
    wanted = pairs if samples is None else [pairs[sample] for sample in samples]
    names = [(kind, update, p, 0 if shared else g, step) for p, g in wanted]
    return normal(settings.seed, names, shape)


def _velocities(backbone: Backbone, x: Tensor, sigma: Tensor, cond: Conditioning, budget: Budget) -> Tensor:
    parts = []
    for rows in micro_batches(len(x), budget.micro_batch):
        part = Conditioning(cond.text[rows], cond.glyph[rows])
        parts.append(backbone.velocity(x[rows], sigma[rows], part, budget.guidance))
    return torch.cat(parts)


@torch.no_grad()
def sample(
    backbone: Backbone,
    method: Method,
    cond: Conditioning,
    settings: RolloutConfig,
    update: int,
    anchors: Sequence[str],
    ledger: Ledger,
) -> Rollout:
    """One round of trajectories for the prompts behind `cond` (one entry per prompt)."""
    budget = settings.budget
    sigmas = sigma_schedule(budget.steps, budget.shift)
    noisy = noisy_steps(method, sigmas, settings, update)
    chosen = trained_steps(method, sigmas, noisy, settings, update)
    whole = cond.take(p for p in range(len(cond.text)) for _ in range(budget.group_size))
    b, times = len(whole.text), guidance_multiplicity(budget.guidance)  # the ledger counts what all processes do
    own = local_samples(budget, settings.world)
    rows = own.tolist()
    members = whole.take(rows)
    x = rounded_latents(backbone, noise(settings, update, "initial", 0, backbone.latent_shape, rows), first=True)
    kept_x, kept_next, kept_logp = [], [], []
    kept_anchor: dict[str, list[Tensor]] = {name: [] for name in anchors}
    for i in range(budget.steps):
        sigma, sigma_next = sigmas[i].expand(len(x)), sigmas[i + 1].expand(len(x))
        v = _velocities(backbone, x, sigma, members, budget)
        ledger.spend("nfe_rollout", b * times)
        if noisy[i]:
            step = method.transition(x, v, sigma, sigma_next)
            fresh = noise(settings, update, "step", i, backbone.latent_shape, rows)
            x_next = step.mean + step.std.reshape(-1, *[1] * (x.ndim - 1)) * fresh
        else:
            x_next = euler(x, v, sigma, sigma_next)
        x_next = rounded_latents(backbone, x_next)
        if i in chosen:
            kept_x.append(x)
            kept_next.append(x_next)
            kept_logp.append(method.log_prob(step, x_next))
            for name in anchors:
                with backbone.as_anchor(name):
                    kept_anchor[name].append(_velocities(backbone, x, sigma, members, budget))
                ledger.spend("nfe_anchor", b * times)
        x = x_next
    ledger.spend("videos", b)
    ledger.spend("prompts", len(cond.text))
    _need_finite(kept_logp, chosen, settings.world)
    return Rollout(
        sigmas,
        StepView(chosen, method.step_weights(sigmas)[chosen]),
        torch.stack(kept_x),
        torch.stack(kept_next),
        torch.stack(kept_logp),
        {name: torch.stack(kept) for name, kept in kept_anchor.items()},
        x,
        whole,
        own,
    )


def _need_finite(logp: Sequence[Tensor], steps: Int[Tensor, "n"], world: World) -> None:
    """Stop all processes at the first step whose log-probability is not finite in one of them."""
    found = world.everyone([bool(torch.isfinite(values).all()) for values in logp])
    for n, i in enumerate(steps.tolist()):
        if not all(finite[n] for finite in found):
            raise DivergedError(
                f"log-probability of rollout step {i} is not finite: "
                "the policy diverged or the kernel has no variance there."
            )
