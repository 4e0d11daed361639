"""Sample trajectories: the method defines the kernel, the harness draws the noise and stores the trained steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.algorithm.sampling import RolloutConfig, micro_batches, rounded_latents
from bench.algorithm.steps import noisy_steps, step_weights, trainable_steps, trained_steps
from bench.api import Backbone, Conditioning, Gaussian, Method
from bench.core.budget import Budget
from bench.core.errors import DivergedError
from bench.core.ledger import Ledger, guidance_multiplicity
from bench.core.rng import normal
from bench.core.world import World
from bench.flow import euler, sigma_schedule


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The final latents of the samples of this process.

    Samples are numbered in prompt order ([p, g] flattened); `b` is the number of samples of this process.
    """

    x0: Float[Tensor, "b ..."]
    """Final latents, which are decoded."""
    cond: Conditioning
    """Conditioning of all samples of the update, also those of other processes."""
    samples: Int[Tensor, "b"]
    """Numbers of the samples of this process, ascending."""

    def local_positions(self, samples: Int[Tensor, "m"]) -> Int[Tensor, "m"]:
        """Positions of these sample numbers in the tensors; all must be samples of this process."""
        return torch.searchsorted(self.samples, samples)

    def exchange(
        self, part: Float[Tensor, "b ..."], samples: Int[Tensor, "m"], world: World
    ) -> Float[Tensor, "m ..."]:
        """Collective call: the part of these samples, of which each process has its own."""
        gathered = part.new_empty(len(self.cond), *part.shape[1:])
        for numbers, values in world.all_gather((self.samples, part)):
            gathered[numbers] = values
        return gathered[samples]


class StepView(NamedTuple):
    """The trained steps of a rollout."""

    steps: Tensor
    """[n], indices into the schedule; [p, n] where each prompt has its own."""
    weight: Tensor
    """The scaled `Method.step_weights` at these indices, in the same shape."""


@dataclass(frozen=True, kw_only=True)
class Rollout(Samples):
    """The trained steps and the final latents of trajectories."""

    sigmas: Float[Tensor, "t1"]
    view: StepView
    x: Float[Tensor, "n b ..."]
    """Latents before each trained step."""
    x_next: Float[Tensor, "n b ..."]
    """Latents after it."""
    logp_old: Float[Tensor, "n b"]
    """Log-probability of `x_next` under the policy of the rollout."""
    mean_old: Float[Tensor, "n b ..."] | None
    """Mean of the step under that policy; None where the method's loss does not need it."""
    anchors: dict[str, Float[Tensor, "n b ..."]]
    """Velocities of each anchor at the trained steps."""

    def levels(self, n: int, rows: Int[Tensor, "m"]) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"]]:
        """Noise levels of these samples before and after trained step n."""
        if self.shared:
            i = int(self.view.steps[n])
            return self.sigmas[i].expand(len(rows)), self.sigmas[i + 1].expand(len(rows))
        steps = self.view.steps[self._prompts(rows), n]
        return self.sigmas[steps], self.sigmas[steps + 1]

    def weights(self, n: int, rows: Int[Tensor, "m"]) -> Float[Tensor, "..."]:
        """Weight of trained step n: one for all samples, or one for each of these."""
        return self.view.weight[n] if self.shared else self.view.weight[self._prompts(rows), n]

    @property
    def shared(self) -> bool:
        """Whether all prompts train the same steps."""
        return self.view.steps.ndim == 1

    def step_name(self, n: int) -> int:
        """Name of trained step n in a log: its index in the schedule, or n where each prompt has its own steps."""
        return int(self.view.steps[n]) if self.shared else n

    def log_fields(self) -> dict[str, Any]:
        """Fields of a log line about the trained steps."""
        return {"trained_steps": self.view.steps.tolist(), "step_weights": self.view.weight.tolist()}

    @property
    def trained(self) -> int:
        """Number of trained steps."""
        return len(self.x)

    def _prompts(self, rows: Int[Tensor, "m"]) -> Int[Tensor, "m"]:
        return rows // (len(self.cond) // len(self.view.steps))

    def redistribute(self, samples: Int[Tensor, "m"], world: World) -> Rollout:
        """Collective call: the same rollout with these samples (ascending) on this process.

        One step of one tensor is exchanged at a time, so that no process ever holds the whole rollout.
        """

        def exchange_steps(tensor: Tensor) -> Tensor:
            return torch.stack([self.exchange(part, samples, world) for part in tensor])

        return replace(
            self,
            x=exchange_steps(self.x),
            x_next=exchange_steps(self.x_next),
            logp_old=exchange_steps(self.logp_old),
            mean_old=None if self.mean_old is None else exchange_steps(self.mean_old),
            anchors={name: exchange_steps(tensor) for name, tensor in self.anchors.items()},
            x0=self.exchange(self.x0, samples, world),
            samples=samples,
        )


def needs_old_mean(method: Method) -> bool:
    """Whether the method's loss looks at the mean of the rollout's steps, beside their log-probabilities."""
    return type(method).policy_loss is not Method.policy_loss


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
        """Noise of these samples; `kind` is "initial", "step" or "forward", `step` the number of the step or point."""
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
        weight = step_weights(self.method, sigmas, trainable_steps(noisy, self.config))[trained]
        cond = prompts.take(p for p in range(len(prompts)) for _ in range(budget.group_size))
        samples = local_samples(budget, world)
        numbers, noise = samples.tolist(), NoiseSource(self.config, update, backbone.latent_shape)
        local_cond, of_prompt = cond.take(numbers), samples // budget.group_size
        chosen = trained.expand(len(prompts), -1)[of_prompt]
        is_noisy = noisy.expand(len(prompts), -1)[of_prompt]
        x = rounded_latents(backbone, noise.draw("initial", 0, numbers), first=True)
        stored_x, stored_next = (x.new_empty(budget.train_steps, *x.shape) for _ in range(2))
        logp = x.new_empty(budget.train_steps, len(x))
        mean = torch.empty_like(stored_x) if needs_old_mean(self.method) else None
        for i in range(budget.steps):
            sigma, sigma_next = sigmas[i].expand(len(x)), sigmas[i + 1].expand(len(x))
            v = velocities(backbone, self.config, self.ledger, x, sigma, local_cond)
            if is_noisy[:, i].any():
                step = self.method.transition(x, v, sigma, sigma_next)
                std = step.std.reshape(-1, *[1] * (x.ndim - 1))
                x_next = step.mean + std * noise.draw("step", i, numbers)
                if not is_noisy[:, i].all():  # another velocity is not needed: both steps start from the same one
                    x_next = torch.where(is_noisy[:, i].reshape(std.shape), x_next, euler(x, v, sigma, sigma_next))
            else:
                x_next = euler(x, v, sigma, sigma_next)
            x_next = rounded_latents(backbone, x_next)
            rows, slots = (chosen == i).nonzero(as_tuple=True)
            if len(rows):
                stored_x[slots, rows], stored_next[slots, rows] = x[rows], x_next[rows]
                if mean is not None:
                    mean[slots, rows] = step.mean[rows]
                logp[slots, rows] = self.method.log_prob(Gaussian(step.mean[rows], step.std[rows]), x_next[rows])
            x = x_next
        self.ledger.spend("videos", len(cond))
        self.ledger.spend("prompts", len(prompts))
        _check_finite(logp, trained, world)
        rollout = Rollout(
            sigmas=sigmas,
            view=StepView(trained, weight),
            x=stored_x,
            x_next=stored_next,
            logp_old=logp,
            mean_old=mean,
            anchors={},
            x0=x,
            cond=cond,
            samples=samples,
        )
        return replace(rollout, anchors={name: self._anchor(name, rollout) for name in anchors})

    def _anchor(self, name: str, rollout: Rollout) -> Float[Tensor, "n b ..."]:
        """Velocities of an anchor at the trained steps."""
        cond, parts = rollout.cond.take(rollout.samples.tolist()), []
        with self.backbone.as_anchor(name):
            for n, x in enumerate(rollout.x):
                sigma, _ = rollout.levels(n, rollout.samples)
                parts.append(velocities(self.backbone, self.config, self.ledger, x, sigma, cond, "nfe_anchor"))
        return torch.stack(parts)


def velocities(
    backbone: Backbone,
    config: RolloutConfig,
    ledger: Ledger,
    x: Float[Tensor, "b ..."],
    sigma: Float[Tensor, "b"],
    cond: Conditioning,
    expense: str = "nfe_rollout",
) -> Float[Tensor, "b ..."]:
    """Velocities in micro-batches; the ledger counts the evaluations of all processes."""
    budget, parts = config.budget, []
    for rows in micro_batches(len(x), budget.micro_batch):
        part = cond.take(range(len(x))[rows])
        parts.append(backbone.velocity(x[rows], sigma[rows], part, budget.guidance))
    ledger.spend(expense, budget.prompts * budget.group_size * guidance_multiplicity(budget.guidance))
    return torch.cat(parts)


def _check_finite(logp: Float[Tensor, "n b"], steps: Int[Tensor, "*p n"], world: World) -> None:
    """Collective call: raise at the first step with a log-probability that is not finite, on all processes."""
    finite = world.all_gather(torch.isfinite(logp).all(1).tolist())
    for n in range(len(logp)):
        if not all(flags[n] for flags in finite):
            named = f"rollout step {int(steps[n])}" if steps.ndim == 1 else f"trained step {n} of the rollout"
            raise DivergedError(
                f"log-probability of {named} is not finite: the policy diverged or the kernel has no variance there."
            )
