"""What the nano recipes share: options, initial weights, the optimizer step, progress lines and reports."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.core.progress import LINE_EVERY, clock, duration, inform

FOLDERS = ("hunyuanvideo15", "wan21", "videoreward", "clip", "pickscore")
"""Folders of the checkpoints."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Constants of CLIP's preprocessing, RGB in [0, 1]; those of `evaluators.common`, which `bench` does not import."""

MAX_NORM = 1.0
"""Gradients are clipped to this norm."""


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """Options of one recipe."""

    steps: int
    """Optimizer steps."""
    batch: int
    """Clips per step."""
    lr: float
    """Peak learning rate of AdamW."""
    seed: int = 0
    """Seed of the initial weights and of all data."""
    device: str = "cpu"
    """Device that trains: "cpu" or "cuda"."""


class Timer:
    """Progress of one recipe: a line on stderr about every minute with losses and time left."""

    def __init__(self, name: str, steps: int):
        self.name, self.steps = name, steps
        self.start, self.cpu_start = time.monotonic(), time.process_time()
        self.last_line = self.start

    def line(self, step: int, **values: Tensor | float) -> None:
        """Print `values`, if a minute has passed or `step` is the last one."""
        now = time.monotonic()
        if now - self.last_line < LINE_EVERY and step + 1 < self.steps:
            return
        self.last_line = now
        left = duration((now - self.start) / (step + 1) * (self.steps - step - 1))
        text = "  ".join(
            f"{key} {float(value.detach() if isinstance(value, Tensor) else value):.4f}"
            for key, value in values.items()
        )
        inform(f"{clock()} {self.name} {step + 1}/{self.steps}  {text}  {left} left")

    def spent(self) -> dict[str, float]:
        """Minutes of wall clock and of CPU time since the start."""
        return {
            "wall_minutes": round((time.monotonic() - self.start) / 60, 2),
            "cpu_minutes": round((time.process_time() - self.cpu_start) / 60, 2),
        }


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global CPU generator for initial weights, and restore it: the model libraries take no generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def learning_rate(config: RecipeConfig, step: int, warmup: int = 100, floor: float = 0.0) -> float:
    """Learning rate of one step: linear warm-up, times a half cosine from 1 to `floor` over all steps."""
    cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return config.lr * min(1.0, (step + 1) / warmup) * cosine


def optimizer_step(
    optimizer: torch.optim.Optimizer, loss: Tensor, clipped: Iterable[torch.nn.Parameter], lr: float
) -> None:
    """One step at the rate `lr`, with the gradients of the parameters `clipped` limited to `MAX_NORM`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(clipped, MAX_NORM)
    optimizer.step()


def num_workers(device: str) -> int:
    """Processes that prepare the next batches while a GPU trains; 0 where the CPU trains."""
    return 0 if device == "cpu" else max(1, (os.cpu_count() or 2) - 2)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A JSON file with indent 2; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_report(folder: Path, progress: Timer, recipe: dict[str, Any], measured: dict[str, Any]) -> None:
    """Write `report.json`: arguments of the recipe, measurements, minutes, and the kind of machine."""
    gpu = torch.cuda.is_initialized()
    report = {
        "command": f"bench nano {progress.name}" + (" --device cuda" if gpu else ""),
        "recipe": recipe,
        "measured": measured,
        "time": progress.spent(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            **({"gpu": torch.cuda.get_device_name()} if gpu else {}),
        },
    }
    write_json(folder / "report.json", report)
