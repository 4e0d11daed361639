"""The harness's update loop beside the straightforward one, on the same work: same gradient, then time and memory.

The work is one rollout and one update of SAGE-GRPO or FlowGRPO. Rewards are given numbers: decoding and scoring are
the same in both loops and are left out. The policy stands away from the base and the KL weighs enough to be seen.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bench import plugins
from bench.algorithm.kl import KLPolicy, kl_policy
from bench.algorithm.optimizers import Optimizer, make_optimizer
from bench.algorithm.rollout import RolloutConfig, sample
from bench.algorithm.update import Updater
from bench.api import Backbone, Budget, Conditioning, Method, Rewards
from bench.backbones.hunyuanvideo15.backbone import HunyuanVideo15
from bench.core.errors import BenchError
from bench.core.ledger import Ledger
from bench.core.provenance import ROOT
from bench.core.rng import normal, stream
from bench.plan.flops import Transformer
from bench.suite.build import make_backbone
from bench.suite.load import load
from tools.speed.clock import fastest, held_gb, peak_gb, processor, timed
from tools.speed.naive_trainer import NaiveTrainer
from tools.speed.random_model import SMALL, RandomVideo15, shake
from tools.speed.stock import scaled

NANO = ROOT / "bench" / "configs" / "nano.yaml"
BOUND = 1e-5
"""Largest relative difference of the two gradients, |a - b| / |a| over all trained weights, in float32.

Rounding makes 1e-6 of it on nano, where batches of one and of 64 are compared. A missing KL term or a wrong mask is
far above: without the KL, 2e-4 at the least of our cases.
"""
KL_WEIGHT = 1.0
"""Constant weight of the KL, so that a wrong reference shows in the gradient (at the released 1e-5 it would not)."""
METHODS = {"sage_grpo": "dual", "flow_grpo": "fixed"}
"""Method to KL policy, as in the paper's main table."""
NO_CLIP = 1e9
"""A bound on the gradient's norm that is never met, so that gradients compare as they are."""
WIDE = Transformer(
    in_channels=65,
    out_channels=32,
    num_attention_heads=4,
    attention_head_dim=64,
    num_layers=2,
    num_refiner_layers=1,
    text_embed_dim=64,
    text_embed_2_dim=32,
    image_embed_dim=32,
)
WIDE_SHAPE = (32, 8, 16, 16)
WIDE_BUDGET = Budget(updates=1, prompts=1, group_size=2, steps=4, train_steps=2, shift=5.0, guidance=1.0, lr=1e-5)
TEXT = 12
"""Text tokens of a random model's prompt."""

Loop = Literal["harness", "straightforward"]


@dataclass(frozen=True)
class Case:
    """One piece of work. `micro_batch`: samples per forward pass of the harness."""

    model: Literal["nano", "wide", "tiny"]
    method: str
    micro_batch: int
    guidance: float = 1.0

    @property
    def label(self) -> str:
        return f"{self.model}, {self.method}, micro-batch {self.micro_batch}"


CASES = [
    Case("nano", "sage_grpo", 64),
    Case("nano", "sage_grpo", 1),
    Case("nano", "flow_grpo", 64),
    Case("wide", "sage_grpo", 1),
    Case("wide", "flow_grpo", 1),
]
TINY_LOOPS = [Case("tiny", "sage_grpo", 4, 3.0), Case("tiny", "flow_grpo", 1)]


@dataclass
class Work:
    """What both loops are given."""

    backbone: HunyuanVideo15
    method: Method
    policy: KLPolicy
    optimizer: Optimizer
    settings: RolloutConfig
    cond: Conditioning
    rewards: Rewards


def prepared(case: Case, device: torch.device) -> Work:
    """The case's model, shaken policy, prompts and rewards."""
    if case.method not in METHODS:
        raise BenchError(f"speed: {case.method!r} is not compared, choose one of {', '.join(METHODS)}.")
    backbone, budget, texts = _model(case, device)
    shake(backbone)
    budget = replace(budget, micro_batch=case.micro_batch, guidance=case.guidance, grad_clip=NO_CLIP)
    policy = kl_policy(METHODS[case.method], controller="constant", weight=KL_WEIGHT)
    optimizer = frozen_optimizer(budget, backbone)
    pairs = [("speed", "reward", i) for i in range(budget.prompts * budget.group_size)]
    values = normal(0, pairs, ()).reshape(budget.prompts, budget.group_size)
    return Work(
        backbone,
        plugins.method(case.method),
        policy,
        optimizer,
        RolloutConfig(budget, "predicted_x0", "distinct", 0),
        backbone.encode(texts[: budget.prompts]),
        Rewards({"reward": values}, {"reward": 1.0}),
    )


def _model(case: Case, device: torch.device) -> tuple[HunyuanVideo15, Budget, list[str]]:
    """Backbone, budget and prompts of a case."""
    texts = [f"prompt {i}" for i in range(WIDE_BUDGET.prompts)]
    if case.model == "nano":
        exp = load(NANO, [f"backbone.train.device={device.type}"])
        backbone = make_backbone(exp)
        assert isinstance(backbone, HunyuanVideo15)
        backbone.reset(stream(0, "initial_policy"))
        return backbone, exp.budget, exp.prompt_list("train")
    if case.model == "wide":
        return RandomVideo15(WIDE, WIDE_SHAPE, TEXT, 8, torch.float32, device), WIDE_BUDGET, texts
    budget, texts = replace(WIDE_BUDGET, prompts=2), ["a prompt", "another"]
    return RandomVideo15(SMALL, (4, 2, 4, 4), TEXT, 2, torch.float32, device), budget, texts


def frozen_optimizer(budget: Budget, backbone: Backbone) -> Optimizer:
    """The suite's optimizer, which computes as ever and moves nothing: every repeat starts from the same policy."""
    optimizer = make_optimizer(budget, backbone.parameters())
    for part in getattr(optimizer, "parts", {"": optimizer}).values():
        for group in part.param_groups:
            group["lr"] = 0.0
    return optimizer


def harness(work: Work) -> Callable[[], dict[str, float]]:
    """One round by the harness's own rollout and updater; seconds of both halves."""
    anchors = [name for name, rule in work.policy.anchors().items() if rule.network]
    device, budget = work.backbone.device, work.settings.budget

    def once() -> dict[str, float]:
        ledger, found = Ledger(), []
        updater = Updater(work.backbone, work.method, work.policy, work.optimizer, budget, 0, ledger)
        first = timed(
            device,
            lambda: found.append(sample(work.backbone, work.method, work.cond, work.settings, 0, anchors, ledger)),
        )
        second = timed(device, lambda: updater(found[0], work.rewards, work.policy.init_state(), 0))
        return {"rollout": first, "update": second}

    return once


def naive_loop(work: Work) -> Callable[[], dict[str, float]]:
    """The same round by the straightforward loop; its reference is copied here, once."""
    slots = scaled(math.prod(work.backbone.latent_shape[1:]), max(map(len, work.cond.text)))
    loop = NaiveTrainer(work.backbone, work.method, work.policy, work.optimizer, work.settings, slots)
    return lambda: loop(work.cond, work.rewards)


def gradient(work: Work) -> Tensor:
    """The policy's gradient as one vector; zeros where there is none."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in work.backbone.parameters()]
    return torch.cat([part.detach().flatten().double() for part in parts])


def difference(first: Tensor, second: Tensor) -> float:
    """|first - second| / |first|."""
    return float((first - second).norm() / first.norm())


def same_gradient(work: Work, loops: Sequence[Callable[[], Any]]) -> float:
    """Difference of the gradients of two loops; above `BOUND` they do not do the same work."""
    found = []
    for loop in loops:
        loop()
        found.append(gradient(work))
    gap = difference(*found)
    if not gap <= BOUND:
        raise BenchError(
            f"speed: the gradients of the two loops differ by {gap:.2g}, more than {BOUND:g}, so no times compare: "
            "mend bench/speed/straightforward.py."
        )
    return gap


def compared(case: Case, device: torch.device, repeats: int, memory: bool = True) -> dict[str, Any]:
    """Gradient difference, seconds of both loops in alternation, and peaks of a fresh process each."""
    work = prepared(case, device)
    loops = {"harness": harness(work), "straightforward": naive_loop(work)}
    gap = same_gradient(work, list(loops.values()))  # warms up, too
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
    for _ in range(repeats):
        for name, loop in loops.items():
            cpu = time.process_time()
            halves = loop()
            cpu = time.process_time() - cpu
            seconds[name].append({**halves, "total": sum(halves.values()), "cpu": cpu})
    best = {name: fastest(found) for name, found in seconds.items()}
    budget = work.settings.budget
    return {
        "case": case.label,
        "device": device.type,
        "samples": budget.prompts * budget.group_size,
        "steps": budget.steps,
        "train_steps": budget.train_steps,
        "guidance": budget.guidance,
        "latent_tokens": math.prod(work.backbone.latent_shape[1:]),
        "gradient_difference": gap,
        "fastest": best,
        "time_ratio": best["straightforward"]["total"] / best["harness"]["total"],
        "cpu_ratio": processor(seconds["straightforward"]) / processor(seconds["harness"]),
        "seconds": seconds,
        **({"memory": peaks(case, device)} if memory else {}),
    }


# memory, in a process of its own ------------------------------------------------------------------------------
def peaks(case: Case, device: torch.device) -> dict[str, Any]:
    """Peak of each loop in GB above a process that has only imported its libraries, and the ratio."""
    found = {name: fresh(case, name, device) for name in ("harness", "straightforward")}
    return {"gb": found, "ratio": found["straightforward"] / found["harness"]}


def fresh(case: Case, loop: str, device: torch.device) -> float:
    """One round of one loop in a fresh process; its peak in GB."""
    words = json.dumps({**vars(case), "loop": loop, "device": device.type})
    done = subprocess.run([sys.executable, "-m", "tools.speed.compare_loops", words], capture_output=True, text=True)
    if done.returncode:
        raise BenchError(
            f"speed: the {loop} loop of {case.label} stopped in its own process ({done.stderr.strip()[-300:]}): "
            "free some memory, or mend what it names."
        )
    return float(done.stdout.split()[-1])


def own_peak(words: str) -> float:
    """What the fresh process does: build the model, do one round, and say how much memory that took."""
    import diffusers
    import peft  # noqa: F401
    import transformers

    _ = (diffusers.HunyuanVideo15Transformer3DModel, diffusers.AutoencoderKLHunyuanVideo15)
    _ = (transformers.Qwen2_5_VLTextModel, transformers.T5EncoderModel)
    asked = json.loads(words)
    loop, device = asked.pop("loop"), torch.device(asked.pop("device"))
    torch.set_num_threads(1)
    before = held_gb(device)
    work = prepared(Case(**asked), device)
    (harness(work) if loop == "harness" else naive_loop(work))()
    return peak_gb(device) - before


if __name__ == "__main__":
    sys.stdout.write(f"{own_peak(sys.argv[1])}\n")
