"""Overhead of the harness: updates of the nano suite by `bench.train.trainer.Trainer`, against their bare calls.

The bare calls are those that every GRPO update needs, on the same prompts and shapes: the backbone's velocity at every
rollout step and for every anchor, decoding, the evaluators' `score`, for each trained step a velocity with its
backward pass, and the optimizer's step. They are without noise, transition, log-probability, loss, KL, log, record and
checkpoint. They do not change the policy, so they do not affect the harness's run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.algorithm.kl import has_kl_terms
from bench.algorithm.sampling import micro_batches
from bench.api import Backbone, Conditioning, Evaluator
from bench.core.progress import Step
from bench.core.provenance import ROOT
from bench.core.rng import normal
from bench.flow import sigma_schedule
from bench.suite.job import TrainingRun
from bench.suite.load import load_suite
from bench.suite.prepared import PreparedRow, PreparedSuite, make_backbone, make_evaluator, prepare
from bench.suite.schema import Suite
from bench.train.rewards import update_prompts
from bench.train.trainer import CHECKPOINT_EVERY, Trainer
from tools.speed.clock import fastest
from tools.speed.compare_loops import frozen_optimizer

NANO = ROOT / "bench" / "configs" / "nano.yaml"
PHASES = ("rollout", "decode", "reward", "monitor", "update")
"""Phases of the ledger. Time outside of them is "other": the record's line, audits, checkpoints."""
GOAL = 1.10
"""Goal: wall time of an update over that of its bare calls, at most."""
CYCLE = 15
"""Updates in which KL probes (every 3) and checkpoints (every 5) both complete their cycle."""

TINY_OVERHEAD = (
    *("budget.prompts=2", "budget.group_size=2", "budget.steps=4", "budget.train_steps=2", "budget.micro_batch=4"),
    "reward={gold: {gold_VQ: 0.5, gold_MQ: 0.5, gold_TA: 1.0}}",
    "evaluation={evaluators: [gold], steps: 2, videos_per_prompt: 1}",
    "evaluator_params={}",
    "rows=[{method: sage_grpo, kl: dual}]",
)
"""Overrides with which an update takes a fraction of a second."""


class BareCalls:
    """The bare calls of one update, timed by phase."""

    def __init__(self, suite: Suite, backbone: Backbone, evaluators: dict[str, Evaluator], anchors: Sequence[str]):
        self.suite, self.backbone, self.anchors = suite, backbone, anchors
        self.rewards = [evaluators[name] for name in suite.reward]
        self.monitors = [evaluators[name] for name in suite.monitor if name not in suite.reward]
        self.optimizer = frozen_optimizer(suite.budget, backbone)
        self.sigmas = sigma_schedule(suite.budget.steps, suite.budget.shift)

    def __call__(self, prompts: Sequence[str]) -> dict[str, float]:
        """Seconds by phase for one update on these prompts."""
        budget = self.suite.budget
        seconds: dict[str, float] = {}
        cpu_seconds = [0.0]
        texts = [prompt for prompt in prompts for _ in range(budget.group_size)]
        cond = self.backbone.encode(texts)
        x = normal(0, [("speed", "bare", i) for i in range(len(texts))], self.backbone.latent_shape)
        parts = micro_batches(len(x), budget.micro_batch)
        batches = [(x[part], cond.take(range(len(x))[part])) for part in parts]

        def phase(name: str, work: Callable[[], Any]) -> Any:
            start, cpu = time.perf_counter(), time.process_time()
            result = work()
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
            cpu_seconds[0] += time.process_time() - cpu
            return result

        phase("rollout", lambda: self._forwards(batches, range(budget.steps)))
        for name in self.anchors:
            with self.backbone.as_anchor(name):
                phase("rollout", lambda: self._forwards(batches, range(budget.train_steps)))
        videos = torch.cat([phase("decode", partial(self.backbone.decode, part)) for part, _ in batches])
        for name, evaluators in (("reward", self.rewards), ("monitor", self.monitors)):
            phase(name, partial(self._scores, evaluators, videos, texts, parts))
        weights = torch.ones_like(x) / x.numel()
        phase("update", lambda: self._backwards(batches, [weights[part] for part in parts]))
        for parameter in self.backbone.parameters():
            parameter.grad = None
        return {**seconds, "other": 0.0, "total": sum(seconds.values()), "cpu": cpu_seconds[0]}

    @torch.no_grad()
    def _forwards(self, batches: Sequence[tuple[torch.Tensor, Conditioning]], steps: Sequence[int]) -> None:
        for i in steps:
            for x, cond in batches:
                self.backbone.velocity(x, self.sigmas[i].expand(len(x)), cond, self.suite.budget.guidance)

    def _scores(
        self, evaluators: Sequence[Evaluator], videos: torch.Tensor, texts: Sequence[str], parts: Sequence[slice]
    ) -> None:
        for evaluator in evaluators:
            for part in parts:
                evaluator.score(videos[part], texts[part], self.backbone.fps)

    def _backwards(
        self, batches: Sequence[tuple[torch.Tensor, Conditioning]], weights: Sequence[torch.Tensor]
    ) -> None:
        """A velocity and its backward pass for each trained step, then the optimizer's step."""
        for i in range(self.suite.budget.train_steps):
            for (x, cond), weight in zip(batches, weights, strict=True):
                v = self.backbone.velocity(
                    x, self.sigmas[i].expand(len(x)), cond, self.suite.budget.guidance, self.suite.trains_uncond
                )
                v.backward(weight)
        self.optimizer.step()


class Alternation:
    """A progress callback of the trainer: after each update, it stores the seconds and runs the bare calls."""

    def __init__(self, trainer: Trainer, bare: BareCalls):
        self.trainer, self.bare = trainer, bare
        self.prompts = trainer.job.prepared.prompts.train
        self.harness: list[dict[str, float]] = []
        self.replayed: list[dict[str, float]] = []
        self.before: dict[str, float] = {}
        self.start, self.cpu = 0.0, 0.0

    def __call__(self, step: Step) -> None:
        end, cpu = time.perf_counter(), time.process_time() - self.cpu
        seconds, seed = dict(self.trainer.ledger.seconds), self.trainer.job.seed
        if step.done:
            parts = {name: seconds.get(name, 0.0) - self.before.get(name, 0.0) for name in PHASES}
            total_seconds = end - self.start
            self.harness.append(
                {**parts, "other": total_seconds - sum(parts.values()), "total": total_seconds, "cpu": cpu}
            )
            prompts = update_prompts(self.prompts, self.trainer.suite.budget.prompts, seed, step.done - 1)
            self.replayed.append(self.bare(prompts))
        self.before, self.start, self.cpu = seconds, time.perf_counter(), time.process_time()


def measure_row(
    prepared: PreparedSuite, row: PreparedRow, backbone: Backbone, evaluators: dict[str, Evaluator], folder: Path
) -> dict[str, Any]:
    """Seconds of one row's updates and of their bare calls, without the first update, which warms up."""
    suite = prepared.suite
    job = TrainingRun(prepared, folder, "speed", row.name, suite.seeds[0])
    trainer = Trainer.new(job, backbone, evaluators)
    anchors = [name for name, rule in trainer.kl_policy.anchors().items() if rule.network]
    alternation = Alternation(trainer, BareCalls(suite, backbone, evaluators, anchors))
    trainer.train(alternation)
    return {"row": row.name, **summary(suite, trainer, alternation.harness, alternation.replayed)}


def summary(
    suite: Suite, trainer: Trainer, harness: Sequence[dict[str, float]], bare: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """Seconds of ordinary updates, fastest by phase, and what probes and checkpoints add to the average update.

    The first update is left out. A KL probe is an additional backward pass, which the bare calls do not have.
    """
    has_kl = suite.probe_every > 0 and has_kl_terms(trainer.kl_policy)
    counted = range(1, len(harness))
    probes = [i for i in counted if has_kl and i % suite.probe_every == suite.probe_every - 1]
    saves = [i for i in counted if (i + 1) % CHECKPOINT_EVERY == 0 or i + 1 == len(harness)]
    ordinary = [i for i in counted if i not in probes and i not in saves]
    harness_seconds, bare_seconds = ([seconds[i] for i in ordinary] for seconds in (harness, bare))
    best, bound = fastest(harness_seconds), fastest(bare_seconds)
    probe = min(harness[i]["update"] for i in probes) - best["update"] if probes else 0.0
    save = min(harness[i]["other"] for i in saves) - best["other"] if saves else 0.0
    extra = (probe / suite.probe_every if probes else 0.0) + save / CHECKPOINT_EVERY
    return {
        "updates": len(counted),
        "ordinary_updates": len(ordinary),
        "phases": {name: {"harness": best[name], "bare": bound[name]} for name in best},
        "ratio": best["total"] / bound["total"],
        "probe_seconds": probe,
        "checkpoint_seconds": save,
        "ratio_all": (best["total"] + extra) / bound["total"],
        "ratio_of_medians": median(each["total"] for each in harness_seconds)
        / median(each["total"] for each in bare_seconds),
        "ratio_of_cpu": sum(each["cpu"] for each in harness[1:]) / sum(each["cpu"] for each in bare[1:]),
        "seconds": {"harness": list(harness[1:]), "bare": list(bare[1:])},
    }


def measure_overhead(overrides: Sequence[str] = (), updates: int = CYCLE) -> dict[str, Any]:
    """Figures of every row of the nano suite, trained in a temporary folder."""
    prepared = prepare(load_suite(NANO, ["suite=speed", "seeds=[0]", f"budget.updates={updates + 1}", *overrides]))
    suite, backbone = prepared.suite, make_backbone(prepared)
    backbone.encode(prepared.prompts.train)
    evaluators = {name: make_evaluator(prepared, name) for name in dict.fromkeys([*suite.reward, *suite.monitor])}
    rows = []
    for row in prepared.rows:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure_row(prepared, row, backbone, evaluators, Path(folder)))
    shape = {name: getattr(suite.budget, name) for name in ("prompts", "group_size", "steps", "train_steps")}
    return {"goal": GOAL, "work": shape, "rows": rows}
