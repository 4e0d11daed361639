"""What a suite will cost before anything runs: function evaluations, FLOPs, memory and hours, row by row.

A plan is a plain dictionary (JSON); `bench.plan.page` prints it. Counts come from the ledger's own `planned`, FLOPs
from `bench.cost`, bytes from `bench.memory`, the pace from an assumption about the GPU, a probe, or finished runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench import store
from bench.core.errors import BenchError
from bench.core.provenance import hardware
from bench.core.world import check_divisible
from bench.plan.fit import exceeds_memory
from bench.plan.hardware import Hardware
from bench.plan.memory import memory_use
from bench.plan.workload import Model, UnitCost, heldout_videos, phase_costs, run_counts, suite_model, unit_flops
from bench.suite.difference import first_difference
from bench.suite.schema import Experiment
from bench.train.preflight import check_backbone, check_names


def largest_share(number: int, batch: int, groups: int) -> int:
    """Items of the group that takes most, of `number` items dealt in whole batches as `World.mine` does."""
    sizes = [min(batch, number - start) for start in range(0, number, batch)]
    return sum(sizes[::groups])


def samples_per_gpu(exp: Experiment, where: Hardware) -> dict[str, int]:
    """What the fullest group takes: "samples" of each update, "evaluation_videos" of the held-out evaluation."""
    budget, videos = exp.budget, heldout_videos(exp)
    samples = budget.prompts * budget.group_size
    return {
        "samples": largest_share(samples, budget.micro_batch, where.groups),
        "evaluation_videos": largest_share(videos, budget.micro_batch, where.groups),
    }


def run_seconds(exp: Experiment, count: Mapping[str, int], price: UnitCost, where: Hardware, scorers: float) -> float:
    """Wall-clock of one run; `scorers`: seconds that all evaluators together take per video."""
    spent, own = phase_costs(count, price), samples_per_gpu(exp, where)
    spent["decode"] += count["decodes"] * scorers
    spent["evaluation"] += count["evaluation_videos"] * scorers
    judged = spent.pop("evaluation") * own["evaluation_videos"] / count["evaluation_videos"]
    return sum(spent.values()) * own["samples"] / (exp.budget.prompts * exp.budget.group_size) + judged


def check_gpu_split(exp: Experiment, found: Model, where: Hardware) -> None:
    """Refuse a number of GPUs over which a run cannot be dealt evenly."""
    heads = found.transformer.num_attention_heads
    for what, number, mend in (
        ("latent tokens", found.latents, "choose another --context-parallel, or a size such as 480x832"),
        ("attention heads", heads, "choose another --context-parallel"),
    ):
        if number % where.context:
            raise BenchError(
                f"plan {exp.suite}: --context-parallel {where.context} does not divide {number} {what}: {mend}."
            )
    try:
        check_divisible(exp.budget, where.groups)
    except BenchError as cause:
        shared = f", {where.context} to a sample" if where.context > 1 else ""
        raise BenchError(f"plan {exp.suite}, {where.gpus} GPUs{shared}: {cause}") from cause


# the plan -----------------------------------------------------------------------------------------------------
def finished_seconds(exp: Experiment, results: Path) -> list[float]:
    """Seconds of the suite's finished runs with these settings on a CPU of this model; of all of a row's phases."""
    cpu, seconds = hardware()["cpu"], []
    for row in exp.rows:
        for seed in exp.seeds:
            folder = store.run_folder(results / exp.suite, row.name, seed)
            if (folder / store.RUN).exists():
                record = store.read_record(folder)
                alike = first_difference(record.config, exp.shared()) is None
                if alike and record.provenance.get("hardware", {}).get("cpu") == cpu:
                    seconds.append(sum(record.seconds.values()))
    return seconds


def on_cpu(exp: Experiment) -> bool:
    return exp.backbone.train.get("device") == "cpu"


def plan(
    exp: Experiment,
    results: Path,
    where: Hardware | None,
    scorers: float = 0.0,
    text: int | None = None,
    measured: UnitCost | None = None,
) -> dict[str, Any]:
    """The plan of one suite.

    `where`: None for a suite on this CPU. `measured`: seconds from a probe, instead of an assumed pace.
    """
    check_names(exp)
    exp.check_prompts()
    check_backbone(exp, may_lack=True)
    found = suite_model(exp, text)
    if where is not None:
        check_gpu_split(exp, found, where)
    here = where or Hardware("cpu", 1, math.inf)
    work, (used, host) = unit_flops(found), memory_use(exp, found, here)
    seconds, pace = _pace(exp, found, work, where, measured)
    done = finished_seconds(exp, results) if seconds is None else []
    if done:
        pace = f"{sum(done) / len(done) / 60:.1f} minutes per run, measured on {len(done)} finished runs"
    lines = []
    for row in (None, *exp.rows):
        count = run_counts(exp, row)
        hours = None
        if seconds is not None:
            hours = run_seconds(exp, count, seconds, here, scorers) / 3600
        elif done and row is not None:
            hours = sum(done) / len(done) / 3600
        name, runs = ("base", 1) if row is None else (row.name, len(exp.seeds))
        lines.append({"row": name, "runs": runs, **count, "flops": phase_costs(count, work), "hours_per_run": hours})
    return {
        "suite": exp.suite,
        "scale": exp.scale,
        "model": _described(found),
        "budget": asdict(exp.budget),
        "flops": {"forward": work.forward, "backward": work.backward, "decode": work.decode},
        "rows": lines,
        "total": totals(lines),
        "memory_bytes": None if where is None else {**asdict(used), "peak": used.peak, "phases": used.phases},
        "host_bytes": host,
        "machine": None if where is None else {**asdict(where), "nodes": where.nodes, **samples_per_gpu(exp, where)},
        "refused": None if where is None else exceeds_memory(exp, found, where, used),
        "pace": pace,
        "scorer_seconds_per_video": scorers,
    }


def _pace(
    exp: Experiment, found: Model, work: UnitCost, where: Hardware | None, measured: UnitCost | None
) -> tuple[UnitCost | None, str]:
    if measured is not None:
        return measured, "measured by the probe on this machine"
    if where is None:
        return None, "unknown until one run of this suite has finished on this machine, or with --probe"
    rate, text = where.pace(found.latents, found.settings["dtype"])
    alone = work.at(rate)  # the VAE is not split
    return replace(work.at(rate * where.context), decode=alone.decode), text


def _described(found: Model) -> dict[str, Any]:
    net = found.transformer
    return {
        "layers": net.num_layers,
        "width": net.width,
        "parameters": net.parameters,
        "size": list(found.size),
        "latent_tokens": found.latents,
        "text_tokens": found.text,
        "trains": "all weights" if found.full else f"LoRA of rank {found.settings['lora_rank']}",
        "gradient_checkpointing": found.checkpointing,
        "vae_tiling": found.tile,
        "source": found.source,
    }


def totals(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over all runs; hours one run after another, None where a row's are not known (the base's apart)."""
    total: dict[str, Any] = {"runs": sum(line["runs"] for line in lines)}
    for key in ("nfe_rollout", "nfe_anchor", "nfe_train", "nfe_evaluation", "decodes"):
        total[key] = sum(line["runs"] * line[key] for line in lines)
    total["flops"] = sum(line["runs"] * sum(line["flops"].values()) for line in lines)
    known = [line for line in lines if line["hours_per_run"] is not None]
    total["hours"] = sum(line["runs"] * line["hours_per_run"] for line in known) if known else None
    return total
