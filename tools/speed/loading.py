"""Seconds and memory of loading a full-size checkpoint: text encoders, the other models, and both after each other.

Each part runs in a process of its own, with the code of a run: `text` loads the text encoders and encodes prompts,
`run` encodes first and loads the other models then, as a run does, and `models` takes the stored states, loads the
other models and does one update of the smallest size that the models accept.

Of memory there are two figures. `own` is what a process cannot do without. `resident` counts in addition the pages of
weight files that are mapped into it, which the system takes back when memory is short.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.api import BenchError
from bench.backbones.hunyuanvideo15.checkpoint import load_text
from bench.core.process_state import fix_process_state
from bench.core.provenance import ROOT, peak_kib
from bench.plan.fit import host_bytes
from bench.suite.load import load_suite
from bench.suite.packaged import suite_file
from bench.suite.prepared import PreparedSuite, encode_first, make_backbone, prepare
from tools.speed.clock import GB
from tools.speed.settings import SHORT, SINGLE, TINY, SuiteUpdate

PARTS = ("text", "run", "models")
"""In this order: `run` stores the text states that `models` takes."""
INTERVAL = 0.02
"""Seconds between two looks at the memory."""


class OwnMemory(threading.Thread):
    """Within its context: the largest anonymous memory of this process in GB, by Linux's /proc."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.gb, self._done = 0.0, threading.Event()

    def run(self) -> None:
        while not self._done.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon:"):
                self.gb = max(self.gb, int(line.split()[1]) * 1024 / GB)

    def __enter__(self) -> OwnMemory:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self.join()
        self._look()


def smallest_suite(folder: Path, device: str, cache: Path | None = None) -> PreparedSuite:
    """The one-GPU suite with the models of the folder, at the smallest size that they accept."""
    places = [f"backbone.checkpoint={folder}", f"backbone.train.device={device}"]
    if cache is not None:
        places.append(f"backbone.train.text_cache={cache}")
    return prepare(load_suite(suite_file(SINGLE), [*SHORT, *TINY, *places]))


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _text(folder: Path, device: str, cache: Path) -> dict[str, float]:
    prepared = smallest_suite(folder, device)
    dtype = getattr(torch, prepared.suite.backbone.train["dtype"])
    load, encoders = _seconds(lambda: load_text(folder, dtype, torch.device(device)))
    encode, _ = _seconds(lambda: encoders.encode(prepared.prompts.train[:1]))
    return {"load": load, "encode a prompt": encode}


def _run(folder: Path, device: str, cache: Path) -> dict[str, float]:
    """The states go through the files of a cache, so that both parts can be timed."""
    prepared = smallest_suite(folder, device, cache)
    texts = prepared.prompts.train[: prepared.suite.budget.prompts]
    encode, _ = _seconds(lambda: encode_first(prepared, texts))
    encoded = peak_kib() * 1024 / GB
    load, _ = _seconds(lambda: make_backbone(prepared, prompts=texts))
    return {"encode": encode, "load": load, "resident_before_gb": encoded}


def _models(folder: Path, device: str, cache: Path) -> dict[str, float]:
    work = SuiteUpdate(smallest_suite(folder, device, cache), torch.device(device))
    loaded = peak_kib() * 1024 / GB
    return {"load": work.load_seconds, **work.once(), "resident_before_gb": loaded}


def measure_part(part: str, folder: Path, device: str, cache: Path) -> dict[str, Any]:
    """Seconds and memory of a part, in this process."""
    fix_process_state()
    works = {"text": _text, "run": _run, "models": _models}
    with OwnMemory() as own:
        seconds = works[part](folder, device, cache)
    before = seconds.pop("resident_before_gb", None)
    return {
        "seconds": seconds,
        "own_gb": own.gb,
        "resident_gb": peak_kib() * 1024 / GB,
        **({} if before is None else {"resident_before_gb": before}),
        "gpu_gb": torch.cuda.max_memory_allocated() / GB if device == "cuda" else None,
    }


def in_fresh_process(part: str, folder: Path, device: str, cache: Path) -> dict[str, Any]:
    """`measure_part` in a process of its own; `BenchError` if it fails."""
    command = [sys.executable, "-m", "tools.speed.loading", part, str(folder), device, str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        reason = " ".join(done.stderr.split())[-300:]
        raise BenchError(f"speed: loading the part {part!r} of {folder} ended with {done.returncode}: {reason}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure_loading(folder: Path, device: str, say: Callable[[str], None]) -> Mapping[str, Any]:
    """Figures of all parts, the plan's memory, and the bytes of each part's weights. `say`: reports progress."""
    parts = {}
    with tempfile.TemporaryDirectory() as cache:
        for part in PARTS:
            say(f"loading, {part}")
            parts[part] = in_fresh_process(part, folder, device, Path(cache))
    weights = {
        each.name: sum(file.stat().st_size for file in each.glob("*.safetensors")) / GB
        for each in sorted(folder.iterdir())
        if list(each.glob("*.safetensors"))
    }
    planned = host_bytes(smallest_suite(folder, device)) if device == "cpu" else None
    return {
        "parts": parts,
        "weights_gb": weights,
        "planned_gb": None if planned is None else planned / GB,
        "bound": max(parts["text"]["own_gb"], parts["models"]["own_gb"]),
    }


if __name__ == "__main__":
    part, folder, device, cache = sys.argv[1:]
    print(json.dumps(measure_part(part, Path(folder), device, Path(cache))))
