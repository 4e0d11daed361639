"""Forward methods: their rollouts, the optimizer steps on noised videos, and the old policy behind the policy."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.algorithm.advantages import Advantages
from bench.algorithm.ratio import checked_loss
from bench.algorithm.rollout import NoiseSource, Samples, local_samples, velocities
from bench.algorithm.sampling import RolloutConfig, rounded_latents
from bench.algorithm.update import Updater
from bench.algorithm.update_stats import Measured
from bench.api import Backbone, BlendsAnchors, Conditioning, ForwardMethod, ForwardPoint
from bench.core.errors import BenchError
from bench.core.ledger import Ledger
from bench.core.rng import stream
from bench.core.world import World
from bench.flow import add_noise, euler, sigma_schedule

FORWARD = "forward"
"""`extra.family` of the record of a run with a forward method."""
OLD = "old"
"""Name of the anchor that is the old policy."""
ANCHORS = {"old": OLD, "base": "fixed"}
"""Reference of a forward method to the backbone's anchor."""


def keeps_old(method: ForwardMethod) -> bool:
    """Whether the method has an old policy."""
    return "old" in method.references or method.rollout_policy == "old"


def start_old_policy(method: ForwardMethod, backbone: Backbone) -> None:
    """Let the old policy be the new policy, before the first update."""
    if keeps_old(method):
        backbone.refresh_anchor(OLD)


def follow_policy(method: ForwardMethod, backbone: Backbone, update: int) -> None:
    """Let the old policy follow the policy after an update."""
    if keeps_old(method):
        cast(BlendsAnchors, backbone).blend_anchor(OLD, checked_decay(method, update))


def checked_decay(method: ForwardMethod, update: int) -> float:
    """The method's `old_decay` after this update, if it is a share."""
    decay = method.old_decay(update)
    if not 0 <= decay <= 1:
        raise BenchError(
            f"{type(method).__name__}.old_decay is {decay} at update {update}: return a share in [0, 1] that the old "
            "policy keeps."
        )
    return decay


def noise_levels(method: ForwardMethod, config: RolloutConfig, update: int) -> Float[Tensor, "n b"]:
    """Noise level of each trained point of all samples of an update, checked."""
    budget = config.budget
    shape = (budget.prompts * budget.group_size, budget.train_steps)
    levels = method.noise_levels(shape, stream(config.seed, "noise_levels", update))
    name = type(method).__name__
    if levels.shape != shape or not levels.is_floating_point():
        raise BenchError(
            f"{name}.noise_levels returned {levels.dtype} {list(levels.shape)}: return floats {list(shape)}."
        )
    levels = levels.float()  # before the check: a small level of float64 is 0 here
    inside = (levels > 0) & (levels <= 1)
    if not inside.all():
        raise BenchError(
            f"{name}.noise_levels returned {float(levels[~inside][0]):g} at update {update}: return levels in (0, 1]."
        )
    return levels.T.contiguous()


@dataclass(frozen=True, kw_only=True)
class ForwardRollout(Samples):
    """The videos of an update, and the noise levels at which they train."""

    levels: Float[Tensor, "n B"]
    """Of all B samples of the update, also those of other processes."""
    noise: NoiseSource

    @property
    def trained(self) -> int:
        """Number of points at which each video trains."""
        return len(self.levels)

    @property
    def shared(self) -> bool:
        """Whether all prompts train the same steps: there are none."""
        return False

    def step_name(self, n: int) -> int:
        """Name of a point in a message."""
        return n

    def log_fields(self) -> dict[str, Any]:
        """Fields of a log line about the trained points: the mean noise level of each."""
        return {"noise_levels": self.levels.double().mean(1).tolist()}

    def redistribute(self, samples: Int[Tensor, "m"], world: World) -> ForwardRollout:
        """Collective call: the same rollout with these samples (ascending) on this process."""
        return replace(self, x0=self.exchange(self.x0, samples, world), samples=samples)


@dataclass(frozen=True)
class ForwardSampler:
    """Samples the videos of an update by the ODE, without any code of the method."""

    backbone: Backbone
    method: ForwardMethod
    config: RolloutConfig
    ledger: Ledger

    @torch.no_grad()
    def sample(self, prompts: Conditioning, update: int) -> ForwardRollout:
        """Videos of an update for its encoded prompts, `group_size` per prompt."""
        budget, backbone = self.config.budget, self.backbone
        levels = noise_levels(self.method, self.config, update)
        sigmas = sigma_schedule(budget.steps, budget.shift)
        cond = prompts.take(p for p in range(len(prompts)) for _ in range(budget.group_size))
        samples = local_samples(budget, self.config.world)
        noise = NoiseSource(self.config, update, backbone.latent_shape)
        x = rounded_latents(backbone, noise.draw("initial", 0, samples.tolist()), first=True)
        local_cond = cond.take(samples.tolist())
        with backbone.as_anchor(OLD) if self.method.rollout_policy == "old" else nullcontext():
            for i in range(budget.steps):
                sigma, sigma_next = sigmas[i].expand(len(x)), sigmas[i + 1].expand(len(x))
                v = velocities(backbone, self.config, self.ledger, x, sigma, local_cond)
                x = rounded_latents(backbone, euler(x, v, sigma, sigma_next))
        self.ledger.spend("videos", len(cond))
        self.ledger.spend("prompts", len(prompts))
        return ForwardRollout(x0=x, cond=cond, samples=samples, levels=levels, noise=noise)


@dataclass(frozen=True)
class ForwardUpdater(Updater[ForwardRollout, ForwardMethod]):
    """The optimizer steps of an update: the mean over samples and points of the mean over k of loss_k by weight_k.

    A mean and no sum, so that a term of the loss without the advantage has the same weight for every k.
    """

    def _loss(
        self,
        rollout: ForwardRollout,
        advantages: Advantages,
        n: int,
        rows: Int[Tensor, "m"],
        kl_weights: Mapping[str, float],
    ) -> tuple[Float[Tensor, ""], None, Measured]:
        """The loss of point n, summed over the samples of one micro-batch."""
        point = self._point(rollout, n, rows)
        pairs = zip(advantages.weights, advantages.adv[:, rows], strict=True)
        losses = [w * checked_loss(self.method, self.method.loss(point, adv), adv) for w, adv in pairs]
        mean = torch.stack(losses).sum(0) / sum(advantages.weights)
        summed = (mean * advantages.keep[rows]).sum()
        value, references = summed.detach(), len(self.method.references)
        return summed, None, Measured(len(rows), value, {"policy_loss": value}, {}, references=references)

    def _point(self, rollout: ForwardRollout, n: int, rows: Int[Tensor, "m"]) -> ForwardPoint:
        """The videos of these samples noised to their levels of point n, and the velocities there."""
        x0, sigma = rollout.x0[rollout.local_positions(rows)], rollout.levels[n, rows]
        noise = rollout.noise.draw("forward", n, rows.tolist()).to(x0)
        x = rounded_latents(self.backbone, add_noise(x0, noise, sigma))
        call = (x, sigma, rollout.cond.take(rows.tolist()), self.config.budget.guidance)
        references = {}
        for name in sorted(self.method.references):
            with self.backbone.as_anchor(ANCHORS[name]):
                references[name] = self.backbone.velocity(*call)
        v = self.backbone.velocity(*call, self.config.uncond_grad)
        return ForwardPoint(v, references.get("old"), references.get("base"), x0, noise, x, sigma)
