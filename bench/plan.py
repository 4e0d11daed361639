"""What a suite will cost before anything runs: function evaluations, FLOPs, memory and hours, row by row.

A plan is a plain dictionary (JSON); `bench.plan_page` prints it. Counts come from the ledger's own `planned`, FLOPs
and bytes from `bench.cost`, the pace from an assumption about the GPU, a probe, or finished runs of the machine.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import cost, plugins, store
from bench.base import BenchError
from bench.config import Experiment, RowSpec, difference, resolve
from bench.kl import kl_policy
from bench.launch import anchor_nfe, check_names, judged_nfe
from bench.ledger import TRAIN_COST, guidance_multiplicity, planned
from bench.provenance import hardware
from bench.update import PROBE_EVERY

BACKBONE = "hunyuanvideo15"
TOKENS_PER_WORD, TEMPLATE_TOKENS = 4 / 3, 5
"""Text tokens are guessed from a prompt's words; the chat template's closing tokens follow them."""

GPUS = {
    "h100": (989.0, 80.0),
    "h800": (989.0, 80.0),
    "h200": (989.0, 141.0),
    "a100": (312.0, 80.0),
    "l40s": (362.0, 48.0),
}
"""Dense bf16 peak in TFLOP/s and memory in GB, from NVIDIA's data sheets (SXM where there are several)."""
UTILISATION = ((9_540, 0.30), (33_390, 0.40))
"""Latent tokens and the share of the peak that a whole run is assumed to reach, interpolated and held at the ends.

Measured by us on one H100 80 GB (torch 2.11, random weights, no attention mask, bf16): one forward pass at 480x848x21
took 0.31 s = 300 TFLOP/s = 30 %, at 480x848x81 1.63 s = 417 TFLOP/s = 42 %. Other GPUs: assumed to be alike.
"""


@dataclass(frozen=True)
class Machine:
    """Where the suite would run. `context`: GPUs that share one sample's tokens."""

    gpu: str
    gpus: int
    memory_gb: float
    tflops: float | None = None
    """Achieved TFLOP/s of one GPU; None: the assumed share of its peak."""
    context: int = 1

    @property
    def groups(self) -> int:
        """Data-parallel groups; each takes an equal share of a round's samples and of the held-out videos."""
        return self.gpus // self.context

    def pace(self, latents: int) -> tuple[float, str]:
        """FLOP/s of one GPU, and where the number comes from."""
        if self.tflops is not None:
            return self.tflops * 1e12, f"{self.tflops:g} TFLOP/s per GPU, as given"
        (few, low), (many, high) = UTILISATION
        share = low + (high - low) * min(max((latents - few) / (many - few), 0.0), 1.0)
        peak = GPUS[self.gpu][0]
        text = f"{share * peak:.0f} TFLOP/s per GPU: {share:.0%} of {self.gpu}'s dense bf16 peak of {peak:g}, assumed"
        return share * peak * 1e12, text


def machine(
    gpu: str = "h100",
    gpus: int = 1,
    memory_gb: float | None = None,
    tflops: float | None = None,
    context: int = 1,
) -> Machine:
    """A machine from the command line's words, or one sentence on what is wrong with them."""
    if gpu not in GPUS:
        raise BenchError(f"--gpu {gpu} is not in the table ({', '.join(GPUS)}): give --tflops and --gpu-memory too.")
    if gpus < 1 or context < 1 or gpus % context:
        raise BenchError(
            f"--gpus {gpus} and --context-parallel {context}: give at least 1 of each, "
            "and a degree that divides the number of GPUs."
        )
    for name, value in (("--gpu-memory", memory_gb), ("--tflops", tflops)):
        if value is not None and not 0 < value < math.inf:
            raise BenchError(f"{name} is {value}: give a finite number above 0.")
    return Machine(gpu, gpus, memory_gb or GPUS[gpu][1], tflops, context)


@dataclass(frozen=True)
class Model:
    """The suite's video generator as far as its cost goes."""

    transformer: cost.Transformer
    vae: Mapping[str, Any]
    settings: Mapping[str, Any]
    """The backbone's constructor arguments, defaults filled in."""
    size: tuple[int, int, int]
    latent_shape: tuple[int, int, int, int]
    text: int
    source: str

    @property
    def latents(self) -> int:
        return self.transformer.tokens(self.latent_shape)

    @property
    def full(self) -> bool:
        """Full fine-tuning, which `lora_rank: 0` stands for."""
        return self.settings["lora_rank"] == 0

    @property
    def checkpointing(self) -> bool:
        return bool(self.settings.get("gradient_checkpointing", False))

    @property
    def tile(self) -> tuple[int, int] | None:
        """Height and width of the VAE's tiles in pixels; None where it decodes whole latents."""
        tiles = self.settings.get("vae_tiling")
        return None if tiles is None else (int(tiles[0]), int(tiles[1]))


def model(exp: Experiment, text: int | None = None) -> Model:
    """Read the checkpoint's configs; where the folder is absent, the released model's sizes stand in.

    `text`: text tokens per sample; None: guessed from the training prompts.
    """
    if exp.backbone.name != BACKBONE:
        raise BenchError(f"plan: the cost of backbone {exp.backbone.name!r} is not known, only that of {BACKBONE!r}.")
    folder = resolve(exp.backbone.checkpoint)
    found, vae = cost.read_config(folder / "transformer"), cost.read_config(folder / "vae")
    source = "configs of the checkpoint folder"
    if found is None or vae is None:
        found, vae = {}, cost.RELEASED_VAE
        source = "checkpoint folder not found: the released 480p model is assumed"
    defaults = inspect.signature(plugins.find("backbones", BACKBONE)).parameters.values()
    settings = {p.name: p.default for p in defaults if p.name != "checkpoint"} | exp.backbone.train
    frames, height, width = settings["size"]
    time, space = vae["temporal_compression_ratio"], vae["spatial_compression_ratio"]
    if (frames - 1) % time or height % space or width % space:
        raise BenchError(
            f"size {[frames, height, width]}: frames must be {time} n + 1, height and width multiples of {space}; "
            "set backbone.train.size accordingly."
        )
    shape = (int(vae["latent_channels"]), (frames - 1) // time + 1, height // space, width // space)
    if text is None:
        words = [len(prompt.split()) for prompt in exp.prompt_list("train")]
        text = round(TOKENS_PER_WORD * sum(words) / len(words)) + TEMPLATE_TOKENS
    return Model(cost.Transformer.of(found), vae, settings, (frames, height, width), shape, text, source)


@dataclass(frozen=True)
class Price:
    """Cost of one function evaluation, of its backward pass, and of one decoded video: in FLOPs or in seconds."""

    forward: float
    backward: float
    decode: float | None
    """None where it is not known; it is then not counted."""

    def at(self, rate: float) -> Price:
        """Seconds at `rate` FLOP/s."""
        return Price(self.forward / rate, self.backward / rate, None if self.decode is None else self.decode / rate)


def flops(found: Model) -> Price:
    net, latents, text = found.transformer, found.latents, found.text
    return Price(
        net.forward(latents, text),
        net.backward(latents, text, found.checkpointing, found.full),
        cost.decode_flops(found.vae, found.size, found.tile is not None),
    )


def counts(exp: Experiment, row: RowSpec | None) -> dict[str, int]:
    """Function evaluations of one run by phase, guidance counted; `trained` and `probed` count backward passes too.

    `probed`: the KL term's share of the gradient is a backward pass of its own every `PROBE_EVERY` updates.
    """
    spent = planned(exp.budget, len(exp.reward), exp.budget.updates if row else 0)
    trained = spent["nfe_train"] // TRAIN_COST
    detached = exp.uncond_branch == "detached"
    backward = trained // (guidance_multiplicity(exp.budget.guidance) if detached else 1)
    held = row is not None and bool(kl_policy(row.kl_spec.name, **row.kl_spec.params).term_weights())
    rounds = exp.budget.updates // PROBE_EVERY
    return {
        "nfe_rollout": spent["nfe_rollout"],
        "nfe_anchor": anchor_nfe(exp, row),
        "nfe_train": spent["nfe_train"],
        "nfe_evaluation": judged_nfe(exp),
        "backward": backward,
        "probed": backward * rounds // (exp.budget.updates * exp.budget.minibatches) if held else 0,
        "decodes": spent["decodes"],
        "evaluation_videos": len(exp.prompt_list("heldout")) * exp.evaluation.videos_per_prompt,
    }


def phases(count: Mapping[str, int], price: Price) -> dict[str, float]:
    """FLOPs or seconds of one run by phase, before anything is shared out."""
    decode = price.decode or 0.0
    trained = count["nfe_train"] // TRAIN_COST
    return {
        "rollout": count["nfe_rollout"] * price.forward,
        "anchor": count["nfe_anchor"] * price.forward,
        "train": trained * price.forward + count["backward"] * price.backward,
        "kl_probe": count["probed"] * price.backward,
        "decode": count["decodes"] * decode,
        "evaluation": count["nfe_evaluation"] * price.forward + count["evaluation_videos"] * decode,
    }


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
    branches = 2 if budget.guidance != 1 and exp.uncond_branch != "detached" else 1
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
