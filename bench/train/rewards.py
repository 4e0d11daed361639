"""The data of one update: its prompts, its rollout, its decoded videos and their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench import store
from bench.algorithm.forward import ForwardRollout, ForwardSampler
from bench.algorithm.rollout import Rollout, Sampler, Samples
from bench.algorithm.sampling import RolloutConfig, micro_batches
from bench.api import Backbone, Evaluator, KLPolicy
from bench.checks.evaluators import check_reward_metrics
from bench.core.errors import DivergedError
from bench.core.ledger import Ledger
from bench.core.process_state import unchanged_settings
from bench.core.rewards import Rewards
from bench.core.rng import stream
from bench.core.world import SINGLE_PROCESS, World
from bench.suite.prepared import PreparedSuite
from bench.suite.schema import Suite


def collect_rollout(
    sampler: Sampler | ForwardSampler, kl_policy: KLPolicy, prompts: Sequence[str], update: int
) -> Rollout | ForwardRollout:
    """Trajectories of one update for its prompts, after the anchors that are due are refreshed."""
    for name, rule in kl_policy.anchors().items():
        if rule.due(update):
            sampler.backbone.refresh_anchor(name)
    anchors = [name for name, rule in kl_policy.anchors().items() if rule.network]
    with sampler.ledger.phase("rollout"):
        cond = sampler.backbone.encode(prompts)
        if isinstance(sampler, ForwardSampler):
            return sampler.sample(cond, update)
        return sampler.sample(cond, update, anchors)


def shuffle_rewards(values: dict[str, Tensor], seed: int, update: int) -> dict[str, Tensor]:
    """Rewards [p, g] permuted within each group, as a control; all metrics of a video move together."""
    p, g = next(iter(values.values())).shape
    order = torch.rand(p, g, generator=stream(seed, "shuffle_rewards", update)).argsort(1)
    return {name: value.gather(1, order) for name, value in values.items()}


@dataclass(frozen=True)
class RolloutVideos:
    """The decoded videos of the samples of this process. Scores and checks are those of all samples of the update."""

    videos: Float[Tensor, "b 3 F H W"]
    """Pixels in [0, 1]."""
    samples: Int[Tensor, "b"]
    """Sample number of each video."""
    prompts: list[str]
    """Prompt of every sample of the update."""
    fps: float
    """Frames per second."""
    micro_batch: int
    """Videos per call of an evaluator; it does not depend on the number of processes."""
    world: World = SINGLE_PROCESS

    @classmethod
    def decode(
        cls, backbone: Backbone, rollout: Samples, prompts: list[str], settings: RolloutConfig
    ) -> RolloutVideos:
        """Decode the latents of a rollout, micro-batch by micro-batch; pixels lie on the latents' device.

        `prompts`: that of every sample of the update.
        """
        size, videos = settings.budget.micro_batch, torch.empty(0)
        for rows in micro_batches(len(rollout.x0), size):
            part = backbone.decode(rollout.x0[rows])
            if len(videos) == 0:
                videos = part.new_empty(len(rollout.x0), *part.shape[1:])
            videos[rows] = part
        return cls(videos, rollout.samples, prompts, backbone.fps, size, settings.world)

    def scores(self, evaluator: Evaluator) -> dict[str, Float[Tensor, "n"]]:
        """Collective call: each metric of all n samples of the update, in their order."""
        local = []
        with unchanged_settings(f"evaluator {type(evaluator).__module__}:{type(evaluator).__qualname__}, in score,"):
            for rows in micro_batches(len(self.videos), self.micro_batch):
                texts = [self.prompts[sample] for sample in self.samples[rows].tolist()]
                local.append(dict(evaluator.score(self.videos[rows], texts, self.fps)))
        parts = self.world.gather_in_order(local)
        return {metric: torch.cat([part[metric] for part in parts]) for metric in parts[0]}

    def check_finite(self, folder: Path) -> None:
        """Collective call: raise at the first video with a pixel that is not finite."""
        local = []
        for rows in micro_batches(len(self.videos), self.micro_batch):
            low, high = self.videos[rows].flatten(1).aminmax(dim=1)  # NaN if any pixel is; no copy of the videos
            local.append(low.isfinite() & high.isfinite())
        parts = self.world.gather_in_order(local)
        self.require_finite("video", torch.cat(parts), folder)

    def require_finite(self, what: str, finite: Bool[Tensor, "n"], folder: Path) -> None:
        """Collective call: raise at the first sample that is not marked, after its video is saved in the folder.

        `what`: what is not finite, for the message.
        """
        if finite.all():
            return
        from safetensors.torch import save

        first, path = int((~finite).nonzero()[0]), folder / store.OFFENDING
        position = (self.samples == first).nonzero()
        videos = self.world.all_gather(self.videos[int(position[0])].contiguous() if len(position) else None)
        if self.world.is_main:
            video = next(video for video in videos if video is not None)
            store.write_bytes(path, save({"video": video}, {"prompt": self.prompts[first]}))
        raise DivergedError(f"{what} of prompt {self.prompts[first]!r} is not finite; its video is saved as {path}.")


COARSE = (2, 4, 4)
"""Frames, height and width to which latents are averaged before the samples of a group are compared."""


def diversity(rollout: Samples, settings: RolloutConfig) -> float:
    """How much the samples of a prompt differ, in latent units; 0 if the video does not depend on the noise.

    Root mean square, over prompts, channels and the cells of coarse latents (`COARSE`), of the standard deviation
    within the group. Collective call.
    """
    budget = settings.budget
    parts = []
    for rows in micro_batches(len(rollout.x0), budget.micro_batch):
        latents = rollout.x0[rows].float()
        f, h, w = (min(size, most) for size, most in zip(latents.shape[2:], COARSE, strict=True))
        parts.append(torch.nn.functional.adaptive_avg_pool3d(latents, (f, h, w)).flatten(1))
    coarse = torch.cat(settings.world.gather_in_order(parts))
    std = coarse.reshape(budget.prompts, budget.group_size, -1).std(1, correction=0)
    return float(std.square().mean().sqrt())


def score_monitors(
    evaluators: dict[str, Evaluator], suite: Suite, videos: RolloutVideos, folder: Path
) -> dict[str, float]:
    """Mean of every metric of the suite's monitors over the videos of an update; training does not use them.

    A monitor that is a reward evaluator too is left out: its means are logged as rewards. At a score that is not
    finite, the video is saved in the folder and the run stops.
    """
    means = {}
    for name in suite.monitor:
        if name not in suite.reward:
            for metric, values in videos.scores(evaluators[name]).items():
                videos.require_finite(f"monitor {name}, {metric},", values.isfinite(), folder)
                means[metric] = float(values.mean())
    return means


def score_rewards(
    evaluators: dict[str, Evaluator], prepared: PreparedSuite, videos: RolloutVideos, folder: Path, ledger: Ledger
) -> Rewards:
    """Rewards [p, g] of one update. At a pixel or reward that is not finite, the video is saved and the run stops."""
    suite = prepared.suite
    budget, values = suite.budget, {}
    videos.check_finite(folder)
    for name, weights in suite.reward.items():
        scores = videos.scores(evaluators[name])
        ledger.call_reward(name, len(videos.prompts))
        check_reward_metrics({name: weights}, {name: scores})
        for metric in weights:
            videos.require_finite(f"reward {metric}", scores[metric].isfinite(), folder)
            values[metric] = scores[metric].float().reshape(budget.prompts, budget.group_size)
    return Rewards(values, suite.weights, prepared.advantage_rule)


def prompt_indices(total: int, count: int, seed: int, update: int) -> list[int]:
    """Indices of the `count` training prompts of one update, from seeded permutations of all; equal for every row."""
    first = update * count
    order: dict[int, list[int]] = {}
    chosen = []
    for position in range(first, first + count):
        epoch, index = divmod(position, total)
        if epoch not in order:
            order[epoch] = torch.randperm(total, generator=stream(seed, "prompts", epoch)).tolist()
        chosen.append(order[epoch][index])
    return chosen


def update_prompts(prompts: Sequence[str], count: int, seed: int, update: int) -> list[str]:
    """The `count` training prompts of one update (`prompt_indices`)."""
    return [prompts[index] for index in prompt_indices(len(prompts), count, seed, update)]
