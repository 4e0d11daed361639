"""What one round trains on: its prompts and the rewards of its videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench import store
from bench.algorithm.kl import KLPolicy
from bench.algorithm.rollout import Rollout, RolloutConfig, sample
from bench.algorithm.sampling import micro_batches
from bench.api import Backbone, BenchError, DivergedError, Evaluator, Method, Rewards
from bench.core.ledger import Ledger
from bench.core.rng import stream
from bench.core.world import SINGLE_PROCESS, World
from bench.suite.schema import Experiment


def collect_rollout(
    backbone: Backbone,
    method: Method,
    policy: KLPolicy,
    prompts: list[str],
    settings: RolloutConfig,
    index: int,
    ledger: Ledger,
) -> Rollout:
    """Trajectories of one round for its prompts, after a refresh of the anchors that are due."""
    for name, rule in policy.anchors().items():
        if rule.due(index):
            backbone.refresh_anchor(name)
    anchors = [name for name, rule in policy.anchors().items() if rule.network]
    with ledger.phase("rollout"):
        return sample(backbone, method, backbone.encode(prompts), settings, index, anchors, ledger)


def shuffled(values: dict[str, Tensor], seed: int, index: int) -> dict[str, Tensor]:
    """Rewards [p, g] dealt out anew within each group; the metrics of one video stay together."""
    p, g = next(iter(values.values())).shape
    order = torch.rand(p, g, generator=stream(seed, "shuffle_rewards", index)).argsort(1)
    return {name: value.gather(1, order) for name, value in values.items()}


@dataclass(frozen=True)
class RolloutVideos:
    """The decoded videos of a round that this process holds; scores come back for all samples, in their order."""

    videos: Float[Tensor, "b 3 F H W"]
    own: Int[Tensor, "b"]
    """Sample number of each video."""
    prompts: list[str]
    """Prompt of every sample of the round."""
    fps: float
    micro_batch: int
    """Videos per call of an evaluator: as the suite says, whatever the number of processes."""
    world: World = SINGLE_PROCESS

    @classmethod
    def decoded(
        cls, backbone: Backbone, rollout: Rollout, prompts: list[str], settings: RolloutConfig
    ) -> RolloutVideos:
        """Decode a rollout, micro-batch by micro-batch."""
        size = settings.budget.micro_batch
        videos = torch.cat([backbone.decode(rollout.x0[rows]) for rows in micro_batches(len(rollout.x0), size)])
        return cls(videos, rollout.own, prompts, backbone.fps, size, settings.world)

    def scores(self, evaluator: Evaluator) -> dict[str, Float[Tensor, "n"]]:
        """Each metric of all n samples of the round."""
        own = []
        for rows in micro_batches(len(self.videos), self.micro_batch):
            texts = [self.prompts[sample] for sample in self.own[rows].tolist()]
            own.append(dict(evaluator.score(self.videos[rows], texts, self.fps)))
        parts = self.world.in_order(own)
        return {metric: torch.cat([part[metric] for part in parts]) for metric in parts[0]}

    def need_finite(self, folder: Path) -> None:
        """Stop the run at the first video with a pixel that is not finite."""
        size = self.micro_batch
        finite = self.videos.flatten(1).isfinite().all(1)
        parts = self.world.in_order([finite[rows] for rows in micro_batches(len(finite), size)])
        self.stop_at("video", torch.cat(parts), folder)

    def stop_at(self, what: str, finite: Bool[Tensor, "n"], folder: Path) -> None:
        """Stop the run at the first sample that is not finite, and save its video."""
        if finite.all():
            return
        from safetensors.torch import save

        first, path = int((~finite).nonzero()[0]), folder / store.OFFENDING
        here = (self.own == first).nonzero()
        found = self.world.everyone(self.videos[int(here[0])].contiguous() if len(here) else None)
        if self.world.writes:
            video = next(video for video in found if video is not None)
            store.write_bytes(path, save({"video": video}, {"prompt": self.prompts[first]}))
        raise DivergedError(f"{what} of prompt {self.prompts[first]!r} is not finite; its video is saved as {path}.")


COARSE = (2, 4, 4)
"""Frames, height and width to which latents are averaged before samples of a group are compared."""


def diversity(rollout: Rollout, settings: RolloutConfig) -> float:
    """How much the samples of a prompt differ: 0 where a policy gives the same video for any noise.

    Root mean square, over prompts and coarse latents (`COARSE` cells by channel), of the standard deviation within
    the group, in latent units.
    """
    budget = settings.budget
    parts = []
    for rows in micro_batches(len(rollout.x0), budget.micro_batch):
        latents = rollout.x0[rows].float()
        f, h, w = (min(size, most) for size, most in zip(latents.shape[2:], COARSE, strict=True))
        parts.append(torch.nn.functional.adaptive_avg_pool3d(latents, (f, h, w)).flatten(1))
    whole = torch.cat(settings.world.in_order(parts))
    spread = whole.reshape(budget.prompts, budget.group_size, -1).std(1, correction=0)
    return float(spread.square().mean().sqrt())


def score_monitors(evaluators: dict[str, Evaluator], exp: Experiment, clips: RolloutVideos) -> dict[str, float]:
    """Mean of every metric of the suite's monitors over one round's videos; nothing of it reaches the update.

    An evaluator that gives a reward is left out: its means are logged as rewards.
    """
    return {
        metric: float(values.mean())
        for name in exp.monitor
        if name not in exp.reward
        for metric, values in clips.scores(evaluators[name]).items()
    }


def score_rewards(
    evaluators: dict[str, Evaluator], exp: Experiment, clips: RolloutVideos, folder: Path, ledger: Ledger
) -> Rewards:
    """Rewards [p, g] of one round; a non-finite pixel or reward stops the run with the offending sample saved."""
    budget, values = exp.budget, {}
    clips.need_finite(folder)
    for name, weights in exp.reward.items():
        scores = clips.scores(evaluators[name])
        ledger.call_reward(name, len(clips.prompts))
        for metric in weights:
            if metric not in scores:
                raise BenchError(
                    f"reward {name}.{metric}: the evaluator gives {', '.join(scores)}; mend 'reward:' in the YAML."
                )
            clips.stop_at(f"reward {metric}", scores[metric].isfinite(), folder)
            values[metric] = scores[metric].float().reshape(budget.prompts, budget.group_size)
    return Rewards(values, exp.weights, exp.advantage)


def update_prompts(exp: Experiment, prompts: list[str], seed: int, index: int) -> list[str]:
    """Training prompts of one round: epochs of seeded permutations, the same order for every row."""
    first = index * exp.budget.prompts
    order: dict[int, list[int]] = {}
    chosen = []
    for position in range(first, first + exp.budget.prompts):
        epoch, place = divmod(position, len(prompts))
        if epoch not in order:
            order[epoch] = torch.randperm(len(prompts), generator=stream(seed, "prompts", epoch)).tolist()
        chosen.append(prompts[order[epoch][place]])
    return chosen
