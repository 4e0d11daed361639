"""The harness's update loop against the naive one on the same work: same gradient, then time and memory.

The work is one rollout and one update of SAGE-GRPO or FlowGRPO with fixed rewards: decoding and scoring are the same
in both loops and are left out. The policy differs from the base, and the KL weight is large enough to matter.
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
from bench.algorithm.optimizers import Optimizer, make_optimizer
from bench.algorithm.rollout import Sampler
from bench.algorithm.sampling import RolloutConfig
from bench.algorithm.update import StepUpdater, UpdateConfig
from bench.api import Backbone, Budget, Conditioning, KLPolicy, Method, Rewards
from bench.backbones.hunyuanvideo15.backbone import HunyuanVideo15
from bench.backbones.hunyuanvideo15.cost import Transformer
from bench.core.errors import BenchError
from bench.core.ledger import Ledger
from bench.core.provenance import ROOT
from bench.core.rng import normal, stream
from bench.plan.probe import wall_seconds
from bench.plugins import kl_policy
from bench.suite.load import load_suite
from bench.suite.prepared import make_backbone, prepare
from tools.speed.clock import current_gb, fastest, median_cpu, peak_gb
from tools.speed.naive_trainer import NaiveTrainer
from tools.speed.random_model import SMALL, RandomVideo15, perturb_policy
from tools.speed.stock import scaled

NANO = ROOT / "bench" / "configs" / "nano.yaml"
BOUND = 1e-5
"""Largest relative difference of the two gradients, |a - b| / |a| over all trained weights, in float32.

Rounding causes 1e-6 on nano, where batches of one and of 64 are compared. A missing KL term or a wrong mask causes
far more: without the KL, at least 2e-4 in these cases.
"""
KL_WEIGHT = 1.0
"""Constant weight of the KL. With the released 1e-5 a wrong reference would not change the gradient visibly."""
METHODS = {"sage_grpo": "dual", "flow_grpo": "fixed"}
"""Method to KL policy, as in the paper's main table."""
NO_CLIP = 1e9
"""A bound on the gradient's norm that is never reached, so that unclipped gradients are compared."""
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


@dataclass(frozen=True)
class Case:
    """A model, a method, and the harness's samples per forward pass (`micro_batch`)."""

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
    """Inputs of both loops."""

    backbone: HunyuanVideo15
    method: Method
    policy: KLPolicy
    optimizer: Optimizer
    settings: RolloutConfig
    cond: Conditioning
    rewards: Rewards


def prepare_work(case: Case, device: torch.device) -> Work:
    """The case's model, perturbed policy, prompts and rewards."""
    if case.method not in METHODS:
        raise BenchError(f"speed: {case.method!r} is not compared, choose one of {', '.join(METHODS)}.")
    backbone, budget, texts = _model(case, device)
    perturb_policy(backbone)
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
        ready = prepare(load_suite(NANO, [f"backbone.train.device={device.type}"]))
        backbone = make_backbone(ready)
        assert isinstance(backbone, HunyuanVideo15)
        backbone.reset(stream(0, "initial_policy"))
        return backbone, ready.suite.budget, ready.prompts.train
    if case.model == "wide":
        wide = RandomVideo15(WIDE, WIDE_SHAPE, text=TEXT, rank=8, dtype=torch.float32, device=device)
        return wide, WIDE_BUDGET, texts
    budget, texts = replace(WIDE_BUDGET, prompts=2), ["a prompt", "another"]
    return RandomVideo15(SMALL, (4, 2, 4, 4), text=TEXT, rank=2, dtype=torch.float32, device=device), budget, texts


def frozen_optimizer(budget: Budget, backbone: Backbone) -> Optimizer:
    """The suite's optimizer with learning rate 0: its step leaves the parameters unchanged."""
    optimizer = make_optimizer(budget, backbone.parameters())
    for part in getattr(optimizer, "parts", {"": optimizer}).values():
        for group in part.param_groups:
            group["lr"] = 0.0
    return optimizer


def harness_loop(work: Work) -> Callable[[], dict[str, float]]:
    """One rollout and one update by the harness; seconds of each."""
    anchors = [name for name, rule in work.policy.anchors().items() if rule.network]
    device, budget = work.backbone.device, work.settings.budget

    def once() -> dict[str, float]:
        ledger, rollouts = Ledger(), []
        config = UpdateConfig(budget, seed=0)
        updater = StepUpdater(work.backbone, work.method, work.policy, work.optimizer, config, ledger)
        sampler = Sampler(work.backbone, work.method, work.settings, ledger)
        first = wall_seconds(device, lambda: rollouts.append(sampler.sample(work.cond, 0, anchors)))
        second = wall_seconds(device, lambda: updater(rollouts[0], work.rewards, work.policy.init_state(), 0))
        return {"rollout": first, "update": second}

    return once


def naive_loop(work: Work) -> Callable[[], dict[str, float]]:
    """The same rollout and update by the naive loop. Its reference is copied once, by this call."""
    slots = scaled(math.prod(work.backbone.latent_shape[1:]), max(map(len, work.cond.text)))
    loop = NaiveTrainer(work.backbone, work.method, work.policy, work.optimizer, work.settings, slots)
    return lambda: loop(work.cond, work.rewards)


def gradient(work: Work) -> Tensor:
    """The policy's gradient as one vector; zeros for a parameter without a gradient."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in work.backbone.parameters()]
    return torch.cat([part.detach().flatten().double() for part in parts])


def difference(first: Tensor, second: Tensor) -> float:
    """|first - second| / |first|."""
    return float((first - second).norm() / first.norm())


def check_gradients(work: Work, loops: Sequence[Callable[[], Any]]) -> float:
    """Relative difference of the two loops' gradients; `BenchError` above `BOUND`."""
    first, second = loops
    first()
    expected = gradient(work)
    second()
    gap = difference(expected, gradient(work))
    if not gap <= BOUND:
        raise BenchError(
            f"speed: the gradients of the two loops differ by {gap:.2g}, more than {BOUND:g}, so their times do not "
            "compare: fix tools/speed/naive_trainer.py."
        )
    return gap


def compare(case: Case, device: torch.device, repeats: int, memory: bool = True) -> dict[str, Any]:
    """Gradient difference, seconds of both loops in alternation, and their peak memory in fresh processes."""
    work = prepare_work(case, device)
    loops = {"harness": harness_loop(work), "straightforward": naive_loop(work)}
    gap = check_gradients(work, list(loops.values()))  # this also warms up both loops
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
    for _ in range(repeats):
        for name, loop in loops.items():
            cpu = time.process_time()
            halves = loop()
            cpu = time.process_time() - cpu
            seconds[name].append({**halves, "total": sum(halves.values()), "cpu": cpu})
    best = {name: fastest(halves) for name, halves in seconds.items()}
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
        "cpu_ratio": median_cpu(seconds["straightforward"]) / median_cpu(seconds["harness"]),
        "seconds": seconds,
        **({"memory": compare_peaks(case, device)} if memory else {}),
    }


def compare_peaks(case: Case, device: torch.device) -> dict[str, Any]:
    """Peak memory of each loop in GB above a process that has only imported its libraries, and the ratio."""
    gb = {name: peak_in_fresh_process(case, name, device) for name in ("harness", "straightforward")}
    return {"gb": gb, "ratio": gb["straightforward"] / gb["harness"]}


def peak_in_fresh_process(case: Case, loop: str, device: torch.device) -> float:
    """Peak memory in GB of one rollout and update by one loop, in a process of its own."""
    words = json.dumps({**vars(case), "loop": loop, "device": device.type})
    done = subprocess.run([sys.executable, "-m", "tools.speed.compare_loops", words], capture_output=True, text=True)
    if done.returncode:
        raise BenchError(
            f"speed: the {loop} loop of {case.label} failed in its process ({done.stderr.strip()[-300:]}): "
            "free some memory, or fix the cause."
        )
    return float(done.stdout.split()[-1])


def measure_peak(words: str) -> float:
    """Peak memory in GB of one rollout and update in this process. `words`: a case, a loop and a device in JSON."""
    import diffusers
    import peft  # noqa: F401
    import transformers

    _ = (diffusers.HunyuanVideo15Transformer3DModel, diffusers.AutoencoderKLHunyuanVideo15)
    _ = (transformers.Qwen2_5_VLTextModel, transformers.T5EncoderModel)
    fields = json.loads(words)
    loop, device = fields.pop("loop"), torch.device(fields.pop("device"))
    torch.set_num_threads(1)
    before = current_gb(device)
    work = prepare_work(Case(**fields), device)
    (harness_loop(work) if loop == "harness" else naive_loop(work))()
    return peak_gb(device) - before


if __name__ == "__main__":
    sys.stdout.write(f"{measure_peak(sys.argv[1])}\n")
