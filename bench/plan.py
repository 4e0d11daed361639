"""What a suite will cost before anything runs: function evaluations, FLOPs, memory and hours, row by row.

A plan is a plain dictionary (JSON); `bench.plan_page` prints it. Counts come from the ledger's own `planned`, FLOPs
and bytes from `bench.cost`, the pace from an assumption about the GPU, a probe, or finished runs of the machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import cost, store
from bench.base import BenchError
from bench.config import Experiment, difference, resolve
from bench.kl import kl_policy
from bench.launch import check_names
from bench.machines import Machine
from bench.provenance import hardware
from bench.workload import Model, Price, counts, flops, model, phases


def share(samples: int, groups: int) -> float:
    """The part of an equally dealt load that the fullest group takes."""
    return math.ceil(samples / groups) / samples


def run_seconds(exp: Experiment, count: Mapping[str, int], price: Price, where: Machine, scorers: float) -> float:
    """Wall-clock of one run; `scorers`: seconds that all evaluators together take per video."""
    spent = phases(count, price)
    spent["decode"] += count["decodes"] * scorers
    spent["evaluation"] += count["evaluation_videos"] * scorers
    judged = spent.pop("evaluation") * share(count["evaluation_videos"], where.groups)
    samples = exp.budget.prompts * exp.budget.group_size
    return sum(spent.values()) * share(samples, where.groups) + judged


# memory -------------------------------------------------------------------------------------------------------
def memory(exp: Experiment, found: Model, where: Machine) -> tuple[cost.Memory, dict[str, float]]:
    """Bytes on one GPU, and bytes of host memory of one process: {"trajectories", "videos"}."""
    net, settings, budget = found.transformer, found.settings, exp.budget
    base = cost.DTYPE_BYTES[settings["dtype"]]
    rules = [kl_policy(row.kl_spec.name, **row.kl_spec.params).anchors() for row in exp.rows]
    networks = max(sum(rule.network for rule in anchors.values()) for anchors in rules)
    if found.full:  # copies of anchors wait on the CPU unless the suite says otherwise
        trained, sharded, base_weights = net.parameters, where.gpus, 0.0
        copies = networks if settings.get("anchors_on") == "model" else 0
    else:
        trained, sharded = net.lora_parameters(settings["lora_rank"], settings["lora_targets"]), 1
        base_weights = float(net.parameters * base)
        copies = max(sum(rule.network and rule.every is not None for rule in anchors.values()) for anchors in rules)
    per_group = math.ceil(budget.prompts * budget.group_size / where.groups)
    tokens = min(budget.micro_batch, per_group) * (found.latents + found.text) / where.context
    branches = 2 if budget.guidance != 1 and exp.trains_uncond else 1
    vae, text = _side_parameters(exp)
    if settings.get("text_encoders", "resident") == "released":
        text = 0.0
    batch = min(int(settings["decode_batch"]), per_group)
    used = cost.Memory(
        weights=base_weights + text * base + vae * cost.DTYPE_BYTES["float32"],
        trained=trained * (cost.ADAM_BYTES + copies * cost.DTYPE_BYTES["float32"]) / sharded,
        activations=cost.activations(net, tokens, branches, found.checkpointing, base, cost.BLOCK_BYTES[base]),
        workspace=cost.workspace(net, tokens),
        decode=cost.decode_bytes(found.vae, found.size, batch, found.tile),
    )
    latent = per_group * math.prod(found.latent_shape) * 4.0
    host = {
        "trajectories": latent * budget.train_steps * (2 + networks),
        "videos": per_group * 3.0 * math.prod(found.size) * 4,
    }
    return used, host


def _side_parameters(exp: Experiment) -> tuple[float, float]:
    """Parameters of the VAE and of both text encoders: from the folder's files, or the released ones'."""
    folder = resolve(exp.backbone.checkpoint)
    if not (folder / "vae" / "config.json").is_file():
        return cost.VAE_PARAMETERS, cost.TEXT_PARAMETERS
    text = sum(cost.stored_parameters(folder / part) for part in ("text_encoder", "text_encoder_2"))
    return cost.stored_parameters(folder / "vae"), text


def refuse(exp: Experiment, found: Model, where: Machine, used: cost.Memory) -> None:
    """One sentence for a plan that cannot run."""
    heads = found.transformer.num_attention_heads
    for what, number, mend in (
        ("latent tokens", found.latents, "choose another --context-parallel, or a size such as 480x832"),
        ("attention heads", heads, "choose another --context-parallel"),
    ):
        if number % where.context:
            raise BenchError(
                f"plan {exp.suite}: --context-parallel {where.context} does not divide {number} {what}: {mend}."
            )
    if used.peak <= where.memory_gb * 1e9:
        return
    if used.activations > used.decode and not found.checkpointing:
        mend = "set backbone.train.gradient_checkpointing=true"
    elif used.decode > used.activations + used.workspace and found.tile is None:
        mend = "lower backbone.train.decode_batch, or decode in tiles (backbone.train.vae_tiling)"
    elif exp.budget.micro_batch > 1:
        mend = "lower budget.micro_batch"
    else:
        mend = "use more GPUs (--gpus), a smaller size, or a larger GPU"
    raise BenchError(
        f"plan {exp.suite}: a GPU needs about {used.peak / 1e9:.0f} GB and {where.gpu} x {where.gpus} has "
        f"{where.memory_gb:g} GB each: {mend}, or say --gpu-memory GB if yours has more."
    )


# the plan -----------------------------------------------------------------------------------------------------
def finished(exp: Experiment, results: Path) -> list[float]:
    """Seconds of the suite's finished runs with these settings on a CPU of this model; of all of a row's phases."""
    cpu, seconds = hardware()["cpu"], []
    for row in exp.rows:
        for seed in exp.seeds:
            folder = store.run_folder(results / exp.suite, row.name, seed)
            if (folder / store.RUN).exists():
                record = store.read_record(folder)
                alike = difference(record.config, exp.shared()) is None
                if alike and record.provenance.get("hardware", {}).get("cpu") == cpu:
                    seconds.append(sum(record.seconds.values()))
    return seconds


def on_cpu(exp: Experiment) -> bool:
    return exp.backbone.train.get("device") == "cpu"


def plan(
    exp: Experiment,
    results: Path,
    where: Machine | None,
    scorers: float = 0.0,
    text: int | None = None,
    measured: Price | None = None,
) -> dict[str, Any]:
    """The plan of one suite.

    `where`: None for a suite on this CPU. `measured`: seconds from a probe, instead of an assumed pace.
    """
    check_names(exp)
    exp.check_prompts()
    found = model(exp, text)
    work, (used, host) = flops(found), memory(exp, found, where or Machine("cpu", 1, math.inf))
    if where is not None:
        refuse(exp, found, where, used)
    seconds, pace = _pace(exp, found, work, where, measured)
    done = finished(exp, results) if seconds is None else []
    if done:
        pace = f"{sum(done) / len(done) / 60:.1f} minutes per run, measured on {len(done)} finished runs"
    lines = []
    for row in (None, *exp.rows):
        count = counts(exp, row)
        hours = None
        if seconds is not None:
            hours = run_seconds(exp, count, seconds, where or Machine("cpu", 1, math.inf), scorers) / 3600
        elif done and row is not None:
            hours = sum(done) / len(done) / 3600
        name, runs = ("base", 1) if row is None else (row.name, len(exp.seeds))
        lines.append({"row": name, "runs": runs, **count, "flops": phases(count, work), "hours_per_run": hours})
    return {
        "suite": exp.suite,
        "scale": exp.scale,
        "model": _described(found),
        "budget": asdict(exp.budget),
        "flops": {"forward": work.forward, "backward": work.backward, "decode": work.decode},
        "rows": lines,
        "total": totals(lines),
        "memory_bytes": None if where is None else {**asdict(used), "peak": used.peak},
        "host_bytes": host,
        "machine": None if where is None else asdict(where),
        "pace": pace,
        "scorer_seconds_per_video": scorers,
    }


def _pace(
    exp: Experiment, found: Model, work: Price, where: Machine | None, measured: Price | None
) -> tuple[Price | None, str]:
    if measured is not None:
        return measured, "measured by the probe on this machine"
    if where is None:
        return None, "unknown until one run of this suite has finished on this machine, or with --probe"
    rate, text = where.pace(found.latents)
    return work.at(rate * where.context), text


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
