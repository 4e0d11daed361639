"""Seconds, memory, and statistics of repeats on a machine that other programs use too."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bench.core.provenance import peak_kib, reset_peak_kib
from bench.plan.probe import wall_seconds

GB = 1e9


def repeat_seconds(device: torch.device, work: Callable[[], Any], repeats: int) -> list[float]:
    """Wall-clock seconds of each repeat, after one repeat for warming up."""
    work()
    return [wall_seconds(device, work) for _ in range(repeats)]


def statistics_of(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and every repeat in its order."""
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "all": list(seconds),
    }


def fastest(repeats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The fastest repeat of each part, and "total", their sum: a lower bound without interference.

    Each repeat holds seconds by part, "total", and "cpu", the processor time of all parts together.
    """
    parts = [name for name in repeats[0] if name not in ("total", "cpu")]
    best = {name: min(each[name] for each in repeats) for name in parts}
    return {**best, "total": sum(best.values())}


def median_cpu(repeats: Sequence[Mapping[str, float]]) -> float:
    """Median processor time, which other programs on the machine affect less than wall time."""
    return statistics.median(each["cpu"] for each in repeats)


def reset_peak(device: torch.device) -> None:
    """Let `peak_gb` count from now on; of a CPU process on Linux only."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_peak_kib()


def peak_gb(device: torch.device) -> float:
    """Peak in GB of 10^9 bytes: the GPU's tensors, or this process's resident memory, since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GB
    return peak_kib() * 1024 / GB


def current_gb(device: torch.device) -> float:
    """Memory of the GPU's tensors, or resident memory of this process, now and in GB."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / GB
    import psutil

    return float(psutil.Process().memory_info().rss) / GB
