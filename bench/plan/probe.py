"""The probe of `bench plan --probe`: two rollout steps, a training step and a decode of the suite's own backbone.

Each is done once before it is timed: kernels are chosen and memory is taken the first time.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.api import Backbone, Conditioning, Method
from bench.core.ledger import guidance_multiplicity
from bench.core.rng import normal, stream
from bench.flow import sigma_schedule
from bench.plan.page import amount
from bench.plan.workload import UnitCost
from bench.suite.build import make_backbone
from bench.suite.methods import make_method
from bench.suite.schema import Experiment

STEPS = 2
"""Rollout steps that are timed together."""
REPEATS, ENOUGH = 5, 2.0
"""Times that each of them is timed, and seconds after which it is not timed again: what is short is disturbed most."""


@dataclass(frozen=True)
class ProbeTimings:
    """What the probe saw. Seconds of one micro-batch."""

    samples: int
    """Samples of the micro-batch."""
    rollout: float
    """Seconds of one rollout step, guidance included."""
    train: float
    """Seconds of one trained step, forward and backward."""
    decode: float
    device: str
    peak_bytes: int | None
    """Peak of the GPU's memory; None on a CPU."""

    def price(self, exp: Experiment) -> UnitCost:
        """Seconds per function evaluation of one sample, per backward pass of one, and per decoded video."""
        times = guidance_multiplicity(exp.budget.guidance)
        forward = self.rollout / (self.samples * times)
        backwards = times if exp.trains_uncond else 1
        backward = (self.train / self.samples - times * forward) / backwards
        return UnitCost(forward, max(backward, 0.0), self.decode / self.samples)

    def lines(self, exp: Experiment, work: UnitCost, predicted: UnitCost | None) -> list[str]:
        """Predicted against measured, and the pace that was reached."""
        price, found = self.price(exp), []
        entries = (
            ("function evaluation", work.forward, price.forward, predicted and predicted.forward),
            ("its backward pass", work.backward, price.backward, predicted and predicted.backward),
            ("decoded video", work.decode, price.decode, predicted and predicted.decode),
        )
        for name, flops, seconds, guess in entries:
            text = f"probe: {name} {seconds:.3g} s"
            if flops and seconds:
                text += f" = {amount(flops / seconds)}/s"
            found.append(text + (f", predicted {guess:.3g} s" if guess else ""))
        peak = "" if self.peak_bytes is None else f", peak {self.peak_bytes / 1e9:.1f} GB"
        return [f"probe on {self.device}: micro-batch of {self.samples}, {STEPS} rollout steps{peak}", *found]


def run_probe(exp: Experiment) -> ProbeTimings:
    """Load the backbone and time a micro-batch of the suite's first row; nothing is stored.

    On one thread, as a run's processes do.
    """
    torch.set_num_threads(1)
    backbone = make_backbone(exp)
    backbone.reset(stream(0, "initial_policy"))
    latent = backbone.latent_shape
    method = make_method(exp, exp.rows[0], math.prod(latent))
    device = getattr(backbone, "device", torch.device("cpu"))
    budget = exp.budget
    samples = min(budget.micro_batch, budget.prompts * budget.group_size)
    texts = exp.prompt_list("train")
    with torch.no_grad():
        cond = backbone.encode([texts[i // budget.group_size % len(texts)] for i in range(samples)])
        x = normal(0, [("probe", i) for i in range(samples)], latent)
        _step(exp, backbone, x, cond, 0)
        rollout = _timed(device, lambda: [_step(exp, backbone, x, cond, i) for i in range(STEPS)]) / STEPS
    _train(exp, backbone, method, x, cond)
    train = _timed(device, lambda: _train(exp, backbone, method, x, cond))
    backbone.decode(x)
    decode = _timed(device, lambda: backbone.decode(x))
    on_gpu = device.type == "cuda"
    return ProbeTimings(
        samples,
        rollout,
        train,
        decode,
        torch.cuda.get_device_name(device) if on_gpu else "this CPU, one process",
        torch.cuda.max_memory_allocated(device) if on_gpu else None,
    )


def _step(exp: Experiment, backbone: Backbone, x: torch.Tensor, cond: Conditioning, i: int) -> torch.Tensor:
    sigma = sigma_schedule(exp.budget.steps, exp.budget.shift)[i].expand(len(x))
    return backbone.velocity(x, sigma, cond, exp.budget.guidance)


def _train(exp: Experiment, backbone: Backbone, method: Method, x: torch.Tensor, cond: Conditioning) -> None:
    """One trained step as the updater does it: new log-probability of a stored transition, and its gradient."""
    sigmas = sigma_schedule(exp.budget.steps, exp.budget.shift)
    sigma, sigma_next = (sigmas[i].expand(len(x)) for i in (1, 2))
    v = backbone.velocity(x, sigma, cond, exp.budget.guidance, exp.trains_uncond)
    method.log_prob(method.transition(x, v, sigma, sigma_next), x).mean().backward()
    for parameter in backbone.parameters():
        parameter.grad = None


def _timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Median wall-clock seconds of up to `REPEATS` times, fewer where they take more than `ENOUGH` together."""
    found: list[float] = []
    while len(found) < REPEATS and sum(found) < ENOUGH:
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def _wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
