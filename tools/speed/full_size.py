"""The full-size transformer on one GPU with random bfloat16 weights: share of a measured ceiling, and memory.

It runs the harness's code: the backbone's velocity without masks, the LoRA policy with gradient checkpointing, the
rollout and the update. FLOPs are those of `bench.backbones.hunyuanvideo15.cost`, for the latents and the valid text
tokens only.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bench import plugins
from bench.algorithm.optimizers import Optimizer, make_optimizer
from bench.algorithm.rollout import Rollout, Sampler
from bench.algorithm.sampling import RolloutConfig
from bench.algorithm.update import StepUpdater, UpdateConfig
from bench.api import Budget, Conditioning, Rewards
from bench.backbones.hunyuanvideo15.cost import Transformer
from bench.core.ledger import Ledger
from bench.core.rng import normal
from bench.flow import sigma_schedule
from bench.plan.probe import wall_seconds
from bench.plugins import kl_policy
from tools.speed.clock import peak_gb, repeat_seconds, reset_peak, statistics_of
from tools.speed.random_model import SMALL, RandomVideo15, perturb_policy
from tools.speed.stock import PIPELINE, Slots, padded_velocity, scaled, stock_attention

SHARE_GOAL = 0.60
"""Goal of the rollout's throughput, as a share of the measured ceiling."""
MEMORY_GOAL = 45.0
"""Goal of the peak memory of a SAGE-GRPO update with LoRA: less than this, in GB."""
REPEATS = 3
BUDGET = Budget(
    updates=1, prompts=1, group_size=2, steps=3, train_steps=2, shift=5.0, guidance=1.0, lr=1e-5, micro_batch=1
)
"""Two trained steps and two samples, one per forward pass: a group of one has no advantage."""


@dataclass(frozen=True)
class Setup:
    """A model and the videos that are measured with it."""

    sizes: Transformer
    latents: dict[str, tuple[int, int, int, int]]
    """Video's name to latent shape (c, f, h, w)."""
    matrices: tuple[int, ...]
    """Widths of the square matrices of the ceiling."""
    text: int
    """Text tokens of a prompt."""
    rank: int
    """Rank of the LoRA."""
    slots: Slots
    """Padding of diffusers' forward pass."""
    guidances: tuple[tuple[str, float], ...]
    """Videos and guidance scales of the measured updates. The first update also creates the optimizer's states."""


FULL = Setup(
    Transformer(),
    {"480x848x21": (32, 6, 30, 53), "480x848x81": (32, 21, 30, 53)},
    matrices=(4096, 8192, 16384),
    text=100,
    rank=64,
    slots=PIPELINE,
    guidances=(("480x848x21", 1.0), ("480x848x81", 6.0)),
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
    """Best throughput of a square bfloat16 matrix product in TFLOP/s: the median of 20 repeats at the best width."""
    results = {}
    for width in widths:
        left, right = (torch.ones(width, width, dtype=torch.bfloat16, device=device).normal_() for _ in range(2))
        seconds = statistics_of(repeat_seconds(device, partial(torch.matmul, left, right), 20))
        results[str(width)] = {"tflops": 2 * width**3 / seconds["median"] / 1e12, "seconds": seconds}
    return {"tflops": max(result["tflops"] for result in results.values()), "widths": results}


class GPUBenchmark:
    """Measurements of one backbone on one device."""

    def __init__(self, setup: Setup, device: torch.device):
        self.setup, self.device = setup, device
        first = next(iter(setup.latents.values()))
        self.backbone = RandomVideo15(
            setup.sizes, first, text=setup.text, rank=setup.rank, dtype=torch.bfloat16, device=device
        )
        self.backbone.transformer.enable_gradient_checkpointing()
        perturb_policy(self.backbone)
        self.backbone.refresh_anchor("moving")
        self.optimizer: Optimizer = make_optimizer(BUDGET, self.backbone.parameters())
        self.method = plugins.method("sage_grpo")
        self.cond: Conditioning = self.backbone.encode(["a prompt"])
        self.ceiling = ceiling(device, setup.matrices)

    def _throughput(self, flops: float, work: Callable[[], Any]) -> dict[str, Any]:
        """Seconds, TFLOP/s, share of the ceiling, and peak memory of `work` with `flops` FLOPs."""
        reset_peak(self.device)
        seconds = statistics_of(repeat_seconds(self.device, work, REPEATS))
        tflops = flops / seconds["median"] / 1e12
        return {
            "tflop": flops / 1e12,
            "seconds": seconds,
            "tflops": tflops,
            "share": tflops / self.ceiling["tflops"],
            "peak_gb": peak_gb(self.device),
        }

    def video(self, name: str) -> dict[str, Any]:
        """Forward pass, training step, and diffusers' forward pass at one size: one sample, no guidance."""
        self.backbone.latent_shape = self.setup.latents[name]
        sizes, latents = self.setup.sizes, math.prod(self.backbone.latent_shape[1:])
        x = normal(0, [("speed", "x")], self.backbone.latent_shape).to(self.device)
        forward = sizes.forward(latents, self.setup.text)
        backward = sizes.backward(latents, self.setup.text, checkpointing=True, full=False)
        figures: dict[str, Any] = {
            "latent_tokens": latents,
            "text_tokens": self.setup.text,
            "rollout": self._throughput(forward, lambda: self._forward(x)),
            "train": self._throughput(forward + backward, lambda: self._train(x)),
        }
        with stock_attention(self.backbone.transformer):
            figures["stock"] = self._throughput(forward, lambda: self._stock(x))
        figures["stock_slots"] = self.setup.slots.total
        figures["stock_ratio"] = figures["stock"]["seconds"]["median"] / figures["rollout"]["seconds"]["median"]
        return figures

    def _sigma(self, i: int) -> torch.Tensor:
        return sigma_schedule(BUDGET.steps, BUDGET.shift)[i : i + 1].to(self.device)

    @torch.no_grad()
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone.velocity(x, self._sigma(1), self.cond, 1.0)

    @torch.no_grad()
    def _stock(self, x: torch.Tensor) -> torch.Tensor:
        cond, model = self.cond, self.backbone.transformer
        return padded_velocity(model, x, self._sigma(1), cond.text, cond.more["glyph"], self.setup.slots)

    def _train(self, x: torch.Tensor) -> None:
        """A trained step as in an update, without the optimizer's step."""
        v = self.backbone.velocity(x, self._sigma(1), self.cond, 1.0)
        step = self.method.transition(x, v, self._sigma(1), self._sigma(2))
        self.method.log_prob(step, x).mean().backward()
        for parameter in self.backbone.parameters():
            parameter.grad = None

    def update(self, name: str, guidance: float) -> dict[str, Any]:
        """Seconds and peak memory of a SAGE-GRPO rollout with its anchor, and of its update, by the harness."""
        self.backbone.latent_shape = self.setup.latents[name]
        budget, policy, ledger = replace(BUDGET, guidance=guidance), kl_policy("dual"), Ledger()
        rewards = Rewards({"reward": torch.tensor([[0.0, 1.0]])}, {"reward": 1.0})
        settings = RolloutConfig(budget, "predicted_x0", "distinct", 0)
        rollouts: list[Rollout] = []
        reset_peak(self.device)

        def roll() -> None:
            rollouts.append(Sampler(self.backbone, self.method, settings, ledger).sample(self.cond, 0, ["moving"]))

        rollout, rollout_peak = wall_seconds(self.device, roll), peak_gb(self.device)
        updater = StepUpdater(self.backbone, self.method, policy, self.optimizer, UpdateConfig(budget, seed=0), ledger)
        reset_peak(self.device)
        seconds = wall_seconds(self.device, lambda: updater(rollouts[0], rewards, policy.init_state(), 0))
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


def measure_full_size(device: torch.device, setup: Setup = FULL) -> dict[str, Any]:
    """All figures, in about three minutes on an H100. The first update creates the optimizer's states, which stay."""
    benchmark = GPUBenchmark(setup, device)
    updates = [benchmark.update(name, guidance) for name, guidance in setup.guidances]
    figures = {
        "share_goal": SHARE_GOAL,
        "memory_goal_gb": MEMORY_GOAL,
        "parameters": setup.sizes.parameters,
        "ceiling": benchmark.ceiling,
        "videos": {name: benchmark.video(name) for name in setup.latents},
        "updates": updates,
    }
    del benchmark
    gc.collect()  # the model is in reference cycles, and others come after it
    return figures
