"""One run = (suite, row, seed): rollout, reward, update, checkpoint, resume, held-out evaluation, record."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench import store
from bench.algorithm.kl import KLPolicy, kl_policy
from bench.algorithm.optimizers import (
    Optimizer,
    full_state,
    load_full_state,
    make_optimizer,
    recorded_optimizer,
    sharded_backbone,
)
from bench.algorithm.rollout import Rollout, injected_variance, noisy_steps
from bench.algorithm.update import Updater, UpdateStats
from bench.api import Backbone, Evaluator, Method, Rewards
from bench.core.ledger import Ledger
from bench.core.rewards import tied
from bench.core.rng import stream
from bench.core.world import COMPARE_EVERY, SINGLE_PROCESS, World
from bench.flow import sigma_schedule
from bench.suite.job import Job
from bench.suite.methods import make_method, rollout_config
from bench.suite.schema import Experiment
from bench.train import checkpoint
from bench.train.rewards import (
    RolloutVideos,
    collect_rollout,
    diversity,
    score_monitors,
    score_rewards,
    shuffled,
    update_prompts,
)

CHECKPOINT_EVERY = 5
"""Updates between checkpoints: a killed run repeats at most this many."""
RATIO_TOLERANCE = 1e-5
"""Ratio audit at update 0: a tenth of the smallest clip range in use (1e-4). On a CPU the error is exactly 0."""

ProgressCallback = Callable[[str, int, int], None]
"""Hears (phase, done, total)."""


@dataclass
class Trainer:
    """The state of a run, and all of it: what `save` writes is what `load` needs to go on in the same bits."""

    job: Job
    backbone: Backbone
    method: Method
    policy: KLPolicy
    evaluators: dict[str, Evaluator]
    optimizer: Optimizer
    ledger: Ledger
    kl_state: dict[str, Any]
    world: World = SINGLE_PROCESS
    updates_done: int = 0
    audit: dict[str, Any] | None = None

    @property
    def exp(self) -> Experiment:
        return self.job.exp

    @classmethod
    def new(
        cls, job: Job, backbone: Backbone, evaluators: dict[str, Evaluator], world: World = SINGLE_PROCESS
    ) -> Trainer:
        assert job.row is not None
        assert job.seed is not None
        exp, row = job.exp, job.row
        method = make_method(exp, row, math.prod(backbone.latent_shape))
        policy = kl_policy(row.kl_spec.name, **row.kl_spec.params)
        backbone.reset(stream(job.seed, "initial_policy"))
        spread = sharded_backbone(backbone, world)
        optimizer = make_optimizer(exp.budget, backbone.parameters(), spread)
        trainer = cls(job, backbone, method, policy, evaluators, optimizer, Ledger(), policy.init_state(), world)
        trainer.load()
        return trainer

    def save(self) -> None:
        """One file, written aside and renamed: the adapters and anchors, optimizer, KL state, ledger and position."""
        state = {
            "digest": self.job.digest,
            "policy": self.backbone.state_dict(),
            "optimizer": full_state(self.optimizer, sharded_backbone(self.backbone, self.world)),
            "rest": json.dumps(
                {"updates": self.updates_done, "kl": self.kl_state, "ledger": self.ledger.state(), "audit": self.audit}
            ),
        }
        if self.world.writes:
            checkpoint.write(self.job.folder / store.CHECKPOINT, state)

    def load(self) -> None:
        """Go on from the folder's checkpoint, if there is one; lines of `train.jsonl` past it are dropped."""
        path, lines = self.job.folder / store.CHECKPOINT, self.job.folder / store.TRAIN
        seen = checkpoint.stored_sha256(path)
        self.world.need_equal(
            seen, f"the checkpoint that they see in {self.job.folder}: put it on a file system that all nodes share"
        )
        if seen is not None:
            state = checkpoint.read(path)
            store.check_digest(self.job.folder, state["digest"], self.job.digest)
            self.backbone.load_state_dict(state["policy"])
            load_full_state(self.optimizer, state["optimizer"], sharded_backbone(self.backbone, self.world))
            rest = json.loads(state["rest"])
            self.updates_done, self.kl_state, self.audit = rest["updates"], rest["kl"], rest["audit"]
            self.ledger = Ledger.from_state(rest["ledger"])
            self.ledger.restarts += 1
        self.world.barrier()  # all have read before one writes
        if lines.exists() and self.world.writes:
            kept = [line for line in store.read_lines(lines) if line["update"] < self.updates_done]
            store.write_text(lines, "".join(json.dumps(line) + "\n" for line in kept))

    def schedule(self) -> dict[str, list[float]]:
        """What the method does at each rollout step: the noise it injects, and the equalizer's prediction."""
        settings = rollout_config(self.exp, 0)
        sigmas = sigma_schedule(settings.budget.steps, settings.budget.shift)
        noisy = noisy_steps(self.method, sigmas, settings, 0)
        predicted = dataclasses.replace(self.method, equalizer="derived").step_weights(sigmas)
        return {
            "sigma": sigmas.tolist(),
            "std": (injected_variance(self.method, sigmas).sqrt() * noisy).tolist(),
            "predicted_grad_norm": (1 / predicted).tolist(),
            "step_weight": self.method.step_weights(sigmas).tolist(),
        }

    def noted(self) -> dict[str, Any]:
        """What the record says beside its fields."""
        return {"schedule": self.schedule(), **recorded_optimizer(self.exp.budget, self.optimizer)}

    def train(self, report: ProgressCallback, until: int | None = None) -> None:
        """The updates that are left, or those before update `until`."""
        budget, prompts = self.exp.budget, self.exp.prompt_list("train")
        last = budget.updates if until is None else until
        self._need_same("before the first update of this start")
        while self.updates_done < last:
            report("train", self.updates_done, last)
            self._round(self.updates_done, prompts)
            self.updates_done += 1
            self.ledger.settle(budget, len(self.exp.reward), self.updates_done)
            if self.updates_done % COMPARE_EVERY == 0 or self.updates_done == last:
                self._need_same(f"after update {self.updates_done - 1}")
            if self.updates_done % CHECKPOINT_EVERY == 0 or self.updates_done == last:
                self.save()

    def _need_same(self, when: str) -> None:
        """All processes are at the same update, under the same KL weights, with the same policy."""
        where = f"the update or the KL state that they have reached {when}: delete the run's folder and start it again"
        self.world.need_equal([self.updates_done, self.kl_state], where)
        self.world.need_same(self.backbone.parameters(), when)

    def _round(self, index: int, prompts: list[str]) -> None:
        assert self.job.seed is not None
        exp, budget, seed, ledger = self.exp, self.exp.budget, self.job.seed, self.ledger
        start = dict(ledger.seconds)
        chosen, settings = update_prompts(exp, prompts, seed, index), rollout_config(exp, seed, self.world)
        rollout = collect_rollout(self.backbone, self.method, self.policy, chosen, settings, index, ledger)
        with ledger.phase("decode"):
            texts = [prompt for prompt in chosen for _ in range(budget.group_size)]
            clips = RolloutVideos.decoded(self.backbone, rollout, texts, settings)
            ledger.spend("decodes", len(texts))
        with ledger.phase("reward"):
            rewards = score_rewards(self.evaluators, exp, clips, self.job.folder, ledger)
            if exp.shuffle_rewards:
                rewards = Rewards(shuffled(dict(rewards), seed, index), exp.weights, exp.advantage)
        with ledger.phase("monitor"):
            watched = {
                "monitor": score_monitors(self.evaluators, exp, clips),
                "group_diversity": diversity(rollout, settings),
            }
        with ledger.phase("update"):
            updater = Updater(
                self.backbone,
                self.method,
                self.policy,
                self.optimizer,
                budget,
                seed,
                ledger,
                exp.trains_uncond,
                exp.probe_every,
                self.world,
            )
            self.kl_state, log = updater(rollout, rewards, self.kl_state, index)
        if index == 0:
            worst = max(log.ratio_error.values())
            self.audit = {"passed": worst <= RATIO_TOLERANCE, "largest": worst, "tolerance": RATIO_TOLERANCE}
        if self.world.writes:
            line = self._line(index, rollout, rewards, log, start)
            store.append_line(self.job.folder / store.TRAIN, {**line, **watched})

    def _line(
        self, index: int, rollout: Rollout, rewards: Rewards, log: UpdateStats, start: dict[str, float]
    ) -> dict[str, Any]:
        total = rewards.total()
        spent = {name: round(value - start.get(name, 0.0), 4) for name, value in self.ledger.seconds.items()}
        return {
            "update": index,
            "reward": float(total.mean()),
            "reward_group_std": float(total.std(1, correction=0).mean()),
            "tied_groups": int(tied(total).sum()),
            "rewards": {name: float(values.mean()) for name, values in rewards.items()},
            **log.means(),
            "kl_weight": self.policy.weights(self.kl_state),
            "grad_norm": log.grad_norm,
            "grad_norm_of_step": {str(step): norm for step, norm in log.grad_norm_of_step.items()},
            **({} if log.kl_gradient is None else {"kl_gradient": log.kl_gradient}),
            "ratio_error": max(log.ratio_error.values()),
            "clipped_share": log.clipped / log.count,
            "trained_steps": rollout.view.steps.tolist(),
            "ledger": self.ledger.totals(),
            "seconds": spent,
        }
