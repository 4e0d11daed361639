"""A plan as plain text: the suite, a table by row, memory, time, and assumptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from bench.plan.workload import KEPT_BITS

COLUMNS = ("nfe_rollout", "nfe_anchor", "nfe_train", "nfe_curve", "nfe_evaluation")
PREFIXES = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1.0, "FLOP"))


def format_flops(flops: float | None) -> str:
    """FLOPs with three digits and a unit; "-" for None."""
    if flops is None:
        return "-"
    for size, unit in PREFIXES:
        if flops >= size:
            return f"{flops / size:,.3g} {unit}" if flops < 1000 * size else f"{flops / size:,.0f} {unit}"
    return "0"


def format_hours(hours: float | None) -> str:
    """Hours in minutes, hours or days; "-" for None."""
    if hours is None:
        return "-"
    if hours < 2:
        return f"{hours * 60:.2g} min" if hours < 1 / 6 else f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"


def plan_page(plan: Mapping[str, Any]) -> str:
    """The whole plan of one suite."""
    parts = [*_head(plan), "", _table(plan), "", *_memory(plan), _time(plan), *_notes(plan)]
    return "\n".join(parts)


def study_totals(plans: Sequence[Mapping[str, Any]]) -> str:
    """The sum over the variants of a study."""
    totals = [plan["total"] for plan in plans]
    hours = [total["hours"] for total in totals if total["hours"] is not None]
    flops = [total["flops"] for total in totals]
    return (
        f"all {len(plans)} variants: {sum(total['runs'] for total in totals)} runs, "
        f"{format_flops(None if None in flops else sum(flops))}"
        + (f", {format_hours(sum(hours))} one run after another" if hours else "")
        + "; runs that variants share are trained once"
    )


def _head(plan: Mapping[str, Any]) -> list[str]:
    model, flops, budget = plan["model"], plan["flops"], plan["budget"]
    update = (
        f"each update: {budget['prompts']} prompts x {budget['group_size']} samples, {budget['steps']} steps, "
        f"{budget['train_steps']} trained, guidance {budget['guidance']:g}; {budget['updates']} updates per run"
    )
    if model is None:
        return [
            f"suite {plan['suite']}: the class of backbone {plan['backbone']!r} has no model_cost "
            "(bench.api.EstimatesCost), so FLOPs and memory are not known",
            update,
        ]
    frames, height, width = model["size"]
    decode = "not known" if flops["decode"] is None else format_flops(flops["decode"])
    passes = " on a base in 8 bits" if model["quantized"] else ""
    passes += " with gradient checkpointing" if model["gradient_checkpointing"] else ""
    words = f"{model['text_tokens']} text tokens (estimated from the prompts' words)"
    text = f" + {words}" if model["text_tokens"] else " tokens"
    return [
        f"suite {plan['suite']}: {model['layers']} layers x {model['width']} wide, {model['parameters']:,} parameters "
        f"({model['source']})",
        f"video {frames} x {height} x {width}: {model['latent_tokens']:,} latent{text}; {model['trains']}{passes}",
        update,
        f"one function evaluation {format_flops(flops['forward'])}, "
        f"its backward pass {format_flops(flops['backward'])}, one decoded video {decode}",
    ]


def _table(plan: Mapping[str, Any]) -> str:
    heads = ["row", "runs", *(f"{name.removeprefix('nfe_')} NFE" for name in COLUMNS), "FLOPs per run", "per run"]
    lines = [
        [
            line["row"],
            line["runs"],
            *(f"{line[name]:,}" for name in COLUMNS),
            format_flops(None if line["flops"] is None else sum(line["flops"].values())),
            format_hours(line["hours_per_run"]),
        ]
        for line in plan["rows"]
    ]
    total = plan["total"]
    sums = ["all runs", total["runs"], *(f"{total[name]:,}" for name in COLUMNS)]
    lines.append([*sums, format_flops(total["flops"]), format_hours(total["hours"])])
    return tabulate(lines, heads, tablefmt="simple", colalign=("left", *["right"] * (len(heads) - 1)))


def _memory(plan: Mapping[str, Any]) -> list[str]:
    memory, host = plan["memory_bytes"], plan["host_bytes"]
    lines: list[str] = []
    if host is None:
        return lines
    in_gb = {name: size / 1e9 for name, size in host.items()}
    work = (
        f"trajectories {in_gb['trajectories']:.1f} + an update's videos {in_gb['videos']:.1f} + copies of anchors "
        f"{in_gb['anchors']:.1f}"
    )
    if memory is None:
        return [_host_line(in_gb, f"the models and their work {in_gb['models']:.1f} + {work}")]
    idle = f"the idle VAE {in_gb['models']:.1f} + " if in_gb["models"] else ""
    lines.append(
        _host_line(in_gb, f"the larger of {in_gb['loading']:.1f} while a part of the model is loaded and {idle}{work}")
    )
    gb = {name: value / 1e9 for name, value in memory.items() if name != "phases"}
    refused = " (does not fit)" if plan["refused"] else ""
    tiles = plan["model"]["vae_tiling"]
    tiled = "whole" if tiles is None else f"in tiles of {tiles[0]} x {tiles[1]}"
    constant = f"weights {gb['weights']:.1f} + trained, gradients, optimizer, anchors {gb['trained']:.1f}"
    gathered = f", {gb['gathered_training']:.1f} gathered" if gb["gathered_training"] else ""
    phases = ", ".join(f"{name} {value / 1e9:.1f}" for name, value in memory["phases"].items())
    before = (
        f"text encoders {gb['encode']:.1f}, loading {gb['loading']:.1f}"
        if gb["encode"]
        else f"loading {gb['loading']:.1f}"
    )
    first = (
        f"memory per GPU: about {gb['peak']:.0f} of {plan['machine']['memory_gb']:g} GB{refused} = {constant} "
        f"+ the largest of {phases}; training: {gb['activations']:.1f} activations, {gb['workspace']:.1f} workspace, "
        f"{gb['gradients']:.1f} copies of the gradient{gathered}; before: {before}; decoding {tiled}; "
        "evaluators not counted"
    )
    return [first, *lines]


def _host_line(in_gb: Mapping[str, float], parts: str) -> str:
    return (
        f"host memory of one process: about {in_gb['peak']:.1f} GB = the program {in_gb['program']:.1f} + {parts}; "
        "evaluators not counted"
    )


def _time(plan: Mapping[str, Any]) -> str:
    total = format_hours(plan["total"]["hours"])
    return f"time: {plan['pace']}" + (f"; {total} for all, one run after another" if total != "-" else "")


def _notes(plan: Mapping[str, Any]) -> list[str]:
    seconds, machine = plan["scorer_seconds_per_video"], plan["machine"]
    evaluators = f"{seconds:g} s per video" if seconds else "not counted (--scorer-seconds)"
    notes = [f"evaluators' time: {evaluators}; loading and encoding prompts: not counted"]
    kept = plan["kept_videos"]
    if kept is not None and kept["clips"]:
        notes.append(
            f"disk: each run keeps {kept['clips']} videos, about {kept['bytes'] / 1e6:.3g} MB as {kept['format']} "
            f"({KEPT_BITS[kept['format']]:g} bits per pixel, assumed)"
        )
    if machine is not None and machine["gpus"] > 1:
        notes.append(_parallelism(machine))
    return notes


def _parallelism(machine: Mapping[str, Any]) -> str:
    """How several GPUs share a run, and the command for it."""
    gpus, nodes, context, shard = (machine[key] for key in ("gpus", "nodes", "context", "shard"))
    sharding = {
        None: "every GPU holds all weights",
        "full": f"weights, gradients and optimizer states are sharded over all {gpus}, and gathered block by block",
        "grads": f"weights, gradients and optimizer states are sharded over all {gpus}, and gathered weights stay "
        "until the backward pass",
    }[shard]
    degree = f" backbone.train.parallel='{{context: {context}}}'" if context > 1 else ""
    if nodes == 1:
        option = f" --shard {shard}" if shard else ""
        command = f"`bench run SUITE{degree} --launcher torchrun --nproc {gpus}{option}`"
    else:
        keys = f"launcher: slurm, nodes: {nodes}, nproc: {gpus // nodes}" + (f", shard: {shard}" if shard else "")
        command = f"`bench run SUITE{degree} --launch FILE` with {{{keys}}} in the launch file"
    return (
        f"{gpus} GPUs: {gpus // context} data-parallel groups; each takes {machine['samples']} of an update's samples "
        f"and at most {machine['evaluation_videos']} of the held-out videos; "
        f"{context} GPU(s) share one sample's tokens; {sharding}; no loss of throughput is assumed. Run as {command}"
    )
