"""Seconds, memory, and what may be said of repeats on a machine that others use too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bench.core.provenance import peak_kib

GB = 1e9


def wait(device: torch.device) -> None:
    """Until the device has done all its work; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Wall-clock seconds of a piece of work."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def repeated(device: torch.device, work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each repeat, after one that warms up and is thrown away."""
    work()
    return [timed(device, work) for _ in range(repeats)]


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and every repeat, in the order in which they were taken."""
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "all": list(seconds),
    }


def fastest(repeats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The fastest repeat of each part by itself, and "total", the sum of these: what is left when nobody disturbs.

    Of entries that hold parts in seconds and "total" and "cpu", the processor time of all parts together.
    """
    parts = [name for name in repeats[0] if name not in ("total", "cpu")]
    best = {name: min(each[name] for each in repeats) for name in parts}
    return {**best, "total": sum(best.values())}


def processor(repeats: Sequence[Mapping[str, float]]) -> float:
    """Median processor time, which other work on the machine moves less than wall time."""
    return statistics.median(each["cpu"] for each in repeats)


def forget_peak(device: torch.device) -> None:
    """Peaks of a GPU count from here; that of a CPU process cannot be put back."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float:
    """Peak in GB of 10^9 bytes: the GPU's tensors since `forget_peak`, or this process's resident memory so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GB
    return peak_kib() * 1024 / GB


def held_gb(device: torch.device) -> float:
    """What the GPU's tensors or this process hold now, in GB."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / GB
    import psutil

    return float(psutil.Process().memory_info().rss) / GB
