"""What the nano recipes share: a stopwatch that prints progress, and the report stored beside each checkpoint part."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDERS = ("hunyuanvideo15", "videoreward", "clip", "pickscore")


class Timer:
    """Progress of one recipe: a line on stderr about every 20 seconds with losses and time left."""

    def __init__(self, name: str, steps: int):
        self.name, self.steps = name, steps
        self.start, self.cpu = time.monotonic(), time.process_time()
        self.spoke = self.start

    def line(self, step: int, **values: Tensor | float) -> None:
        now = time.monotonic()
        if now - self.spoke < 20 and step + 1 < self.steps:
            return
        self.spoke = now
        left = (now - self.start) / (step + 1) * (self.steps - step - 1)
        shown = "  ".join(
            f"{key} {float(value.detach() if isinstance(value, Tensor) else value):.4f}"
            for key, value in values.items()
        )
        print(f"{self.name} {step + 1}/{self.steps}  {shown}  {left / 60:.1f} min left", file=sys.stderr, flush=True)

    def spent(self) -> dict[str, float]:
        """Minutes of wall clock and of CPU time since the start."""
        return {
            "wall_minutes": round((time.monotonic() - self.start) / 60, 2),
            "cpu_minutes": round((time.process_time() - self.cpu) / 60, 2),
        }


def num_workers(device: str) -> int:
    """Processes that make the next batches while a GPU trains; none where the CPU trains."""
    return 0 if device == "cpu" else max(1, (os.cpu_count() or 2) - 2)


def save_report(folder: Path, watch: Timer, recipe: dict[str, Any], measured: dict[str, Any]) -> None:
    """Write `report.json`: the recipe's arguments, what was measured, minutes, and the machine's kind."""
    gpu = torch.cuda.is_initialized()
    command = f"bench nano {watch.name}" + (" --device cuda" if gpu else "")
    report = {
        "command": command,
        "recipe": recipe,
        "measured": measured,
        "time": watch.spent(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            **({"gpu": torch.cuda.get_device_name()} if gpu else {}),
        },
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
