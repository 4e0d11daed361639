"""What a machine is and how fast its parts are, for `bench doctor`: GPUs, disks, and the ring between the GPUs."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from bench.core.provenance import hardware
from bench.plan.host_memory import available_bytes
from bench.store.files import disk_errors

BLOCK = 1 << 24
"""Bytes that are read or written at a time."""
READ_BYTES, WRITE_BYTES = 1 << 30, 1 << 28
"""Most bytes that a test of a disk reads, and bytes that it writes."""
RING_BYTES, RING_TURNS = 1 << 28, 5
"""Bytes of each all-reduce, and how many are timed after one that is not."""


def gpu_lines() -> list[str]:
    """One line per GPU with its name, memory and driver; none without a GPU."""
    drivers = _drivers()
    lines = []
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        driver = drivers[number] if number < len(drivers) else "unknown"
        lines.append(
            f"GPU {number}: {card.name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, driver {driver}, CUDA "
            f"{torch.version.cuda}, torch {torch.__version__}"
        )
    return lines


def _drivers() -> list[str]:
    """Version of the driver of each GPU, as nvidia-smi has it; [] where that program is missing."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []


def host_line() -> str:
    """CPU, cores and memory."""
    host, free = hardware(), available_bytes()
    memory = "unknown" if host["memory_mb"] is None else f"{host['memory_mb'] / 1e3:.1f} GB"
    available = "unknown" if free is None else f"{free / 1e9:.1f} GB"
    return f"CPU: {host['cpu']}, {host['cores']} core(s), memory {memory}, {available} free"


def read_speed(folder: Path) -> tuple[float, int] | None:
    """Bytes per second and bytes read of the largest file in the folder, past the cache; None for an empty folder."""
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else [folder]
    largest = max(files, key=lambda path: path.stat().st_size, default=None)
    if largest is None or not largest.stat().st_size:
        return None
    with largest.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):  # so that the disk is read, and not the cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start, size = time.perf_counter(), 0
        while size < READ_BYTES and (block := file.read(BLOCK)):
            size += len(block)
        return size / (time.perf_counter() - start), size


def write_speed(folder: Path) -> float:
    """Bytes per second of a file that is written to the folder and flushed; the file is removed."""
    block = os.urandom(BLOCK)
    with disk_errors(folder), tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        for _ in range(WRITE_BYTES // BLOCK):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return WRITE_BYTES / (time.perf_counter() - start)


def ring_speed(processes: int, backend: str = "nccl", size: int = RING_BYTES) -> float:
    """Bytes per second that each process sends in a ring all-reduce of `size` bytes; `RuntimeError` where it fails.

    A ring of n processes sends 2 (n - 1) / n times the bytes of the tensor. The sum is checked.
    """
    from torch.multiprocessing.spawn import spawn

    with tempfile.TemporaryDirectory(prefix="bench-ring-") as name:
        meeting, result = Path(name, "meeting"), Path(name, "seconds")
        spawn(_ring, (processes, backend, size, str(meeting), str(result)), nprocs=processes)
        seconds = float(result.read_text())
    return 2 * (processes - 1) / processes * size / seconds


def _ring(rank: int, processes: int, backend: str, size: int, meeting: str, result: str) -> None:
    import torch.distributed as dist

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=processes)
    try:
        tensor = torch.ones(size // 4, device=device)
        dist.all_reduce(tensor)
        if not bool((tensor == processes).all()):
            raise RuntimeError(f"the sum over {processes} processes is wrong")
        dist.barrier()
        start = time.perf_counter()
        for _ in range(RING_TURNS):
            dist.all_reduce(tensor)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if rank == 0:
            Path(result).write_text(str((time.perf_counter() - start) / RING_TURNS), encoding="utf-8")
    finally:
        dist.destroy_process_group()
