"""Memory of the host: what is free within a container's limit, and how many runs fit into it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.api import BenchError
from bench.cli import main
from bench.core.provenance import ROOT
from bench.plan import fit
from bench.plan.fit import host_bytes, runs_at_once
from bench.plan.hardware import CPU, Hardware, gpu_hardware
from bench.plan.host_memory import available_bytes
from bench.plan.memory import FIXED, PROGRAM, host_peak, memory_use
from bench.plan.workload import suite_model
from bench.store.record import read_record
from bench.suite.load import load_suite
from bench.suite.prepared import prepare
from tests.helpers.nano_suite import NANO, tiny

SINGLE = ROOT / "bench" / "configs" / "hunyuanvideo15_single_gpu.yaml"
GB = 10**9


def machine(folder: Path, free: int, groups: str) -> Path:
    proc = folder / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 64000000 kB\nMemFree: 1 kB\nMemAvailable: {free // 1024} kB\n")
    (proc / "self" / "cgroup").write_text(groups)
    return proc


def group(folder: Path, limit: str, usage: str, statistics: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    version_2 = not limit.startswith("v1 ")
    names = ("memory.max", "memory.current") if version_2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (folder / names[0]).write_text(limit.removeprefix("v1 ") + "\n")
    (folder / names[1]).write_text(usage + "\n")
    (folder / "memory.stat").write_text(statistics)


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    proc = machine(tmp_path, 8 * 2**30, "0::/slice/mine\n")
    assert available_bytes(proc, groups) == 8 * 2**30
    group(groups / "slice" / "mine", "max", "1000", "inactive_file 0\n")
    assert available_bytes(proc, groups) == 8 * 2**30
    group(groups / "slice", str(4 * GB), str(3 * GB), f"anon 1\ninactive_file {GB // 2}\n")
    assert available_bytes(proc, groups) == 1.5 * GB
    group(groups / "slice" / "mine", str(GB), str(2 * GB), "inactive_file 0\n")
    assert available_bytes(proc, groups) == 0


def test_a_limit_of_the_first_version_counts(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    proc = machine(tmp_path, 8 * 2**30, "5:devices:/\n4:cpu,memory:/job\n0::/\n")
    group(groups / "memory" / "job", f"v1 {2 * GB}", str(GB), f"total_inactive_file {GB // 4}\ninactive_file 5\n")
    assert available_bytes(proc, groups) == 1.25 * GB


def test_other_systems_tell_nothing(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, tmp_path) is None


def test_a_stored_run_takes_what_is_expected_of_it() -> None:
    prepared = prepare(load_suite(NANO))
    expected = host_bytes(prepared)
    assert expected is not None
    for row in ("cps-fixed", "sage_grpo-dual"):
        measured = read_record(ROOT / "results" / "reference" / "nano" / row / "seed-0").peak_memory_mb
        assert measured is not None
        assert expected / 1e6 == pytest.approx(measured, rel=0.15)


def test_a_cpu_holds_what_a_gpu_would() -> None:
    prepared = prepare(load_suite(SINGLE))
    model = suite_model(prepared)
    assert model is not None
    memory, on_gpu = memory_use(prepared, model, gpu_hardware())
    _, on_cpu = memory_use(prepared, model, Hardware(CPU, 1, float("inf")))
    assert (on_gpu["models"], on_cpu["models"]) == (0, memory.peak - FIXED)
    assert on_gpu["loading"] == 2 * max(model.parameters, model.text_parameters)
    assert host_peak(on_gpu) == PROGRAM + on_gpu["loading"]  # more than an update's trajectories and videos
    assert host_peak(on_cpu) > PROGRAM + 2 * model.parameters


def test_free_memory_decides_how_many_runs_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare(tiny())
    need = host_bytes(prepared)
    assert need is not None
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    for free, runs in ((9 * need, 4), (2.5 * need, 2), (1.01 * need, 1)):
        monkeypatch.setattr(fit, "available_bytes", lambda free=free: int(free))
        assert runs_at_once([prepared], 7, None) == runs
        assert ("runs at a time in place of 4" in capsys.readouterr().err) == (runs < 4)
    assert runs_at_once([prepared], 7, 1) == 1
    with pytest.raises(BenchError, match=r"tiny: a run needs about .* GB are free: use --processes 1\."):
        runs_at_once([prepared], 7, 2)
    monkeypatch.setattr(fit, "available_bytes", lambda: int(0.9 * need))
    with pytest.raises(BenchError, match="end other programs, or take a machine with more memory"):
        runs_at_once([prepared], 7, None)
    monkeypatch.setattr(fit, "available_bytes", lambda: None)
    assert runs_at_once([prepared], 7, None) == 4


def test_a_plan_has_the_host_s_memory_with_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(SINGLE)]) == 0
    assert (
        "host memory of one process: about 17.9 GB = the program 1.2 + the larger of 16.7" in capsys.readouterr().out
    )
    assert main(["plan", str(SINGLE), "backbone.train.device=cpu"]) == 0
    assert "the models and their work" in capsys.readouterr().out
