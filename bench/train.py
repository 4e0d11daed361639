"""One run = (suite, row, seed): rollout, reward, update, checkpoint, resume, held-out evaluation, record."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from bench import checkpoint, golden, store
from bench.api import Backbone, DivergedError, Evaluator, Method, Rewards
from bench.build import STARTED, Job, make_backbone, make_evaluator, make_method, rollout_settings
from bench.capabilities import spread_over
from bench.config import Experiment
from bench.credit import tied
from bench.evaluate import evaluate
from bench.export import save_policy
from bench.flow import sigma_schedule
from bench.kl import KLPolicy, kl_policy
from bench.ledger import Ledger
from bench.noise import injected_variance
from bench.optimizers import Optimizer, described, load_whole, make_optimizer, whole_state
from bench.processes import ALONE, SAME_EVERY, World, need_fit
from bench.record import run_record
from bench.rng import stream
from bench.rollout import Rollout, noisy_steps
from bench.rounds import Clips, diversity, roll_out, round_prompts, score_round, shuffled, watch
from bench.update import Log, Updater

CHECKPOINT = store.CHECKPOINT
CHECKPOINT_EVERY = 5
"""Updates between checkpoints: a killed run repeats at most this many."""
RATIO_TOLERANCE = 1e-5
"""Ratio audit at update 0: a tenth of the smallest clip range in use (1e-4). On a CPU the error is exactly 0."""

Report = Callable[[str, int, int], None]
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
    world: World = ALONE
    updates_done: int = 0
    audit: dict[str, Any] | None = None

    @property
    def exp(self) -> Experiment:
        return self.job.exp

    @classmethod
    def new(cls, job: Job, backbone: Backbone, evaluators: dict[str, Evaluator], world: World = ALONE) -> Trainer:
        assert job.row is not None
        assert job.seed is not None
        exp, row = job.exp, job.row
        method = make_method(exp, row, math.prod(backbone.latent_shape))
        policy = kl_policy(row.kl_spec.name, **row.kl_spec.params)
        backbone.reset(stream(job.seed, "initial_policy"))
        spread = spread_over(backbone, world)
        optimizer = make_optimizer(exp.budget, backbone.parameters(), spread)
        trainer = cls(job, backbone, method, policy, evaluators, optimizer, Ledger(), policy.init_state(), world)
        trainer.load()
        return trainer

    def save(self) -> None:
        """One file, written aside and renamed: the adapters and anchors, optimizer, KL state, ledger and position."""
        state = {
            "digest": self.job.digest,
            "policy": self.backbone.state_dict(),
            "optimizer": whole_state(self.optimizer, spread_over(self.backbone, self.world)),
            "rest": json.dumps(
                {"updates": self.updates_done, "kl": self.kl_state, "ledger": self.ledger.state(), "audit": self.audit}
            ),
        }
        if self.world.writes:
            checkpoint.write(self.job.folder / CHECKPOINT, state)

    def load(self) -> None:
        """Go on from the folder's checkpoint, if there is one; lines of `train.jsonl` past it are dropped."""
        path, lines = self.job.folder / CHECKPOINT, self.job.folder / store.TRAIN
        seen = checkpoint.stamp(path)
        self.world.need_equal(
            seen, f"the checkpoint that they see in {self.job.folder}: put it on a file system that all nodes share"
        )
        if seen is not None:
            state = checkpoint.read(path)
            store.check_digest(self.job.folder, state["digest"], self.job.digest)
            self.backbone.load_state_dict(state["policy"])
            load_whole(self.optimizer, state["optimizer"], spread_over(self.backbone, self.world))
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
        settings = rollout_settings(self.exp, 0)
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
        return {"schedule": self.schedule(), **described(self.exp.budget, self.optimizer)}

    def train(self, report: Report, until: int | None = None) -> None:
        """The updates that are left, or those before update `until`."""
        budget, prompts = self.exp.budget, self.exp.prompt_list("train")
        last = budget.updates if until is None else until
        self._need_same("before the first update of this start")
        while self.updates_done < last:
            report("train", self.updates_done, last)
            self._round(self.updates_done, prompts)
            self.updates_done += 1
            self.ledger.settle(budget, len(self.exp.reward), self.updates_done)
            if self.updates_done % SAME_EVERY == 0 or self.updates_done == last:
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
        chosen, settings = round_prompts(exp, prompts, seed, index), rollout_settings(exp, seed, self.world)
        rollout = roll_out(self.backbone, self.method, self.policy, chosen, settings, index, ledger)
        with ledger.phase("decode"):
            texts = [prompt for prompt in chosen for _ in range(budget.group_size)]
            clips = Clips.decoded(self.backbone, rollout, texts, settings)
            ledger.spend("decodes", len(texts))
        with ledger.phase("reward"):
            rewards = score_round(self.evaluators, exp, clips, self.job.folder, ledger)
            if exp.shuffle_rewards:
                rewards = Rewards(shuffled(dict(rewards), seed, index), exp.weights, exp.advantage)
        with ledger.phase("monitor"):
            watched = {
                "monitor": watch(self.evaluators, exp, clips),
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
        self, index: int, rollout: Rollout, rewards: Rewards, log: Log, start: dict[str, float]
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


def loaded(job: Job, world: World = ALONE) -> tuple[Backbone, dict[str, Evaluator], dict[str, Any]]:
    """The suite's backbone with all prompts encoded, the run's evaluators, and the gate of their golden scores."""
    exp = job.exp
    backbone = make_backbone(exp, world)
    # all at once: a backbone that frees its text encoders in between loads them once
    backbone.encode([*exp.prompt_list("train"), *exp.prompt_list("heldout")])
    names = exp.judges if job.row else exp.evaluation.evaluators
    evaluators = {name: make_evaluator(exp, name) for name in names}
    return backbone, evaluators, {golden.GATE: golden.gate(exp, evaluators)}


def execute(job: Job, report: Report, world: World = ALONE) -> store.RunRecord:
    """Do one run to its record, which one process of the world writes.

    A divergence is recorded as a failed run; any other error leaves it unfinished, to be resumed.
    """
    if job.row is not None:
        need_fit(job.exp.budget, world.shares)
    job.folder.mkdir(parents=True, exist_ok=True)
    with checkpoint.alone(job.folder) if world.writes else nullcontext():
        return _execute(job, report, world)


def _execute(job: Job, report: Report, world: World) -> store.RunRecord:
    if world.writes:
        store.write_text(job.folder / STARTED, job.digest + "\n")
    exp, clock = job.exp, Ledger()
    report("load", 0, 1)
    with clock.phase("load"):
        backbone, evaluators, gates = loaded(job, world)
    trainer, error, found = None, None, None
    try:
        if job.row is not None:
            trainer = Trainer.new(job, backbone, evaluators, world)
            trainer.train(report)
        else:
            backbone.reset(stream(0, "initial_policy"))
        with clock.phase("evaluate"):
            prompts = exp.prompt_list("heldout")

            def heard(done: int, total: int) -> None:
                report("evaluate", done, total)

            found = evaluate(backbone, evaluators, exp, prompts, heard, world)
    except DivergedError as cause:
        error = str(cause)
    report("store", 1, 1)
    record = run_record(job, backbone, evaluators, trainer, found, error, clock.seconds, gates, world)
    trained = trainer is not None and error is None
    policy = backbone.state_dict() if trained else {}  # of all processes at once, where the weights are sharded
    if not world.writes:
        return record
    if trained:
        save_policy(job.folder, policy)
    record = store.write_run(job.folder, record, None if found is None else found.scores)
    (job.folder / CHECKPOINT).unlink(missing_ok=True)
    return record
