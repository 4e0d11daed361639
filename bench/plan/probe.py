"""The probe of `bench plan --probe`: two rollout steps, a training step and a decode of the suite's backbone.

Each is run once before it is timed, since the first time selects kernels and allocates memory.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.api import AnyMethod, Backbone, Conditioning, Method
from bench.core.ledger import guidance_multiplicity
from bench.core.process_state import fix_process_state
from bench.core.rng import normal, stream
from bench.flow import sigma_schedule
from bench.plan.page import format_flops
from bench.plan.workload import UnitCost
from bench.suite.prepared import PreparedSuite, make_backbone
from bench.suite.schema import Suite

STEPS = 2
"""Rollout steps that are timed together."""
MAX_REPEATS, MIN_SECONDS = 5, 2.0
"""Each step is repeated until it has taken `MIN_SECONDS` in total, at most `MAX_REPEATS` times."""


@dataclass(frozen=True)
class ProbeTimings:
    """Seconds of one micro-batch."""

    samples: int
    """Samples of the micro-batch."""
    rollout: float
    """Seconds of one rollout step, guidance included."""
    train: float
    """Seconds of one trained step, forward and backward."""
    decode: float
    """Seconds of decoding the micro-batch's videos."""
    device: str
    peak_bytes: int | None
    """Peak of the GPU's memory; None on a CPU."""

    def unit_cost(self, suite: Suite) -> UnitCost:
        """Seconds per function evaluation of one sample, per backward pass of one, and per decoded video."""
        branches = guidance_multiplicity(suite.budget.guidance)
        forward = self.rollout / (self.samples * branches)
        backwards = branches if suite.trains_uncond else 1
        backward = (self.train / self.samples - branches * forward) / backwards
        return UnitCost(forward, max(backward, 0.0), self.decode / self.samples)

    def lines(self, suite: Suite, work: UnitCost, predicted: UnitCost | None) -> list[str]:
        """Lines of text with predicted and measured seconds, and the measured throughput. `work`: FLOPs."""
        measured, lines = self.unit_cost(suite), []
        entries = (
            ("function evaluation", work.forward, measured.forward, predicted and predicted.forward),
            ("its backward pass", work.backward, measured.backward, predicted and predicted.backward),
            ("decoded video", work.decode, measured.decode, predicted and predicted.decode),
        )
        for name, flops, seconds, prediction in entries:
            text = f"probe: {name} {seconds:.3g} s"
            if flops and seconds:
                text += f" = {format_flops(flops / seconds)}/s"
            lines.append(text + (f", predicted {prediction:.3g} s" if prediction else ""))
        peak = "" if self.peak_bytes is None else f", peak {self.peak_bytes / 1e9:.1f} GB"
        return [f"probe on {self.device}: micro-batch of {self.samples}, {STEPS} rollout steps{peak}", *lines]


def run_probe(prepared: PreparedSuite) -> ProbeTimings:
    """Load the backbone and time a micro-batch of the suite's first row, on one thread as in a run. Stores nothing."""
    fix_process_state()
    suite, backbone = prepared.suite, make_backbone(prepared, prompts=prepared.all_prompts)
    backbone.reset(stream(0, "initial_policy"))
    latent = backbone.latent_shape
    method = prepared.method(prepared.rows[0], math.prod(latent))
    device = getattr(backbone, "device", torch.device("cpu"))
    budget = suite.budget
    samples = min(budget.micro_batch, budget.prompts * budget.group_size)
    texts = prepared.prompts.train
    with torch.no_grad():
        cond = backbone.encode([texts[i // budget.group_size % len(texts)] for i in range(samples)])
        x = normal(0, [("probe", i) for i in range(samples)], latent)
        _step(suite, backbone, x, cond, 0)
        rollout = median_seconds(device, lambda: [_step(suite, backbone, x, cond, i) for i in range(STEPS)]) / STEPS
    _train(suite, backbone, method, x, cond)
    train = median_seconds(device, lambda: _train(suite, backbone, method, x, cond))
    backbone.decode(x)
    decode = median_seconds(device, lambda: backbone.decode(x))
    on_gpu = device.type == "cuda"
    return ProbeTimings(
        samples,
        rollout,
        train,
        decode,
        torch.cuda.get_device_name(device) if on_gpu else "this CPU, one process",
        torch.cuda.max_memory_allocated(device) if on_gpu else None,
    )


def _step(suite: Suite, backbone: Backbone, x: torch.Tensor, cond: Conditioning, i: int) -> torch.Tensor:
    sigma = sigma_schedule(suite.budget.steps, suite.budget.shift)[i].expand(len(x))
    return backbone.velocity(x, sigma, cond, suite.budget.guidance)


def _train(suite: Suite, backbone: Backbone, method: AnyMethod, x: torch.Tensor, cond: Conditioning) -> None:
    """One trained step as in an update: the log-probability of a stored transition, and its gradient."""
    sigmas = sigma_schedule(suite.budget.steps, suite.budget.shift)
    sigma, sigma_next = (sigmas[i].expand(len(x)) for i in (1, 2))
    v = backbone.velocity(x, sigma, cond, suite.budget.guidance, suite.trains_uncond)
    if isinstance(method, Method):
        method.log_prob(method.transition(x, v, sigma, sigma_next), x).mean().backward()
    else:  # a loss on the velocity itself
        v.square().mean().backward()
    for parameter in backbone.parameters():
        parameter.grad = None


def median_seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """Median wall-clock seconds of the repeats."""
    seconds: list[float] = []
    while len(seconds) < MAX_REPEATS and sum(seconds) < MIN_SECONDS:
        seconds.append(wall_seconds(device, work))
    return statistics.median(seconds)


def wall_seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """Wall-clock seconds of `work`, until the device has finished it."""
    _synchronize(device)
    start = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
