"""The training of one run: rollout, rewards, optimizer steps, checkpoint, resume."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from bench import store
from bench.algorithm.forward import (
    FORWARD,
    ForwardRollout,
    ForwardSampler,
    ForwardUpdater,
    follow_policy,
    start_old_policy,
)
from bench.algorithm.optimizers import (
    Optimizer,
    full_state,
    load_full_state,
    make_optimizer,
    recorded_optimizer,
    sharded_backbone,
)
from bench.algorithm.rollout import Rollout, Sampler, Samples
from bench.algorithm.sampling import RolloutConfig
from bench.algorithm.steps import schedule_properties
from bench.algorithm.update import StepUpdater, UpdateConfig
from bench.algorithm.update_stats import UpdateStats
from bench.algorithm.weights import check_settings, check_weights, optimizer_settings, weights_hash
from bench.api import AnyMethod, Backbone, Evaluator, ForwardMethod, KLPolicy, Method
from bench.checks.methods import check_method
from bench.core.budget import Budget
from bench.core.errors import BenchError
from bench.core.hashing import canonical_json
from bench.core.ledger import Ledger, sampling_nfe
from bench.core.process_state import unchanged_settings
from bench.core.progress import ProgressCallback, Step
from bench.core.rewards import Rewards, tied
from bench.core.rng import stream
from bench.core.world import COMPARE_EVERY, SINGLE_PROCESS, World
from bench.store.curve import add_point, read_points, write_points
from bench.suite.division import open_reasons
from bench.suite.job import TrainingRun
from bench.suite.schema import Suite
from bench.train import checkpoint
from bench.train.evaluate import HeldOutPart, evaluate
from bench.train.hooks import check_hooks, hook_digests
from bench.train.rewards import (
    RolloutVideos,
    collect_rollout,
    diversity,
    prompt_indices,
    score_monitors,
    score_rewards,
    shuffle_rewards,
)

if TYPE_CHECKING:
    import pandas as pd

CHECKPOINT_EVERY = 5
"""Updates between checkpoints: a run that is killed repeats at most this many."""
RATIO_TOLERANCE = 1e-5
"""Tolerance of the ratio audit at update 0: a tenth of the smallest clip range in use. On a CPU the error is 0."""


def row_budget(job: TrainingRun) -> Budget:
    """The budget of the suite, with the learning rate of the row if it has its own."""
    budget, lr = job.suite.budget, job.spec.lr
    return budget if lr is None else dataclasses.replace(budget, lr=lr)


@dataclass
class Trainer:
    """The state of a training run. `save` writes all of it, so that a resumed run gives the same bits."""

    job: TrainingRun
    backbone: Backbone
    method: AnyMethod
    evaluators: dict[str, Evaluator]
    optimizer: Optimizer
    ledger: Ledger
    kl_state: dict[str, Any]
    world: World = SINGLE_PROCESS
    updates_done: int = 0
    audit: dict[str, Any] | None = None
    """The ratio audit of update 0."""
    weights: str = ""
    """Hash of the trained weights after the latest update; before the first one, of the new policy."""
    open_reasons: list[str] = dataclasses.field(default_factory=list)
    """Why the row stands in the open division; [] for a closed row."""
    hooks: dict[str, str] = dataclasses.field(default_factory=dict)
    """Digests of the results of the method's hooks at this start of the run; other kernels may give others."""
    settings: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Settings of the new optimizer, which nothing may change."""

    @property
    def suite(self) -> Suite:
        """The suite of the run."""
        return self.job.suite

    @property
    def budget(self) -> Budget:
        """The budget of the suite, with the learning rate of the row if it has its own."""
        return row_budget(self.job)

    @property
    def culprit(self) -> str:
        """The plug-ins of the row, for the errors of one that changes what only the harness may change."""
        spec = self.job.row.spec
        names = f"method {spec.method!r}, KL policy {spec.kl_spec.name!r}, backbone {self.suite.backbone.name!r}"
        return f"row {spec.name!r}: {names} or an evaluator ({', '.join(map(repr, self.evaluators))})"

    @property
    def kl_policy(self) -> KLPolicy:
        """The KL policy of the row."""
        return self.job.row.kl_policy

    @property
    def config(self) -> RolloutConfig:
        """The settings of the rollouts."""
        return self.job.prepared.rollout_config(self.job.seed, self.world)

    @property
    def sampler(self) -> Sampler | ForwardSampler:
        """Samples the rollouts."""
        if isinstance(self.method, ForwardMethod):
            return ForwardSampler(self.backbone, self.method, self.config, self.ledger)
        assert isinstance(self.method, Method)
        return Sampler(self.backbone, self.method, self.config, self.ledger)

    @property
    def updater(self) -> StepUpdater | ForwardUpdater:
        """Does the optimizer steps."""
        config = UpdateConfig(
            budget=self.budget,
            seed=self.job.seed,
            uncond_grad=self.suite.trains_uncond,
            probe_every=self.suite.probe_every,
            world=self.world,
            closed=not self.open_reasons,
            culprit=self.culprit,
        )
        if isinstance(self.method, ForwardMethod):
            return ForwardUpdater(self.backbone, self.method, self.kl_policy, self.optimizer, config, self.ledger)
        assert isinstance(self.method, Method)
        return StepUpdater(self.backbone, self.method, self.kl_policy, self.optimizer, config, self.ledger)

    @classmethod
    def new(
        cls, job: TrainingRun, backbone: Backbone, evaluators: dict[str, Evaluator], world: World = SINGLE_PROCESS
    ) -> Trainer:
        """A trainer with a new policy, or with the state of the checkpoint in the folder of the run."""
        budget = row_budget(job)
        method, sigmas = job.prepared.method(job.row, math.prod(backbone.latent_shape)), job.prepared.sigmas
        check_method(method, sigmas)
        backbone.reset(stream(job.seed, "initial_policy"))
        if isinstance(method, ForwardMethod):
            start_old_policy(method, backbone)
        optimizer = make_optimizer(budget, backbone.parameters(), sharded_backbone(backbone, world))
        settings = optimizer_settings(optimizer)  # before any hook of a plug-in is called
        kl_state = job.row.kl_policy.init_state()
        trainer = cls(job, backbone, method, evaluators, optimizer, Ledger(), kl_state, world, settings=settings)
        trainer.open_reasons = open_reasons(method, job.spec)
        trainer.weights, trainer.hooks = trainer.weights_now(), hook_digests(method, sigmas)
        trainer.load()
        return trainer

    def weights_now(self) -> str:
        """Hash of the trained weights. Collective call where they are sharded."""
        return weights_hash(self.backbone.parameters())

    def save(self) -> None:
        """Collective call: write policy, anchors, optimizer, KL state, ledger and updates done to the checkpoint."""
        rest = {
            "updates": self.updates_done,
            "kl": self.kl_state,
            "ledger": self.ledger.state(),
            "audit": self.audit,
            "weights": self.weights,
        }
        state = {
            "digest": self.job.digest,
            "policy": self.backbone.state_dict(),
            "optimizer": full_state(self.optimizer, sharded_backbone(self.backbone, self.world)),
            "rest": json.dumps(rest),
        }
        if self.world.is_main:
            checkpoint.write(self.job.folder / store.CHECKPOINT, state)

    def load(self) -> None:
        """Collective call: restore the checkpoint, if there is one.

        Later lines of `train.jsonl` and later points of the curve are removed.
        """
        path, lines = self.job.folder / store.CHECKPOINT, self.job.folder / store.TRAIN
        sha256 = checkpoint.stored_sha256(path)
        self.world.check_equal(
            sha256, f"the checkpoint that they see in {self.job.folder}: put it on a file system that all nodes share"
        )
        if sha256 is not None:
            state = checkpoint.read(path)
            store.check_digest(self.job.folder, state["digest"], self.job.digest)
            self.backbone.load_state_dict(state["policy"])
            load_full_state(self.optimizer, state["optimizer"], sharded_backbone(self.backbone, self.world))
            rest = json.loads(state["rest"])
            self.updates_done, self.kl_state, self.audit = rest["updates"], rest["kl"], rest["audit"]
            self.weights = rest["weights"]
            self.ledger = Ledger.from_state(rest["ledger"])
            self.ledger.restarts += 1
        points = self._read_curve()
        self.world.barrier()  # all processes have read before one writes
        if lines.exists() and self.world.is_main:
            done = [line for line in store.read_lines(lines) if line["update"] < self.updates_done]
            store.write_text(lines, "".join(canonical_json(line) + "\n" for line in done))
        if self.world.is_main:
            write_points(self.job.folder, points)

    def _read_curve(self) -> pd.DataFrame:
        """The points of the curve up to the checkpoint; one that is missing is a `BenchError`."""
        every, folder, points = self.suite.evaluation.every, self.job.folder, read_points(self.job.folder)
        points = points[points["update"] <= self.updates_done]
        last = min(self.updates_done, self.suite.budget.updates - 1)
        if every is not None and sorted(set(points["update"])) != list(range(every, last + 1, every)):
            raise BenchError(
                f"curve {folder / store.CURVE} lacks a point before the checkpoint beside it: delete {folder} and "
                "start the run again."
            )
        return points

    def record_extras(self) -> dict[str, Any]:
        """Entries of the record's `extra`."""
        prepared = self.job.prepared
        family = {"family": FORWARD} if isinstance(self.method, ForwardMethod) else {}
        schedule = schedule_properties(self.method, prepared.sigmas, prepared.rollout_config(0))
        return {**family, "schedule": schedule, **recorded_optimizer(self.suite.budget, self.optimizer)}

    def train(self, report: ProgressCallback, until: int | None = None) -> None:
        """Do the remaining updates, or only those before update `until`."""
        budget = self.suite.budget
        sigmas = self.job.prepared.sigmas
        last = budget.updates if until is None else until
        self._check_processes("before the first update of this start")
        reward = None
        while self.updates_done < last:
            report(Step("train", self.updates_done, last, reward=reward))
            reward = self.run_update(self.updates_done)
            check_hooks(self.hooks, hook_digests(self.method, sigmas), self.culprit, self.updates_done)
            self.updates_done += 1
            self.ledger.settle(budget, len(self.suite.reward), self.updates_done)
            if self.updates_done % COMPARE_EVERY == 0 or self.updates_done == last:
                self._check_processes(f"after update {self.updates_done - 1}")
            self._score_point(report)  # before the checkpoint, so that a resumed run has all points up to it
            if self.updates_done % CHECKPOINT_EVERY == 0 or self.updates_done == last:
                self.save()
        report(Step("train", self.updates_done, last, reward=reward))

    def _score_point(self, report: ProgressCallback) -> None:
        """Collective call: add a point to the held-out curve, if one is due after the finished updates.

        The last point of the curve is the evaluation at the end, which is no part of the training.
        """
        suite, update = self.suite, self.updates_done
        spec = suite.evaluation
        if spec.every is None or update % spec.every or update >= suite.budget.updates:
            return
        videos = len(self.job.prepared.scored_prompts) * spec.curve_videos
        with self.ledger.phase("curve"), unchanged_settings(f"{self.culprit}, scoring the curve,"):
            part = HeldOutPart(spec.curve_videos, "curve")
            held_out = evaluate(self.backbone, self.evaluators, self.job.prepared, report, self.world, part)
            if self.world.is_main:
                add_point(self.job.folder, update, held_out.scores)
        self.ledger.spend("curve_videos", videos)
        self.ledger.spend("nfe_curve", sampling_nfe(videos, spec.steps, suite.budget.guidance))

    def _check_processes(self, when: str) -> None:
        """Raise unless all processes have the same number of updates, KL state and policy."""
        what = f"the number of updates or the KL state {when}: delete the run's folder and start it again"
        self.world.check_equal([self.updates_done, self.kl_state], what)
        self.world.check_same_parameters(self.backbone.parameters(), when)

    def run_update(self, update: int) -> float:
        """One update: rollout, decode, rewards, optimizer steps, one line of the log; returns the mean reward."""
        start = dict(self.ledger.seconds)
        texts = self.job.prepared.prompts.train
        indices = prompt_indices(len(texts), self.suite.budget.prompts, self.job.seed, update)
        prompts = [texts[index] for index in indices]
        culprit = f"method {self.job.row.spec.method!r} or backbone {self.suite.backbone.name!r}, in"
        check_weights(self.weights_now(), self.weights, self.culprit, f"between updates, before update {update}")
        with unchanged_settings(f"{culprit} the rollout,"):
            rollout = collect_rollout(self.sampler, self.kl_policy, prompts, update)
        videos = self._decode(rollout, prompts)
        rewards = self._score(videos, update)
        with self.ledger.phase("monitor"):
            monitored = {
                "monitor": score_monitors(self.evaluators, self.suite, videos, self.job.folder),
                "group_diversity": diversity(rollout, self.config),
            }
        del videos  # the largest thing on the host, and the update needs none of them
        with self.ledger.phase("update"), unchanged_settings(f"{culprit} the optimizer steps,"):
            check_weights(self.weights_now(), self.weights, self.culprit, f"in the rollout of update {update}")
            check_settings(self.optimizer, self.settings, self.culprit, f"in the rollout of update {update}")
            self.kl_state, stats = cast(Any, self.updater)(rollout, rewards, self.kl_state, update)
            if isinstance(self.method, ForwardMethod):
                follow_policy(self.method, self.backbone, update)
        self.weights = stats.weights_after
        if update == 0 and stats.ratio_error:
            largest = max(stats.ratio_error.values())
            self.audit = {"passed": largest <= RATIO_TOLERANCE, "largest": largest, "tolerance": RATIO_TOLERANCE}
        if self.world.is_main:
            line = {"update": update, "prompts": indices, **self._reward_line(rewards)}
            line |= self._stats_line(rollout, stats, start)
            store.append_line(self.job.folder / store.TRAIN, {**line, **monitored})
        return float(rewards.total().mean())

    def _decode(self, rollout: Samples, prompts: list[str]) -> RolloutVideos:
        with self.ledger.phase("decode"):
            texts = [prompt for prompt in prompts for _ in range(self.suite.budget.group_size)]
            videos = RolloutVideos.decode(self.backbone, rollout, texts, self.config)
            self.ledger.spend("decodes", len(texts))
        return videos

    def _score(self, videos: RolloutVideos, update: int) -> Rewards:
        suite = self.suite
        with self.ledger.phase("reward"):
            rewards = score_rewards(self.evaluators, self.job.prepared, videos, self.job.folder, self.ledger)
            if suite.shuffle_rewards:
                shuffled = shuffle_rewards(dict(rewards), self.job.seed, update)
                rewards = Rewards(shuffled, rewards.weights, rewards.rule)
        return rewards

    def _reward_line(self, rewards: Rewards) -> dict[str, Any]:
        """Fields of the log about the rewards."""
        total = rewards.total()
        return {
            "reward": float(total.mean()),
            "reward_group_std": float(total.std(1, correction=0).mean()),
            "tied_groups": int(tied(total).sum()),
            "rewards": {name: float(values.mean()) for name, values in rewards.items()},
        }

    def _stats_line(
        self, rollout: Rollout | ForwardRollout, stats: UpdateStats, start: dict[str, float]
    ) -> dict[str, Any]:
        """Fields of the log about the optimizer steps. `start`: the seconds of the ledger before the update."""
        spent = {name: round(value - start.get(name, 0.0), 4) for name, value in self.ledger.seconds.items()}
        return {
            **stats.means(),
            "kl_weight": self.kl_policy.weights(self.kl_state),
            "kl_ticks": stats.kl_ticks,
            "lr": stats.lr,
            "step_rms": stats.step_rms,
            "weights_before": stats.weights_before,
            "weights_after": stats.weights_after,
            "grad_norm": stats.grad_norm,
            "grad_clipped": stats.grad_clipped,
            "grad_norm_of_step": {str(step): norm for step, norm in stats.grad_norm_of_step.items()},
            **({} if stats.kl_gradient is None else {"kl_gradient": stats.kl_gradient}),
            **stats.ratio_fields(),
            **rollout.log_fields(),
            "ledger": self.ledger.totals(),
            "seconds": spent,
        }
