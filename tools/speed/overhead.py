"""What the harness costs: updates of the nano suite by `bench.train.trainer.Trainer`, and their bare calls replayed.

Bare is a loop over the calls that no GRPO update can do without, on the same prompts and shapes: the backbone's
velocity at every rollout step and for every anchor, its decoding, the scorers' `score`, and for each trained step a
velocity with its backward pass, then the optimizer's step. No noise, no transition, no log-probability, no loss, no
KL, no log, no record, no checkpoint. The policy ends where it began, so the harness's run is not touched.
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

from bench.algorithm.sampling import micro_batches
from bench.api import Backbone, Conditioning, Evaluator
from bench.core.provenance import ROOT
from bench.core.rng import normal
from bench.flow import sigma_schedule
from bench.suite.build import make_backbone, make_evaluator
from bench.suite.job import Job
from bench.suite.load import load
from bench.suite.schema import Experiment, RowSpec
from bench.train.rewards import update_prompts
from bench.train.trainer import CHECKPOINT_EVERY, Trainer
from tools.speed.clock import fastest
from tools.speed.compare_loops import frozen_optimizer

NANO = ROOT / "bench" / "configs" / "nano.yaml"
PHASES = ("rollout", "decode", "reward", "monitor", "update")
"""As the ledger names them; what lies outside of them is "other": the record's line, audits, checkpoints."""
GOAL = 1.10
"""Wall time of an update over that of its bare calls, at most."""
CYCLE = 15
"""Updates after which KL probes (every 3) and checkpoints (every 5) have come up equally often."""

TINY_OVERHEAD = (
    *("budget.prompts=2", "budget.group_size=2", "budget.steps=4", "budget.train_steps=2", "budget.micro_batch=4"),
    "reward={gold: {gold_VQ: 0.5, gold_MQ: 0.5, gold_TA: 1.0}}",
    "evaluation={evaluators: [gold], steps: 2, videos_per_prompt: 1}",
    "evaluator_params={}",
    "rows=[{method: sage_grpo, kl: dual}]",
)
"""Overrides for updates of a fraction of a second."""


class Bare:
    """The bare calls of one update, timed phase by phase."""

    def __init__(self, exp: Experiment, backbone: Backbone, evaluators: dict[str, Evaluator], anchors: Sequence[str]):
        self.exp, self.backbone, self.anchors = exp, backbone, anchors
        self.rewards = [evaluators[name] for name in exp.reward]
        self.monitors = [evaluators[name] for name in exp.monitor if name not in exp.reward]
        self.optimizer = frozen_optimizer(exp.budget, backbone)
        self.sigmas = sigma_schedule(exp.budget.steps, exp.budget.shift)

    def __call__(self, prompts: Sequence[str]) -> dict[str, float]:
        """Seconds by phase for a round on these prompts."""
        budget = self.exp.budget
        seconds: dict[str, float] = {}
        spent = [0.0]
        texts = [prompt for prompt in prompts for _ in range(budget.group_size)]
        cond = self.backbone.encode(texts)
        x = normal(0, [("speed", "bare", i) for i in range(len(texts))], self.backbone.latent_shape)
        parts = micro_batches(len(x), budget.micro_batch)
        batches = [(x[part], Conditioning(cond.text[part], cond.glyph[part])) for part in parts]

        def phase(name: str, work: Callable[[], Any]) -> Any:
            start, cpu = time.perf_counter(), time.process_time()
            found = work()
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
            spent[0] += time.process_time() - cpu
            return found

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
        return {**seconds, "other": 0.0, "total": sum(seconds.values()), "cpu": spent[0]}

    @torch.no_grad()
    def _forwards(self, batches: Sequence[tuple[torch.Tensor, Conditioning]], steps: Sequence[int]) -> None:
        for i in steps:
            for x, cond in batches:
                self.backbone.velocity(x, self.sigmas[i].expand(len(x)), cond, self.exp.budget.guidance)

    def _scores(
        self, judges: Sequence[Evaluator], videos: torch.Tensor, texts: Sequence[str], parts: Sequence[slice]
    ) -> None:
        for judge in judges:
            for part in parts:
                judge.score(videos[part], texts[part], self.backbone.fps)

    def _backwards(
        self, batches: Sequence[tuple[torch.Tensor, Conditioning]], weights: Sequence[torch.Tensor]
    ) -> None:
        """A velocity and its backward pass for each trained step, then the optimizer's step."""
        for i in range(self.exp.budget.train_steps):
            for (x, cond), weight in zip(batches, weights, strict=True):
                v = self.backbone.velocity(
                    x, self.sigmas[i].expand(len(x)), cond, self.exp.budget.guidance, self.exp.trains_uncond
                )
                v.backward(weight)
        self.optimizer.step()


class Alternation:
    """Hears the trainer between two updates: notes what the last one took, then replays its bare calls."""

    def __init__(self, trainer: Trainer, bare: Bare):
        self.trainer, self.bare = trainer, bare
        self.prompts = trainer.exp.prompt_list("train")
        self.harness: list[dict[str, float]] = []
        self.replayed: list[dict[str, float]] = []
        self.before: dict[str, float] = {}
        self.start, self.cpu = 0.0, 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        end, cpu = time.perf_counter(), time.process_time() - self.cpu
        spent, seed = dict(self.trainer.ledger.seconds), self.trainer.job.seed
        if done:
            parts = {name: spent.get(name, 0.0) - self.before.get(name, 0.0) for name in PHASES}
            whole = end - self.start
            self.harness.append({**parts, "other": whole - sum(parts.values()), "total": whole, "cpu": cpu})
            assert seed is not None
            self.replayed.append(self.bare(update_prompts(self.trainer.exp, self.prompts, seed, done - 1)))
        self.before, self.start, self.cpu = spent, time.perf_counter(), time.process_time()


def of_row(
    exp: Experiment, row: RowSpec, backbone: Backbone, evaluators: dict[str, Evaluator], folder: Path
) -> dict[str, Any]:
    """Both times of one row's updates; the first update warms up and is left out."""
    trainer = Trainer.new(Job(exp, row, exp.seeds[0], folder, "speed"), backbone, evaluators)
    anchors = [name for name, rule in trainer.policy.anchors().items() if rule.network]
    alternation = Alternation(trainer, Bare(exp, backbone, evaluators, anchors))
    trainer.train(alternation)
    alternation("train", exp.budget.updates, exp.budget.updates)
    return {"row": row.name, **summary(exp, trainer, alternation.harness, alternation.replayed)}


def summary(
    exp: Experiment, trainer: Trainer, harness: Sequence[dict[str, float]], bare: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """Seconds of the ordinary updates, fastest by phase, and what probes and checkpoints add to the average update.

    The first update is left out. A KL probe is a backward pass of its own, which no bare call stands for.
    """
    held = exp.probe_every > 0 and bool(trainer.policy.term_weights())
    counted = range(1, len(harness))
    probes = [i for i in counted if held and i % exp.probe_every == exp.probe_every - 1]
    saves = [i for i in counted if (i + 1) % CHECKPOINT_EVERY == 0 or i + 1 == len(harness)]
    ordinary = [i for i in counted if i not in probes and i not in saves]
    ours, theirs = ([found[i] for i in ordinary] for found in (harness, bare))
    best, floor = fastest(ours), fastest(theirs)
    probe = min(harness[i]["update"] for i in probes) - best["update"] if probes else 0.0
    save = min(harness[i]["other"] for i in saves) - best["other"] if saves else 0.0
    extra = (probe / exp.probe_every if probes else 0.0) + save / CHECKPOINT_EVERY
    return {
        "updates": len(counted),
        "ordinary_updates": len(ordinary),
        "phases": {name: {"harness": best[name], "bare": floor[name]} for name in best},
        "ratio": best["total"] / floor["total"],
        "probe_seconds": probe,
        "checkpoint_seconds": save,
        "ratio_all": (best["total"] + extra) / floor["total"],
        "ratio_of_medians": median(each["total"] for each in ours) / median(each["total"] for each in theirs),
        "ratio_of_cpu": sum(each["cpu"] for each in harness[1:]) / sum(each["cpu"] for each in bare[1:]),
        "seconds": {"harness": list(harness[1:]), "bare": list(bare[1:])},
    }


def measured(overrides: Sequence[str] = (), updates: int = CYCLE) -> dict[str, Any]:
    """Every row of the nano suite, trained in a folder that is thrown away."""
    exp = load(NANO, ["suite=speed", "seeds=[0]", f"budget.updates={updates + 1}", *overrides])
    backbone = make_backbone(exp)
    backbone.encode([*exp.prompt_list("train")])
    evaluators = {name: make_evaluator(exp, name) for name in dict.fromkeys([*exp.reward, *exp.monitor])}
    rows = []
    for row in exp.rows:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(of_row(exp, row, backbone, evaluators, Path(folder)))
    shape = {name: getattr(exp.budget, name) for name in ("prompts", "group_size", "steps", "train_steps")}
    return {"goal": GOAL, "work": shape, "rows": rows}
