"""Stored figures of speed: performance.json, and the page performance.md, which is generated from it alone.

A section that is not measured again keeps its stored figures, hardware and date.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.core.hashing import plain
from bench.store.files import write_text

FILE, PAGE = "performance.json", "performance.md"
SECTIONS = ("overhead", "loops", "gpu")
EARLIER = """No GPU was available when this page was written; `make bench-speed` on a machine with a GPU adds figures.

Measured by us before `tools.speed` existed, on one H100 80 GB (torch 2.11, random bfloat16 weights, no attention
mask): one forward pass at 480x848x81 (33,390 latent tokens) takes 1.63 s = 417 TFLOP/s with torch's
native attention and holds 17.1 GiB; 1.66 s with cuDNN's attention, 2.16 s with flash attention 2. At 480x848x21 it
takes 0.31 s = 300 TFLOP/s. The card's ceiling was not measured, so the goals for the rollout (60 % of it) and for the
memory of an update (below 45 GB) are open.
"""
HEAD = """# Speed

Written by `make bench-speed` from [performance.json](performance.json), which holds every repeat; do not edit.
Compared figures are measured in alternation, since other programs on the machine affect them; each section states
which repeats count. Seconds are wall time unless stated otherwise.
"""
OVERHEAD = """One update of the nano suite ({prompts} prompts x {group_size} samples, {steps} steps, {train_steps} of
them trained) by the trainer, against its bare calls in a separate loop on the same prompts and shapes: velocities,
decoding, evaluators, backward passes, optimizer step. Each update is followed by its bare calls, {updates} times per
row. Seconds are sums of each phase's fastest repeat, of updates without a KL probe and a checkpoint. "All counted"
distributes the probe (an additional backward pass, up to {probe:.2f} s, every third update) and the checkpoint (up to
{checkpoint:.2f} s, every fifth) over all updates and counts both as overhead. "Processor time" does so too, summed
over all updates; other programs affect it less. "Medians" compares median wall times, with all interference.
"""
LOOPS = """One rollout and one update on the same samples, noise and rewards. The straightforward loop is written in
the style of the released trainers: one sample at a time, the reference model as a second copy, diffusers' attention
with its mask, text padded by the share of diffusers' pipeline at 480x848x81 (6 %; its 1985 tokens would dominate the
time of a small model). Decoding and scoring are the same in both and are left out. Both loops compute the same
gradient: they differ by at most {worst:.1e} of its norm (above {bound:g} nothing is timed).
"""
LOOPS_NOTE = """Ratios are straightforward over harness: of the fastest repeats (of rollout and of update, summed) and
of median processor time. Memory is the peak of a fresh process above its imported libraries. Micro-batches of 64 save
time and need memory; the full-size suites use micro-batches of 1. `nano` is the nano suite's model and budget; `wide`
is a random model of width 256 with 2 layers on latents of 8 x 16 x 16, where attention has a larger share. The
reference runs in the harness's rollout and in the other loop's update, so only their sums compare.
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


def read(folder: Path) -> dict[str, Any]:
    """The stored sections by name; empty if nothing is stored."""
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        sections = dict(stored["sections"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(
            f"{path} cannot be read as stored figures of speed ({error}): delete or restore it."
        ) from error
    return sections


def write(folder: Path, measured: Mapping[str, Any]) -> Path:
    """Replace the measured sections, keep the others, and write the page. Returns the page's path."""
    sections = {**read(folder), **measured}
    content = {"schema": 1, "sections": plain(sections)}
    write_text(folder / FILE, json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_text(folder / PAGE, page(content["sections"]))
    return folder / PAGE


def page(sections: Mapping[str, Any]) -> str:
    """The whole page."""
    chapters = {"overhead": overhead_section, "loops": loops_section, "gpu": gpu_section}
    parts = [HEAD]
    for name, title in zip(SECTIONS, ("The harness", "The update loop", "Full size on a GPU"), strict=True):
        parts.append(f"## {title}\n")
        if name in sections:
            parts += [conditions(sections[name]["where"]), *chapters[name](sections[name]["result"])]
        else:
            parts.append(EARLIER if name == "gpu" else "Not measured yet.\n")
    return "\n".join(parts).rstrip() + "\n"


def conditions(measured: Mapping[str, Any]) -> str:
    """Hardware, versions and date of one section."""
    hardware = measured["hardware"]
    parts = [measured["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores, {measured['threads']} thread"]
    versions = [f"{name} {version}" for name, version in measured["versions"].items()]
    parts += [f"Python {measured['python']}", *versions, f"measured on {measured['date']}"]
    small = " **Tiny run of the code: its figures mean nothing.**" if measured["tiny"] else ""
    return f"On {', '.join(parts)}.{small}\n"


def prose(text: str, **values: Any) -> str:
    """One paragraph with its figures, in lines of at most 118 characters."""
    words = " ".join(text.format(**values).split())
    return textwrap.fill(words, 118, break_long_words=False, break_on_hyphens=False) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def verdict(passed: bool, goal: str) -> str:
    return f"Goal: {goal}. **{'Reached' if passed else 'Not reached'}.**\n"


def overhead_section(result: Mapping[str, Any]) -> list[str]:
    """The harness against bare calls: ratios by row, and seconds by phase."""
    rows = result["rows"]
    ratios = [
        [
            row["row"],
            f"{row['phases']['total']['harness']:.3f}",
            f"{row['phases']['total']['bare']:.3f}",
            f"{row['ratio']:.3f}",
            f"{row['ratio_all']:.3f}",
            f"{row['ratio_of_cpu']:.3f}",
            f"{row['ratio_of_medians']:.3f}",
        ]
        for row in rows
    ]
    phases = [
        [row["row"], *(f"{phase['harness']:.3f} / {phase['bare']:.3f}" for phase in row["phases"].values())]
        for row in rows
    ]
    worst = max(row[ratio] for row in rows for ratio in ("ratio", "ratio_all", "ratio_of_cpu"))
    probe, checkpoint = (max(row[f"{name}_seconds"] for row in rows) for name in ("probe", "checkpoint"))
    head = ["row", "harness, s", "bare calls, s", "ratio", "all counted", "processor time", "medians"]
    return [
        prose(OVERHEAD, **result["work"], updates=rows[0]["updates"], probe=probe, checkpoint=checkpoint),
        table(head, ratios),
        verdict(worst <= result["goal"], f"at most {result['goal']:.2f}; the largest ratio is {worst:.3f}"),
        'Seconds by phase, harness / bare; "other" is the record\'s line, audits and bookkeeping:\n',
        table(["row", *rows[0]["phases"]], phases),
    ]


def loops_section(result: Mapping[str, Any]) -> list[str]:
    """The harness's update loop against the straightforward one."""
    head = ["work", "samples x steps (trained)", "latent tokens", "harness, s", "straightforward, s"]
    rows = []
    for case in result["cases"]:
        memory = case.get("memory")
        gb = ["-", "-"]
        if memory is not None:
            gb = [f"{memory['gb']['harness']:.2f} / {memory['gb']['straightforward']:.2f}", f"{memory['ratio']:.2f}"]
        rows.append(
            [
                case["case"],
                f"{case['samples']} x {case['steps']} ({case['train_steps']})",
                f"{case['latent_tokens']}",
                *(f"{case['fastest'][name]['total']:.2f}" for name in ("harness", "straightforward")),
                f"{case['time_ratio']:.2f}",
                f"{case['cpu_ratio']:.2f}",
                *gb,
            ]
        )
    worst = max(case["gradient_difference"] for case in result["cases"])
    return [
        prose(LOOPS, worst=worst, bound=result["bound"]),
        table([*head, "time ratio", "processor time", "memory, GB", "memory ratio"], rows),
        LOOPS_NOTE,
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
    ]
