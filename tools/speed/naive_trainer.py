"""A naive GRPO update in the style of the released trainers, as a reference for the harness's speed.

One sample at a time in the rollout and in training, guidance as one padded batch of two, the reference as a second
full copy of the transformer that runs inside the training loop, and diffusers' attention with its mask and padding.
It computes what `Sampler` and `Updater` compute: same noise, rewards, steps, log-probs, KL.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.algorithm.optimizers import Optimizer
from bench.algorithm.rollout import NoiseSource
from bench.algorithm.sampling import RolloutConfig
from bench.algorithm.steps import noisy_steps, step_weights, trainable_steps, trained_steps
from bench.api import Conditioning, KLPolicy, Method, Rewards
from bench.backbones.hunyuanvideo15.backbone import HunyuanVideo15
from bench.flow import euler, sigma_schedule
from bench.plan.probe import wall_seconds
from tools.speed.stock import Slots, padded_velocity, stock_attention, use_stock


@dataclass(frozen=True)
class Trajectory:
    """One sample's latents of every step and its log-probabilities, as the released trainers store them."""

    latents: list[Tensor]
    """steps + 1 latents [1, c, f, h, w]."""
    log_probs: dict[int, Tensor]
    """By noisy step, [1] each."""


class NaiveTrainer:
    """One rollout and one update. The gradient is stored in the backbone's policy, as by `Updater`.

    The KL weights are those of the KL policy's first state, so its controller must be constant.
    """

    def __init__(
        self,
        backbone: HunyuanVideo15,
        method: Method,
        policy: KLPolicy,
        optimizer: Optimizer,
        settings: RolloutConfig,
        slots: Slots,
    ):
        self.backbone, self.method, self.optimizer = backbone, method, optimizer
        self.settings, self.slots = settings, slots
        self.weights: Mapping[Any, float] = policy.weights(policy.init_state())
        self.sigmas = sigma_schedule(settings.budget.steps, settings.budget.shift)
        self.noisy = noisy_steps(method, self.sigmas, settings, 0)
        self.steps: list[int] = trained_steps(method, self.sigmas, self.noisy, settings, 0).tolist()
        self.reference = self._second_copy() if any(rule.network for rule in policy.anchors().values()) else None
        self.empty = backbone.encode([backbone.uncond_prompt]) if settings.budget.guidance != 1 else None

    def _second_copy(self) -> Any:
        """A second copy of the base, without the policy's LoRA."""
        model = copy.deepcopy(self.backbone.transformer)
        model.unload_lora()
        use_stock(model)
        return model.requires_grad_(False)

    def __call__(self, cond: Conditioning, rewards: Rewards) -> dict[str, float]:
        """One rollout and one update; seconds of each. `cond` has one entry per prompt."""
        trajectories: list[Trajectory] = []
        device = self.backbone.device
        with stock_attention(self.backbone.transformer):
            rollout = wall_seconds(device, lambda: trajectories.extend(self.rollout(cond)))
            update = wall_seconds(device, lambda: self.update(trajectories, cond, rewards))
        return {"rollout": rollout, "update": update}

    def _velocity(self, model: Any, x: Tensor, i: int, cond: Conditioning) -> Tensor:
        """Velocity of one sample, guidance included."""
        guidance, sigma = self.settings.budget.guidance, self.sigmas[i].to(x.device)
        if self.empty is None:
            return padded_velocity(model, x, sigma.expand(1), cond.text, cond.more["glyph"], self.slots)
        text, glyph = [*self.empty.text, *cond.text], [*self.empty.more["glyph"], *cond.more["glyph"]]
        both = padded_velocity(model, torch.cat([x, x]), sigma.expand(2), text, glyph, self.slots)
        uncond, conditioned = both.chunk(2)
        return uncond + guidance * (conditioned - uncond)

    def _sigma(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.sigmas[i : i + 1].to(x.device), self.sigmas[i + 1 : i + 2].to(x.device)

    @torch.no_grad()
    def rollout(self, cond: Conditioning) -> list[Trajectory]:
        """A trajectory per sample, in prompt order."""
        budget = self.settings.budget
        return [
            self._sample(cond.take([p]), p * budget.group_size + g)
            for p in range(budget.prompts)
            for g in range(budget.group_size)
        ]

    def _sample(self, cond: Conditioning, number: int) -> Trajectory:
        shape, device = self.backbone.latent_shape, self.backbone.device
        noise = NoiseSource(self.settings, 0, shape)
        x = noise.draw("initial", 0, [number]).to(device)
        latents, log_probs = [x], {}
        for i in range(len(self.noisy)):
            sigma, sigma_next = self._sigma(i, x)
            v = self._velocity(self.backbone.transformer, x, i, cond)
            if self.noisy[i]:
                step = self.method.transition(x, v, sigma, sigma_next)
                fresh = noise.draw("step", i, [number]).to(device)
                x = step.mean + step.std.reshape(-1, 1, 1, 1, 1) * fresh
                log_probs[i] = self.method.log_prob(step, x)
            else:
                x = euler(x, v, sigma, sigma_next)
            latents.append(x)
        return Trajectory(latents, log_probs)

    def update(self, trajectories: Sequence[Trajectory], cond: Conditioning, rewards: Rewards) -> None:
        """Sum the gradients of all trained steps of all samples, clip them, and step the optimizer."""
        budget = self.settings.budget
        advantages = self.method.advantages(rewards).sum(0).flatten()
        weights = step_weights(self.method, self.sigmas, trainable_steps(self.noisy, self.settings))
        self.optimizer.zero_grad(set_to_none=True)
        for number, path in enumerate(trajectories):
            one = cond.take([number // budget.group_size])
            for i in self.steps:
                loss = self._loss(path, i, one, advantages[number : number + 1], float(weights[i]))
                (loss / (len(trajectories) * len(self.steps))).backward()
        trained = [p for p in self.backbone.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(trained, budget.grad_clip)
        self.optimizer.step()

    def _loss(self, path: Trajectory, i: int, cond: Conditioning, advantage: Tensor, weight: float) -> Tensor:
        """Weighted surrogate and KL terms of one trained step of one sample."""
        x, x_next = path.latents[i], path.latents[i + 1]
        sigma, sigma_next = self._sigma(i, x)
        step = self.method.transition(x, self._velocity(self.backbone.transformer, x, i, cond), sigma, sigma_next)
        new, old = self.method.log_prob(step, x_next), path.log_probs[i]
        loss = weight * self.method.surrogate(new, old, advantage.to(x.device)).sum()
        for name, factor in self.weights.items():
            if name == "stepwise":
                term = old - new
            else:
                with torch.no_grad():
                    v = self._velocity(self.reference, x, i, cond)
                term = self.method.divergence(step, self.method.transition(x, v, sigma, sigma_next), sigma, sigma_next)
            loss = loss + factor * term.sum()
        return loss
