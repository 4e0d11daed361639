"""Sample trajectories: the method defines the kernel, the harness draws the noise and stores the trained steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench.algorithm.sampling import micro_batches, rounded_latents
from bench.api import Backbone, Conditioning, Method, StepView
from bench.core.budget import Budget
from bench.core.errors import BenchError, DivergedError
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
    """The settings of a suite that a rollout depends on."""

    budget: Budget
    decode: Literal["predicted_x0", "final_latent"]
    group_noise: Literal["distinct", "shared"]
    seed: int
    train_last: bool = True
    """Whether the last step may train if it is noisy."""
    world: World = SINGLE_PROCESS
    """The processes over which the samples are distributed."""


@dataclass(frozen=True)
class Rollout:
    """The trained steps and the final latents of trajectories, for the samples of this process.

    Samples are numbered in prompt order ([p, g] flattened); `b` is the number of samples of this process.
    """

    sigmas: Float[Tensor, "t1"]
    view: StepView
    x: Float[Tensor, "n b ..."]
    """Latents before each trained step."""
    x_next: Float[Tensor, "n b ..."]
    """Latents after it."""
    logp_old: Float[Tensor, "n b"]
    """Log-probability of `x_next` under the policy of the rollout."""
    anchors: dict[str, Float[Tensor, "n b ..."]]
    """Velocities of each anchor at the trained steps."""
    x0: Float[Tensor, "b ..."]
    """Final latents, which are decoded."""
    cond: Conditioning
    """Conditioning of all samples of the update, also those of other processes."""
    samples: Int[Tensor, "b"]
    """Numbers of the samples of this process, ascending."""

    def local_positions(self, samples: Int[Tensor, "m"]) -> Int[Tensor, "m"]:
        """Positions of these sample numbers in the tensors; all must be samples of this process."""
        return torch.searchsorted(self.samples, samples)

    def redistribute(self, samples: Int[Tensor, "m"], world: World) -> Rollout:
        """Collective call: the same rollout with these samples (ascending) on this process.

        One step of one tensor is exchanged at a time, so that no process ever holds the whole rollout.
        """

        def exchange(part: Tensor) -> Tensor:
            gathered = part.new_empty(len(self.cond), *part.shape[1:])
            for numbers, values in world.all_gather((self.samples, part)):
                gathered[numbers] = values
            return gathered[samples]

        def exchange_steps(tensor: Tensor) -> Tensor:
            return torch.stack([exchange(part) for part in tensor])

        return replace(
            self,
            x=exchange_steps(self.x),
            x_next=exchange_steps(self.x_next),
            logp_old=exchange_steps(self.logp_old),
            anchors={name: exchange_steps(tensor) for name, tensor in self.anchors.items()},
            x0=exchange(self.x0),
            samples=samples,
        )


def noisy_steps(method: Method, sigmas: Tensor, settings: RolloutConfig, update: int) -> Tensor:
    """Marks the noisy steps [t]: the method's choice without steps whose kernel adds no noise (the last one of CPS).

    With the decode rule `predicted_x0` the last step is not noisy either.
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


def step_weights(method: Method, sigmas: Float[Tensor, "t1"], candidates: Int[Tensor, "m"]) -> Float[Tensor, "t"]:
    """The method's step weights, scaled to mean 1 over the steps that may train.

    The scale is a constant of the steps that may train in an update, whichever of them it draws: a method decides how
    its steps compare, not how large its update is. Raises `BenchError` for weights of which no step that may train has
    one above 0.
    """
    weights = method.step_weights(sigmas)
    mean = weights[candidates].double().mean()
    if not 0 < mean < math.inf:
        raise BenchError(
            f"{type(method).__name__}.step_weights has the mean {float(mean):g} over the steps that may train: return "
            "finite weights, at least one of them above 0."
        )
    return (weights.double() / mean).float()


def _step_counts(method: Method, sigmas: Tensor, settings: RolloutConfig, update: int) -> str:
    """Why a method has no more steps to train, for a message: its choice, its kernel, the settings of the suite."""
    marked = method.stochastic(sigmas, update, stream(settings.seed, "stochastic", update))
    silent = marked & (injected_variance(method, sigmas) == 0)
    counts = f"the method marks {int(marked.sum())} of {len(marked)} steps noisy, "
    if silent.any():
        counts += f"its kernel adds no noise at {int(silent.sum())} of them, "
    if marked[-1] and not silent[-1]:
        if settings.decode == "predicted_x0":
            counts += "`decode: predicted_x0` silences the last, "
        elif not settings.train_last:
            counts += "`last_step: untrained` leaves out the last, "
    return counts


def trainable_steps(noisy: Bool[Tensor, "t"], settings: RolloutConfig) -> Int[Tensor, "m"]:
    """Indices of the steps that may train: the noisy ones, without the last if the suite says so."""
    return (noisy if settings.train_last else noisy[:-1]).nonzero()[:, 0]


def trained_steps(
    method: Method, sigmas: Tensor, noisy: Tensor, settings: RolloutConfig, update: int
) -> Int[Tensor, "n"]:
    """Indices of the trained steps, ascending: from the method's own `train_steps`, else drawn from the noisy steps.

    The draw does not depend on the method, so methods with the same noisy steps train the same steps.
    """
    n, rng = settings.budget.train_steps, stream(settings.seed, "train_steps", update)
    name = type(method).__name__
    candidates = trainable_steps(noisy, settings)
    if len(candidates) < n:
        raise BenchError(
            f"{name} has {len(candidates)} steps to train at update {update}, but budget.train_steps is {n}: "
            f"{_step_counts(method, sigmas, settings, update)}{len(candidates)} remain. "
            "Widen its window, or lower budget.train_steps."
        )
    if type(method).train_steps is Method.train_steps:
        return candidates[torch.randperm(len(candidates), generator=rng)[:n]].sort().values
    chosen = method.train_steps(sigmas, n, rng)
    is_integer = not chosen.is_floating_point() and chosen.dtype != torch.bool
    if (
        chosen.shape != (n,)
        or not is_integer
        or not set(chosen.tolist()) <= set(candidates.tolist())
        or len(chosen.unique()) != n
    ):
        raise BenchError(
            f"{name}.train_steps returned {chosen.tolist()}: "
            f"return {n} different noisy steps out of {candidates.tolist()}."
        )
    return chosen.sort().values


def schedule_properties(
    method: Method, sigmas: Float[Tensor, "t1"], settings: RolloutConfig
) -> dict[str, list[float]]:
    """Properties of each rollout step: sigma, std of the noise, predicted gradient norm and step weight.

    Noisy steps are those of the first update.
    """
    noisy = noisy_steps(method, sigmas, settings, 0)
    predicted = replace(method, equalizer="derived").step_weights(sigmas)
    return {
        "sigma": sigmas.tolist(),
        "std": (injected_variance(method, sigmas).sqrt() * noisy).tolist(),
        "predicted_grad_norm": (1 / predicted).tolist(),
        "step_weight": step_weights(method, sigmas, trainable_steps(noisy, settings)).tolist(),
    }


def local_samples(budget: Budget, world: World) -> Int[Tensor, "b"]:
    """Numbers of the samples of this process: its micro-batches of the update."""
    b = budget.prompts * budget.group_size
    return torch.cat([torch.arange(b)[part] for part in world.local_items(micro_batches(b, budget.micro_batch))])


@dataclass(frozen=True)
class NoiseSource:
    """Noise as a pure function of (seed, update, position of the prompt, number in the group, step).

    It does not depend on the method, the batch or the number of processes.
    """

    config: RolloutConfig
    update: int
    shape: Sequence[int]
    """Shape of one sample's latent."""

    def draw(self, kind: str, step: int, samples: Sequence[int]) -> Float[Tensor, "b ..."]:
        """Noise of these samples; `kind` is "initial" or "step"."""
        budget = self.config.budget
        shared = kind == "initial" and self.config.group_noise == "shared"
        pairs = [divmod(sample, budget.group_size) for sample in samples]
        names = [(kind, self.update, p, 0 if shared else g, step) for p, g in pairs]
        return normal(self.config.seed, names, self.shape)


@dataclass(frozen=True)
class Sampler:
    """Samples the trajectories of an update: the method defines each noisy step, the harness draws the noise."""

    backbone: Backbone
    method: Method
    config: RolloutConfig
    ledger: Ledger

    @torch.no_grad()
    def sample(self, prompts: Conditioning, update: int, anchors: Sequence[str] = ()) -> Rollout:
        """Trajectories of an update for its encoded prompts, `group_size` per prompt.

        `anchors`: names of the references whose velocities the KL terms need.
        """
        budget, backbone, world = self.config.budget, self.backbone, self.config.world
        sigmas = sigma_schedule(budget.steps, budget.shift)
        noisy = noisy_steps(self.method, sigmas, self.config, update)
        trained = trained_steps(self.method, sigmas, noisy, self.config, update)
        cond = prompts.take(p for p in range(len(prompts)) for _ in range(budget.group_size))
        samples = local_samples(budget, world)
        numbers, noise = samples.tolist(), NoiseSource(self.config, update, backbone.latent_shape)
        local_cond = cond.take(numbers)
        x = rounded_latents(backbone, noise.draw("initial", 0, numbers), first=True)
        stored: dict[str, list[Tensor]] = {"x": [], "x_next": [], "logp": []}
        references: dict[str, list[Tensor]] = {name: [] for name in anchors}
        for i in range(budget.steps):
            sigma, sigma_next = sigmas[i].expand(len(x)), sigmas[i + 1].expand(len(x))
            v = self._velocities(x, sigma, local_cond, "nfe_rollout")
            if noisy[i]:
                step = self.method.transition(x, v, sigma, sigma_next)
                std = step.std.reshape(-1, *[1] * (x.ndim - 1))
                x_next = step.mean + std * noise.draw("step", i, numbers)
            else:
                x_next = euler(x, v, sigma, sigma_next)
            x_next = rounded_latents(backbone, x_next)
            if i in trained:
                stored["x"].append(x)
                stored["x_next"].append(x_next)
                stored["logp"].append(self.method.log_prob(step, x_next))
                for name in anchors:
                    with backbone.as_anchor(name):
                        references[name].append(self._velocities(x, sigma, local_cond, "nfe_anchor"))
            x = x_next
        self.ledger.spend("videos", len(cond))
        self.ledger.spend("prompts", len(prompts))
        _check_finite(stored["logp"], trained, world)
        return Rollout(
            sigmas=sigmas,
            view=StepView(trained, step_weights(self.method, sigmas, trainable_steps(noisy, self.config))[trained]),
            x=torch.stack(stored["x"]),
            x_next=torch.stack(stored["x_next"]),
            logp_old=torch.stack(stored["logp"]),
            anchors={name: torch.stack(velocities) for name, velocities in references.items()},
            x0=x,
            cond=cond,
            samples=samples,
        )

    def _velocities(self, x: Tensor, sigma: Tensor, cond: Conditioning, expense: str) -> Tensor:
        """Velocities in micro-batches; the ledger counts the evaluations of all processes."""
        budget, parts = self.config.budget, []
        for rows in micro_batches(len(x), budget.micro_batch):
            part = cond.take(range(len(x))[rows])
            parts.append(self.backbone.velocity(x[rows], sigma[rows], part, budget.guidance))
        samples = budget.prompts * budget.group_size
        self.ledger.spend(expense, samples * guidance_multiplicity(budget.guidance))
        return torch.cat(parts)


def _check_finite(logp: Sequence[Tensor], steps: Int[Tensor, "n"], world: World) -> None:
    """Collective call: raise at the first step with a log-probability that is not finite, on all processes."""
    finite = world.all_gather([bool(torch.isfinite(values).all()) for values in logp])
    for n, i in enumerate(steps.tolist()):
        if not all(flags[n] for flags in finite):
            raise DivergedError(
                f"log-probability of rollout step {i} is not finite: "
                "the policy diverged or the kernel has no variance there."
            )
