"""`bench doctor`: whether this machine can run a suite and how long it will take, in minutes.

Every check is the code of a run: the headers of the checkpoint, the gates of the evaluators, and updates with tensors
of the suite's real size. Only the numbers of samples and of trained steps are small.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import store
from bench.api import Backbone, Evaluator
from bench.audit.doctor_report import Report
from bench.audit.machine import gpu_lines, host_line, read_speed, ring_speed, write_speed
from bench.checks.golden import GATE
from bench.core.ledger import TRAIN_COST
from bench.core.process_state import unchanged_process
from bench.core.progress import working
from bench.core.provenance import peak_kib, reset_peak_kib
from bench.plan.estimate import plan_suite
from bench.plan.fit import check_gpu_memory, host_bytes, on_gpu, runs_at_once
from bench.plan.hardware import GPUS, Hardware, gpu_hardware
from bench.plan.memory import ADAM_BYTES, FLOAT, memory_use
from bench.plan.page import format_hours
from bench.plan.workload import UnitCost, kept_videos, phase_costs, run_counts, suite_model
from bench.suite.assets import states
from bench.suite.devices import check_devices, refuse_context_parallel
from bench.suite.job import TrainingRun
from bench.suite.prepared import PreparedRow, PreparedSuite, check_machine, prepare
from bench.suite.schema import Suite
from bench.train.preflight import check_suite
from bench.train.run import load_models
from bench.train.trainer import Trainer

UPDATES = 2
"""Updates of the miniature. The first one selects kernels and allocates memory, the second one is timed."""
TRAINED_STEPS = 2
"""Most trained steps of a sample in the miniature."""
SLOW_PLAN = 2.0
"""A run that takes so many times the hours of its plan is named."""


def examine(prepared: PreparedSuite, results: Path) -> Report:
    """All checks of the suite on this machine. `results`: folder of the records; nothing stays in it."""
    refuse_context_parallel(prepared.suite, "bench doctor")
    report = Report()
    checks: tuple[Callable[[PreparedSuite, Path, Report], None], ...] = (_machine, _files, _memory, _disks, _ring)
    for check in checks:
        check(prepared, results, report)
    if report.go:
        _miniature(prepared, results, report)
    else:
        report.add("update", "note", "not tried, for the reasons above")
    return report


def _machine(prepared: PreparedSuite, results: Path, report: Report) -> None:
    lines = gpu_lines()
    for line in [host_line(), *lines]:
        report.add("machine", "good", line)
    if not lines:
        report.add("machine", "note", "no GPU that torch sees: the models run on the CPU")
    with report.checked("machine"):
        check_devices(prepared.suite, 1)
        check_machine(prepared)


def _files(prepared: PreparedSuite, results: Path, report: Report) -> None:
    """Files that the suite needs, their headers, and all that a run refuses before it loads anything."""
    missing = [(need, lines) for need, lines, good in states([prepared.suite], verify=False) if not good]
    for need, lines in missing:
        faults = [line.strip() for line in lines[1:] if "present" not in line and "verified" not in line]
        report.add("files", "bad", f"{need.use}, {need.path}: {'; '.join(faults)}")
    before = len(report.findings)
    with report.checked("suite"):
        check_suite(prepared)
    if len(report.findings) == before:
        report.add("files", "good", "checkpoint folders are whole by their headers, and a run would start")


def _memory(prepared: PreparedSuite, results: Path, report: Report) -> None:
    before = len(report.findings)
    with report.checked("memory"):
        check_gpu_memory(prepared)
        runs_at_once([prepared], 1, None)
    if len(report.findings) == before:
        need = host_bytes(prepared)
        text = "the backbone states no sizes, so nothing is known before the update"
        if on_gpu(prepared.suite):
            text = "one run fits into the GPU by its plan"
        elif need is not None:
            text = f"one run fits: it needs about {need / 1e9:.1f} GB of the host's memory by its plan"
        report.add("memory", "good", text)


def _disks(prepared: PreparedSuite, results: Path, report: Report) -> None:
    for use, checkpoint in prepared.checkpoints.items():
        speed = read_speed(checkpoint.path) if checkpoint.path.exists() else None
        if speed is not None and use == "backbone":
            report.add("disk", "good", f"{checkpoint.path} is read at {speed[0] / 1e6:,.0f} MB/s ({speed[1]:,} bytes)")
    with report.checked("disk"):
        speed_of_writing = write_speed(store.make_folder(results))
        free, need = shutil.disk_usage(results).free, _disk_bytes(prepared)
        text = f"{results} is written at {speed_of_writing / 1e6:,.0f} MB/s and has {free / 1e9:,.1f} GB free"
        if need is not None and need > free:
            report.add("disk", "bad", f"{text}; the runs need about {need / 1e9:,.1f} GB: free some, or use --results")
        else:
            report.add("disk", "good", text + ("" if need is None else f"; the runs need {need / 1e9:,.1f} GB"))


def _disk_bytes(prepared: PreparedSuite) -> float | None:
    """Bytes of the policies of all runs, of one checkpoint with its replacement, and of the kept videos."""
    model = suite_model(prepared)
    if model is None:
        return None
    trained, runs = model.adapter_parameters or model.parameters, len(prepared.rows) * len(prepared.suite.seeds)
    videos = kept_videos(prepared, model.size)["bytes"]
    return float(runs * (FLOAT * trained + videos) + 2 * ADAM_BYTES * trained)


def _ring(prepared: PreparedSuite, results: Path, report: Report) -> None:
    count = torch.cuda.device_count()
    if count < 2:
        report.add("ring", "note", f"skipped: {count} GPU(s), and NCCL connects several")
        return
    try:
        speed = ring_speed(count)
    except Exception as error:  # of NCCL, in another process
        report.add("ring", "bad", f"NCCL fails between {count} GPUs ({' '.join(str(error).split())[-200:]})")
        return
    report.add("ring", "good", f"each of {count} GPUs sends {speed / 1e9:.1f} GB/s in an all-reduce by NCCL")


def miniature(suite: Suite) -> Suite:
    """The suite with two updates of one prompt and one whole micro-batch, few trained steps and no curve.

    Sizes of all tensors in the models are those of the suite.
    """
    budget = suite.budget
    samples = max(2, min(budget.micro_batch, budget.prompts * budget.group_size))
    small = {
        "updates": UPDATES,
        "prompts": 1,
        "group_size": samples,
        "minibatches": 1,
        "train_steps": min(budget.train_steps, TRAINED_STEPS),
    }
    settings = suite.model_dump()
    return Suite.model_validate(
        {
            **settings,
            "budget": {**settings["budget"], **small},
            "evaluation": {**settings["evaluation"], "every": None, "keep_videos": 0},
            "seeds": suite.seeds[:1],
            "search": None,
        }
    )


def _largest_row(prepared: PreparedSuite) -> PreparedRow:
    """The row whose run has most function evaluations."""
    return max(prepared.rows, key=lambda row: sum(phase_costs(run_counts(prepared, row), UnitCost(1, 2, 0)).values()))


def _miniature(prepared: PreparedSuite, results: Path, report: Report) -> None:
    small = prepare(miniature(prepared.suite))
    row = small.row(_largest_row(prepared).name)
    with (
        report.checked("models and update"),
        tempfile.TemporaryDirectory(prefix=".bench-doctor-", dir=results) as name,
        unchanged_process(f"a plug-in of {prepared.suite.name}"),
    ):
        job = TrainingRun(small, Path(name), "doctor", row.name, small.suite.seeds[0])
        start = time.monotonic()
        with working("loading the models, and checking the evaluators"):
            models = load_models(job)
        report.seconds["load"] = time.monotonic() - start
        report.add("load", "good", f"models, prompts and checks of the evaluators in {report.seconds['load']:.1f} s")
        _golden(models.gates[GATE], report)
        reset_peak_kib()  # loading may map whole files, which the system takes back when memory is short
        with working("doing two updates at the suite's size"):
            line, passed = _train(job, models.backbone, models.evaluators)
        if not passed:
            report.add("update", "bad", f"row {row.name}: the ratio before the first update is not 1 (`bench audit`)")
        _measured(small, row, line, report)
        _hours(prepared, results, unit_seconds(small, row, line), _scoring_seconds(small, line), report)


def _golden(gate: dict[str, Any], report: Report) -> None:
    """The golden scores of each evaluator; a score that is not reproduced has stopped the loading before."""
    for name, entry in gate["evaluators"].items():
        if entry["passed"]:
            report.add("golden scores", "good", f"{name} reproduces them (largest difference {entry['largest']:.2g})")
        else:
            report.add("golden scores", "note", f"{name}: {entry['not_available']}")


def _train(job: TrainingRun, backbone: Backbone, evaluators: dict[str, Evaluator]) -> tuple[dict[str, Any], bool]:
    """The log of the timed update, and whether the ratio audit passed; the job's folder takes its files."""
    trainer = Trainer.new(job, backbone, evaluators)
    trainer.train(lambda step: None)
    lines = store.read_lines(job.folder / store.TRAIN)
    return lines[-1], trainer.audit is None or bool(trainer.audit["passed"])


def unit_seconds(small: PreparedSuite, row: PreparedRow, line: dict[str, Any]) -> UnitCost:
    """Seconds of a function evaluation, its backward pass and a decoded video, from the log of one update."""
    seconds, counts = line["seconds"], {key: value / UPDATES for key, value in run_counts(small, row).items()}
    forward = seconds["rollout"] / (counts["nfe_rollout"] + counts["nfe_anchor"])
    backwards = counts["backward"] * (2 if "kl_gradient" in line else 1)
    backward = max(0.0, (seconds["update"] - counts["nfe_train"] / TRAIN_COST * forward) / backwards)
    return UnitCost(forward, backward, seconds["decode"] / counts["decodes"])


def _scoring_seconds(small: PreparedSuite, line: dict[str, Any]) -> float:
    """Seconds of the evaluators of the training, per video."""
    spent = sum(line["seconds"].get(phase, 0.0) for phase in ("reward", "monitor"))
    return float(spent) / small.suite.budget.group_size


def _measured(small: PreparedSuite, row: PreparedRow, line: dict[str, Any], report: Report) -> None:
    """Seconds of the timed update by phase, and the peak of memory beside that of its plan."""
    report.seconds |= {phase: float(value) for phase, value in line["seconds"].items()}
    phases = ", ".join(f"{phase} {value:.2g} s" for phase, value in line["seconds"].items())
    sizes = f"{small.suite.budget.group_size} samples, {small.suite.budget.train_steps} trained steps"
    report.add("update", "good", f"row {row.name}, {sizes}: {phases}")
    model, hardware = suite_model(small), _hardware()
    if on_gpu(small.suite) and hardware is not None:
        peak: float = torch.cuda.max_memory_allocated()
        planned, where = None if model is None else memory_use(small, model, hardware)[0].peak, "GPU memory"
    else:
        peak, planned, where = peak_kib() * 1024.0, host_bytes(small), "host memory"
    beside = "the backbone states no sizes" if planned is None else f"its plan has {planned / 1e9:.2f} GB"
    report.add("memory", "good", f"peak of the update {peak / 1e9:.2f} GB of {where}, {beside}")


def _hours(prepared: PreparedSuite, results: Path, costs: UnitCost, scoring: float, report: Report) -> None:
    """The hours of the whole suite by the measured seconds, beside those of its plan."""
    hardware = _hardware() if on_gpu(prepared.suite) else None
    report.hours = plan_suite(prepared, results, hardware, evaluator_seconds=scoring, probed=costs)["total"]["hours"]
    text = (
        f"{format_hours(report.hours)} for all runs of the suite one after another, extrapolated; evaluators that "
        "score held-out videos only are not counted"
    )
    kind = next((name for name in GPUS if hardware is not None and name in hardware.gpu.lower()), None)
    if kind is None or report.hours is None:
        report.add("time", "good", f"{text}; no plan has a pace for this machine")
        return
    planned = plan_suite(prepared, results, gpu_hardware(kind), evaluator_seconds=scoring)["total"]["hours"]
    slow = report.hours > SLOW_PLAN * planned
    report.add("time", "note" if slow else "good", f"{text}; the plan for {kind} has {format_hours(planned)}")


def _hardware() -> Hardware | None:
    """The GPU of this machine; None without one."""
    if not torch.cuda.is_available():
        return None
    card = torch.cuda.get_device_properties(0)
    return Hardware(card.name, 1, card.total_memory / 1e9)
