"""The sections of the page of speed on full-size models: loading on the host, and a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.speed.markdown import prose, table, verdict

EARLIER = """**These figures await a GPU.** None was at hand when this page was written. `python -m tools.speed gpu`
measures them in eight minutes on one H100 or H200, and needs 25 GB of disk: throughput and its share of the card's
ceiling; seconds and peak memory of an update of both full-size suites beside `bench plan`, under budgets of 24, 48
and 80 GB; what each option for speed or memory saves, and by how much it changes the velocity. The command runs in
miniature on a CPU in the tests.

Measured by us before `tools.speed` existed, on one H100 80 GB (torch 2.11, random bfloat16 weights, no attention
mask): one forward pass at 480x848x81 (33,390 latent tokens) takes 1.63 s = 417 TFLOP/s with torch's
native attention and holds 17.1 GiB; 1.66 s with cuDNN's attention, 2.16 s with flash attention 2. At 480x848x21 it
takes 0.31 s = 300 TFLOP/s. The card's ceiling was not measured, so the goals for the rollout (60 % of it) and for the
memory of an update (below 45 GB) are open.
"""
GPU = """Transformer of {parameters:,} parameters, random bfloat16 weights, one sample, no guidance. Ceiling:
{ceiling:.1f} TFLOP/s, the best square bfloat16 matrix product. `rollout` is a forward pass of the harness, `train` a
trained step (forward and backward, LoRA, gradient checkpointing), `stock` diffusers' forward pass (its mask, its
padded text). FLOPs count latents and valid text tokens only, in all three. Seconds are medians.
"""
GPU_UPDATE = """One SAGE-GRPO update by the harness: one prompt, two samples with one per forward pass (a group of one
has no advantage), two trained steps, LoRA, its moving anchor, existing AdamW states. Only the transformer is loaded,
no VAE and no text encoders.
"""
SETTINGS = """Suites at their size, with a VAE and random weights, by the code of a run: two samples, two steps of
which one trains, guidance 6 through both branches. The limit is the smallest of the budgets of {budgets} GB and the
whole card in which the setting ran; those below its plan are not tried. `peak` is that of all phases, loading
included. `plan / peak` above 1 means that `bench plan` is on the safe side. `difference` is that of the velocity to
the suite's own setting, as a share of its norm, for a policy away from the base.
"""
LOADING = """A folder with weights ({weights}, in GB), each part in a process of its own, at the smallest size that the
models accept: one prompt and the empty one, one update of two samples with one trained step. `own` is memory that a
process cannot do without. `resident` counts the mapped pages of weight files too, which the system takes back when
memory is short.
"""
OVER = 1.05
"""Share of the larger part that the peak of both parts after each other may reach: rests of the freed one."""


def loading_section(result: Mapping[str, Any]) -> list[str]:
    """Seconds and memory of the text encoders, of the other models, and of both after each other."""
    parts = result["parts"]
    words = {
        "text": "text encoders: load, encode",
        "models": "transformer and VAE: load, one update",
        "run": "as in a run: encode, free, load the rest",
    }
    head = ["process", "seconds", "own, GB", "resident, GB"]
    if any(part["gpu_gb"] is not None for part in parts.values()):
        head.append("GPU, GB")
    rows = []
    for name, text in words.items():
        part = parts[name]
        seconds = ", ".join(f"{what} {value:.1f}" for what, value in part["seconds"].items())
        memory = [part["own_gb"], part["resident_gb"], *([] if part["gpu_gb"] is None else [part["gpu_gb"]])]
        rows.append([text, seconds, *(f"{value:.1f}" for value in memory)])
    weights = ", ".join(f"{name} {size:.1f}" for name, size in result["weights_gb"].items())
    peak, larger = parts["run"]["own_gb"], result["bound"]
    goal = f"the peak of both is that of the larger part, not the sum: {peak:.1f} GB, the larger part {larger:.1f} GB"
    plan = (
        [] if result["planned_gb"] is None else [f"`bench plan` expects {result['planned_gb']:.1f} GB of the host.\n"]
    )
    return [
        prose(LOADING, weights=weights),
        table(head, rows),
        verdict(peak <= OVER * larger, goal),
        *plan,
    ]


def settings_section(result: Mapping[str, Any]) -> list[str]:
    """Memory and seconds of the suites by setting, and what was refused."""
    head = ["suite", "setting", "plan, GB", "peak, GB", "plan / peak", "limit, GB"]
    head += ["load, s", "rollout, s", "update, s", "decode, s", "difference"]
    rows, refused = [], []
    for each in result["settings"]:
        if "refused" in each:
            refused.append(f"- {each['setting']}: {each['refused']}\n")
            continue
        memory = [f"{each[key]:.1f}" for key in ("planned_gb", "peak_gb")]
        seconds = [f"{each['seconds'][phase]:.1f}" for phase in ("rollout", "update", "decode")]
        limits = [f"{each['plan_ratio']:.2f}", f"{each['budget_gb']:.0f}", f"{each['load_seconds']:.0f}"]
        rows.append([each["suite"], each["setting"], *memory, *limits, *seconds, f"{each['difference']:.1e}"])
    return [
        prose(SETTINGS, budgets=", ".join(f"{budget:g}" for budget in result["budgets_gb"])),
        table(head, rows),
        *(["Not measured:\n", "".join(refused)] if refused else []),
    ]


def gpu_section(result: Mapping[str, Any]) -> list[str]:
    """Throughput, share of the ceiling and memory of the full-size transformer."""
    head = ["video", "latent tokens", "what", "seconds", "TFLOP", "TFLOP/s", "of the ceiling", "peak, GB"]
    rows = []
    for name, video in result["videos"].items():
        for part in ("rollout", "train", "stock"):
            figures = video[part]
            numbers = [f"{figures['seconds']['median']:.3f}", f"{figures['tflop']:.1f}", f"{figures['tflops']:.1f}"]
            share, peak = f"{figures['share']:.0%}", f"{figures['peak_gb']:.1f}"
            rows.append([name, str(video["latent_tokens"]), part, *numbers, share, peak])
    columns = ("rollout_seconds", "update_seconds", "rollout_peak_gb", "update_peak_gb")
    updates = [
        [update["video"], f"{update['guidance']:g}", *(f"{update[key]:.1f}" for key in columns)]
        for update in result["updates"]
    ]
    last = list(result["videos"])[-1]
    share, goal = result["videos"][last]["rollout"]["share"], result["share_goal"]
    memory = max(max(update["rollout_peak_gb"], update["update_peak_gb"]) for update in result["updates"])
    ratios = ", ".join(f"{video['stock_ratio']:.2f} at {name}" for name, video in result["videos"].items())
    return [
        prose(GPU, parameters=result["parameters"], ceiling=result["ceiling"]["tflops"]),
        table(head, rows),
        f"The stock forward pass takes this many times the harness's: {ratios}.\n",
        verdict(share >= goal, f"{goal:.0%} of the ceiling in the rollout at {last}; {share:.0%}"),
        GPU_UPDATE,
        table(["video", "guidance", "rollout, s", "update, s", "rollout peak, GB", "update peak, GB"], updates),
        verdict(memory < result["memory_goal_gb"], f"below {result['memory_goal_gb']:g} GB; {memory:.1f} GB"),
        *settings_section(result),
    ]
