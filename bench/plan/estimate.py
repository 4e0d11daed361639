"""Cost of a suite before a run: function evaluations, FLOPs, memory and hours, row by row.

A plan is a plain dictionary (JSON); `bench.plan.page` prints it. Counts come from the ledger's `planned_counts`, sizes
and FLOPs from the backbone (`bench.api.EstimatesCost`), bytes from `bench.plan.memory`, and the throughput from an
assumption about the GPU, from a probe, or from finished runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench import store
from bench.api import ModelCost
from bench.core import provenance
from bench.core.errors import BenchError
from bench.core.world import check_divisible
from bench.plan.fit import exceeds_memory
from bench.plan.hardware import CPU, Hardware
from bench.plan.memory import host_peak, memory_use
from bench.plan.workload import (
    UnitCost,
    curve_points,
    held_out_videos,
    kept_videos,
    phase_costs,
    point_videos,
    run_counts,
    suite_model,
    unit_flops,
)
from bench.suite.checkpoints import Checkpoint
from bench.suite.prepared import PreparedSuite
from bench.suite.recorded import record_difference
from bench.suite.schema import Suite
from bench.train.preflight import check_backbone, check_methods


def largest_share(number: int, batch: int, groups: int) -> int:
    """Items of the group with most items, if `number` items are distributed as by `World.local_items`.

    `batch`: items of a whole batch; `groups`: data-parallel groups.
    """
    sizes = [min(batch, number - start) for start in range(0, number, batch)]
    return sum(sizes[::groups])


def samples_per_gpu(prepared: PreparedSuite, hardware: Hardware) -> dict[str, int]:
    """Largest number per group of "samples" in an update, and of videos of the curve and of the evaluation."""
    budget = prepared.suite.budget

    def largest(number: int) -> int:
        return largest_share(number, budget.micro_batch, hardware.groups)

    return {
        "samples": largest(budget.prompts * budget.group_size),
        "curve_videos": curve_points(prepared) * largest(point_videos(prepared)),
        "evaluation_videos": largest(held_out_videos(prepared)),
    }


def run_seconds(
    prepared: PreparedSuite,
    counts: Mapping[str, int],
    unit_seconds: UnitCost,
    hardware: Hardware,
    evaluator_seconds: float,
) -> float:
    """Wall-clock seconds of one run. `evaluator_seconds`: of all evaluators together, per video."""
    seconds, largest = phase_costs(counts, unit_seconds), samples_per_gpu(prepared, hardware)
    seconds["decode"] += counts["decodes"] * evaluator_seconds
    held_out = 0.0
    for phase in ("curve", "evaluation"):
        videos = counts[f"{phase}_videos"]
        own = seconds.pop(phase) + videos * evaluator_seconds
        held_out += own * largest[f"{phase}_videos"] / videos if videos else 0.0
    budget = prepared.suite.budget
    return sum(seconds.values()) * largest["samples"] / (budget.prompts * budget.group_size) + held_out


def check_gpu_split(suite: Suite, model: ModelCost, hardware: Hardware) -> None:
    """Refuse a number of GPUs over which a run cannot be distributed evenly."""
    for number, unit, fix in (
        (model.latents, "latent tokens", "choose another --context-parallel, or a size such as 480x832"),
        (model.heads, "attention heads", "choose another --context-parallel"),
    ):
        if number % hardware.context:
            raise BenchError(
                f"suite {suite.name}: --context-parallel {hardware.context} does not divide {number} {unit}: {fix}."
            )
    try:
        check_divisible(suite.budget, hardware.groups)
    except BenchError as cause:
        context = f", {hardware.context} per sample" if hardware.context > 1 else ""
        raise BenchError(f"suite {suite.name}, {hardware.gpus} GPUs{context}: {cause}") from cause


def finished_seconds(suite: Suite, results: Path) -> list[float]:
    """Seconds of the suite's finished runs with the same settings and CPU model, all phases of a run together."""
    cpu, seconds, checkpoints = provenance.hardware()["cpu"], [], dict[str, Checkpoint]()
    for row in suite.rows:
        for seed in suite.seeds:
            folder = store.run_folder(results / suite.name, row.name, seed)
            if (folder / store.RUN).exists():
                record = store.read_record(folder)
                same_settings = record_difference(folder, record, suite, checkpoints) is None
                if same_settings and record.provenance.get("hardware", {}).get("cpu") == cpu:
                    seconds.append(sum(record.seconds.values()))
    return seconds


def on_cpu(suite: Suite) -> bool:
    """Whether the suite's backbone runs on a CPU."""
    return suite.backbone.train.get("device") == "cpu"


def plan_suite(
    prepared: PreparedSuite,
    results: Path,
    hardware: Hardware | None,
    *,
    evaluator_seconds: float = 0.0,
    words: float | None = None,
    probed: UnitCost | None = None,
) -> dict[str, Any]:
    """The plan of one suite.

    `results`: folder of finished runs. `hardware`: None for a suite on this CPU. `evaluator_seconds`: of all
    evaluators together, per video. `words`: mean number of words of a prompt, None: that of the training prompts.
    `probed`: seconds from a probe, in place of an assumed throughput. For a backbone that states no sizes, FLOPs and
    memory are None.
    """
    suite = prepared.suite
    check_methods(prepared)
    check_backbone(prepared, may_lack=True)
    model = suite_model(prepared, words)
    if model is None:
        hardware = None
    elif hardware is not None:
        check_gpu_split(suite, model, hardware)
    gpus = hardware or Hardware(CPU, 1, math.inf)
    work = None if model is None else unit_flops(model)
    memory, host = (None, None) if model is None else memory_use(prepared, model, gpus)
    unit_seconds, throughput = _unit_seconds(model, hardware, probed)
    finished = finished_seconds(suite, results) if unit_seconds is None else []
    if finished:
        minutes = sum(finished) / len(finished) / 60
        throughput = f"{minutes:.1f} minutes per run, measured on {len(finished)} finished runs"
    rows = []
    for row in (None, *prepared.rows):
        counts = run_counts(prepared, row)
        hours = None
        if unit_seconds is not None:
            hours = run_seconds(prepared, counts, unit_seconds, gpus, evaluator_seconds) / 3600
        elif finished and row is not None:
            hours = sum(finished) / len(finished) / 3600
        name, runs = ("base", 1) if row is None else (row.name, len(suite.seeds))
        flops = None if work is None else phase_costs(counts, work)
        rows.append({"row": name, "runs": runs, **counts, "flops": flops, "hours_per_run": hours})
    return {
        "suite": suite.name,
        "scale": suite.scale,
        "backbone": suite.backbone.name,
        "model": None if model is None else _model_facts(model),
        "budget": asdict(suite.budget),
        "flops": None if work is None else asdict(work),
        "rows": rows,
        "total": totals(rows),
        "memory_bytes": None
        if hardware is None or memory is None
        else {**asdict(memory), "peak": memory.peak, "phases": memory.phases},
        "host_bytes": None if host is None else {**host, "peak": host_peak(host)},
        "kept_videos": None if model is None else kept_videos(prepared, model.size),
        "machine": None
        if hardware is None
        else {**asdict(hardware), "nodes": hardware.nodes, **samples_per_gpu(prepared, hardware)},
        "refused": None
        if hardware is None or model is None or memory is None
        else exceeds_memory(prepared, model, hardware, memory),
        "pace": throughput,
        "scorer_seconds_per_video": evaluator_seconds,
    }


def _unit_seconds(
    model: ModelCost | None, hardware: Hardware | None, probed: UnitCost | None
) -> tuple[UnitCost | None, str]:
    """Seconds of the unit costs, None if they are not known, and their origin in words."""
    if probed is not None:
        return probed, "measured by the probe on this machine"
    if hardware is None or model is None:
        return None, "unknown until one run of this suite has finished on this machine, or with --probe"
    work, (throughput, text) = unit_flops(model), hardware.throughput(model.latents, model.dtype)
    one_gpu = work.at(throughput)  # context parallelism does not split the VAE
    return replace(work.at(throughput * hardware.context), decode=one_gpu.decode), text


def _model_facts(model: ModelCost) -> dict[str, Any]:
    return {
        "layers": model.layers,
        "width": model.width,
        "parameters": model.parameters,
        "size": list(model.size),
        "latent_tokens": model.latents,
        "text_tokens": model.text,
        "trains": model.trains,
        "quantized": model.quantized_block is not None,
        "idle_vae": model.idle_vae,
        "joint_branches": model.joint_branches,
        "gradient_checkpointing": model.gradient_checkpointing,
        "vae_tiling": model.tile,
        "source": model.source,
    }


def totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over all runs, one after another; "hours" leaves out rows with unknown hours, None if all are unknown."""
    total: dict[str, Any] = {"runs": sum(row["runs"] for row in rows)}
    for key in ("nfe_rollout", "nfe_anchor", "nfe_train", "nfe_curve", "nfe_evaluation", "decodes"):
        total[key] = sum(row["runs"] * row[key] for row in rows)
    costs = [row["runs"] * sum(row["flops"].values()) for row in rows if row["flops"] is not None]
    total["flops"] = sum(costs) if costs else None
    known = [row for row in rows if row["hours_per_run"] is not None]
    total["hours"] = sum(row["runs"] * row["hours_per_run"] for row in known) if known else None
    return total
