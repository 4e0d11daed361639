"""The full-size transformer on one GPU, random bfloat16 weights: pace against the card's own ceiling, and memory.

What runs is the harness: its backbone's velocity without masks, its LoRA policy with gradient checkpointing, its
rollout and its updater. FLOPs are those of `bench.plan.flops`, for the latents and the valid text tokens only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bench import plugins
from bench.algorithm.kl import kl_policy
from bench.algorithm.optimizers import Optimizer, make_optimizer
from bench.algorithm.rollout import Rollout, RolloutConfig, sample
from bench.algorithm.update import Updater
from bench.api import Budget, Conditioning, Rewards
from bench.core.ledger import Ledger
from bench.core.rng import normal
from bench.flow import sigma_schedule
from bench.plan.flops import Transformer
from tools.speed.clock import forget_peak, peak_gb, repeated, spread, timed
from tools.speed.random_model import SMALL, RandomVideo15, shake
from tools.speed.stock import PIPELINE, Slots, padded_velocity, scaled, stock_attention

SHARE_GOAL = 0.60
"""Of the measured ceiling, in the rollout."""
MEMORY_GOAL = 45.0
"""GB at the peak of a SAGE-GRPO update with LoRA, below which it should stay."""
REPEATS = 3
BUDGET = Budget(
    updates=1, prompts=1, group_size=2, steps=3, train_steps=2, shift=5.0, guidance=1.0, lr=1e-5, micro_batch=1
)
"""Two trained steps; two samples, since a group of one has no advantage, that pass the model one at a time."""


@dataclass(frozen=True)
class Setup:
    """What is measured: a model's sizes, latents (c, f, h, w) by the video's name, and the square matrices' widths."""

    sizes: Transformer
    latents: dict[str, tuple[int, int, int, int]]
    matrices: tuple[int, ...]
    text: int
    rank: int
    slots: Slots
    guidances: tuple[tuple[str, float], ...]
    """Videos and guidance scales of the measured updates; the first one also makes the optimizer's states."""


FULL = Setup(
    Transformer(),
    {"480x848x21": (32, 6, 30, 53), "480x848x81": (32, 21, 30, 53)},
    matrices=(4096, 8192, 16384),
    text=100,
    rank=64,
    slots=PIPELINE,
    guidances=(("480x848x21", 1.0), ("480x848x81", 1.0), ("480x848x81", 6.0)),
)
TINY_MODEL = Setup(
    SMALL,
    {"tiny": (4, 2, 4, 4)},
    matrices=(64,),
    text=12,
    rank=2,
    slots=scaled(32, 12),
    guidances=(("tiny", 1.0), ("tiny", 6.0)),
)
"""The same code in seconds on a CPU."""


def ceiling(device: torch.device, widths: tuple[int, ...]) -> dict[str, Any]:
    """Best pace of a square bfloat16 matrix product, in TFLOP/s: the median of 20 repeats at the best width."""
    tried = {}
    for width in widths:
        left, right = (torch.ones(width, width, dtype=torch.bfloat16, device=device).normal_() for _ in range(2))
        seconds = spread(repeated(device, partial(torch.matmul, left, right), 20))
        tried[str(width)] = {"tflops": 2 * width**3 / seconds["median"] / 1e12, "seconds": seconds}
    return {"tflops": max(found["tflops"] for found in tried.values()), "widths": tried}


class Measure:
    """One backbone on one device; each method measures one thing."""

    def __init__(self, setup: Setup, device: torch.device):
        self.setup, self.device = setup, device
        first = next(iter(setup.latents.values()))
        self.backbone = RandomVideo15(
            setup.sizes, first, setup.text, setup.rank, torch.bfloat16, device, gradient_checkpointing=True
        )
        shake(self.backbone)
        self.backbone.refresh_anchor("moving")
        self.optimizer: Optimizer = make_optimizer(BUDGET, self.backbone.parameters())
        self.method = plugins.method("sage_grpo")
        self.cond: Conditioning = self.backbone.encode(["a prompt"])
        self.ceiling = ceiling(device, setup.matrices)

    def _pace(self, flops: float, work: Callable[[], Any]) -> dict[str, Any]:
        """Seconds, TFLOP/s, share of the ceiling, and peak memory of some work of so many FLOPs."""
        forget_peak(self.device)
        seconds = spread(repeated(self.device, work, REPEATS))
        tflops = flops / seconds["median"] / 1e12
        return {
            "tflop": flops / 1e12,
            "seconds": seconds,
            "tflops": tflops,
            "share": tflops / self.ceiling["tflops"],
            "peak_gb": peak_gb(self.device),
        }

    def video(self, name: str) -> dict[str, Any]:
        """Rollout forward, training step and stock forward at one size, one sample without guidance."""
        self.backbone.latent_shape = self.setup.latents[name]
        sizes, latents = self.setup.sizes, math.prod(self.backbone.latent_shape[1:])
        x = normal(0, [("speed", "x")], self.backbone.latent_shape).to(self.device)
        forward = sizes.forward(latents, self.setup.text)
        backward = sizes.backward(latents, self.setup.text, checkpointing=True, full=False)
        found: dict[str, Any] = {
            "latent_tokens": latents,
            "text_tokens": self.setup.text,
            "rollout": self._pace(forward, lambda: self._forward(x)),
            "train": self._pace(forward + backward, lambda: self._train(x)),
        }
        with stock_attention(self.backbone.transformer):
            found["stock"] = self._pace(forward, lambda: self._stock(x))
        found["stock_slots"] = self.setup.slots.total
        found["stock_ratio"] = found["stock"]["seconds"]["median"] / found["rollout"]["seconds"]["median"]
        return found

    def _sigma(self, i: int) -> torch.Tensor:
        return sigma_schedule(BUDGET.steps, BUDGET.shift)[i : i + 1].to(self.device)

    @torch.no_grad()
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone.velocity(x, self._sigma(1), self.cond, 1.0)

    @torch.no_grad()
    def _stock(self, x: torch.Tensor) -> torch.Tensor:
        cond, model = self.cond, self.backbone.transformer
        return padded_velocity(model, x, self._sigma(1), cond.text, cond.glyph, self.setup.slots)

    def _train(self, x: torch.Tensor) -> None:
        """A trained step as the updater takes it, without the optimizer's."""
        v = self.backbone.velocity(x, self._sigma(1), self.cond, 1.0)
        step = self.method.transition(x, v, self._sigma(1), self._sigma(2))
        self.method.log_prob(step, x).mean().backward()
        for parameter in self.backbone.parameters():
            parameter.grad = None

    def update(self, name: str, guidance: float) -> dict[str, Any]:
        """Seconds and peaks of a SAGE-GRPO round by the harness: rollout with its anchor, then the update."""
        self.backbone.latent_shape = self.setup.latents[name]
        budget, policy, ledger = replace(BUDGET, guidance=guidance), kl_policy("dual"), Ledger()
        rewards = Rewards({"reward": torch.tensor([[0.0, 1.0]])}, {"reward": 1.0})
        settings = RolloutConfig(budget, "predicted_x0", "distinct", 0)
        rounds: list[Rollout] = []
        forget_peak(self.device)

        def roll() -> None:
            rounds.append(sample(self.backbone, self.method, self.cond, settings, 0, ["moving"], ledger))

        rollout, rollout_peak = timed(self.device, roll), peak_gb(self.device)
        updater = Updater(self.backbone, self.method, policy, self.optimizer, budget, 0, ledger)
        forget_peak(self.device)
        seconds = timed(self.device, lambda: updater(rounds[0], rewards, policy.init_state(), 0))
        self.optimizer.zero_grad()
        return {
            "video": name,
            "guidance": guidance,
            "lora_rank": self.setup.rank,
            "samples": budget.group_size,
            "rollout_seconds": rollout,
            "update_seconds": seconds,
            "rollout_peak_gb": rollout_peak,
            "update_peak_gb": peak_gb(self.device),
        }


def measured(device: torch.device, setup: Setup = FULL) -> dict[str, Any]:
    """Everything, in about five minutes on an H100. The first update makes the optimizer's states, which then stay."""
    measure = Measure(setup, device)
    updates = [measure.update(name, guidance) for name, guidance in setup.guidances]
    return {
        "share_goal": SHARE_GOAL,
        "memory_goal_gb": MEMORY_GOAL,
        "parameters": setup.sizes.parameters,
        "ceiling": measure.ceiling,
        "videos": {name: measure.video(name) for name in setup.latents},
        "updates": updates,
    }
