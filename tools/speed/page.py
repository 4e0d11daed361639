"""The stored figures of speed: performance.json, and the page performance.md that is made of it and of nothing else.

A section that was not measured this time stays as it was stored, with its own hardware and date.
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
EARLIER = """No GPU was at hand when this page was written: `make bench-speed` on a machine with one fills this in.

Measured earlier by us, before this harness for speed existed, on one H100 80 GB (torch 2.11, random bfloat16 weights,
no attention mask): one forward pass at 480x848x81 (33,390 latent tokens) takes 1.63 s = 417 TFLOP/s with torch's
native attention and holds 17.1 GiB; 1.66 s with cuDNN's attention, 2.16 s with flash attention 2. At 480x848x21 it
takes 0.31 s = 300 TFLOP/s. The card's own ceiling was not measured then, so the goal for the rollout (60 % of it) is
open, and so is the one for the memory of an update (below 45 GB).
"""
HEAD = """# Speed

Written by `make bench-speed` from [performance.json](performance.json), which holds every repeat; do not edit.
What is compared is measured in alternation, since other work on a machine moves all of it; each section says which
of its repeats count. Seconds are wall time unless said otherwise.
"""
OVERHEAD = """One update of the nano suite ({prompts} prompts x {group_size} samples, {steps} steps, {train_steps} of
them trained) by the trainer itself, against its bare calls replayed in a loop of their own on the same prompts and
shapes: velocities, decoding, scorers, backward passes, optimizer step. Each update is followed by its bare calls,
{updates} times per row. Seconds are the fastest of each phase, added up, of updates without a KL probe and a
checkpoint. "All counted" spreads the probe (a backward pass of its own, up to {probe:.2f} s, every third update) and
the checkpoint (up to {checkpoint:.2f} s, every fifth) over all updates and counts both as overhead; "processor time"
does so too, summed over all updates; other work on the machine moves it less. "Medians" is wall time with all
that ran beside it.
"""
LOOPS = """One rollout and one update on the same samples, noise and rewards. The straightforward loop is written in
the style of the released trainers: one sample at a time, the reference model as a second copy, diffusers' attention
with its mask, text padded in the proportion in which its pipeline pads at 480x848x81 (6 %; its own 1985 slots would
make a small model look worse than a big one is). Decoding and scoring are the same in both and are left out. Both
loops end in the same gradient: they differ by at most {worst:.1e} of its norm (above {bound:g} nothing is timed).
"""
LOOPS_NOTE = """Ratios are straightforward over harness: of the fastest repeats (of rollout and update by themselves,
added up) and of median processor time. Memory is the peak of a fresh process above its imported libraries:
micro-batches of 64 buy time with memory, those of 1 are what the full-size suites use. `nano` is the nano suite's
own model and budget; `wide` is a random model of width 256 with 2 layers on latents of 8 x 16 x 16, where attention
weighs more. The reference runs in the harness's rollout and in the other loop's update, so only whole rounds
compare.
"""
GPU = """Transformer of {parameters:,} parameters, random bfloat16 weights, one sample, no guidance. Ceiling:
{ceiling:.1f} TFLOP/s, the best square bfloat16 matrix product. `rollout` is a forward pass of the harness, `train` a
trained step (forward and backward, LoRA, gradient checkpointing), `stock` diffusers' own forward pass (its mask, its
padded text). FLOPs count latents and valid text tokens only, in all three. Seconds are medians.
"""
GPU_ROUND = """A SAGE-GRPO round by the harness: one prompt, two samples that pass the model one at a time (a group
of one has no advantage), two trained steps, LoRA, its moving anchor, AdamW's states in place; the transformer alone
(VAE and text encoders not loaded).
"""


def read(folder: Path) -> dict[str, Any]:
    """The stored sections by name; none where nothing is stored."""
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
    """Store the measured sections over the old ones, the others as they are; then the page. Returns its path."""
    sections = {**read(folder), **measured}
    content = {"schema": 1, "sections": plain(sections)}
    write_text(folder / FILE, json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_text(folder / PAGE, page(content["sections"]))
    return folder / PAGE


def page(sections: Mapping[str, Any]) -> str:
    """The whole page."""
    made = {"overhead": overhead, "loops": loops, "gpu": gpu}
    parts = [HEAD]
    for name, title in zip(SECTIONS, ("The harness", "The update loop", "Full size on a GPU"), strict=True):
        parts.append(f"## {title}\n")
        if name in sections:
            parts += [where(sections[name]["where"]), *made[name](sections[name]["result"])]
        else:
            parts.append(EARLIER if name == "gpu" else "Not measured yet.\n")
    return "\n".join(parts).rstrip() + "\n"


def where(place: Mapping[str, Any]) -> str:
    """Hardware, versions and date of one section."""
    hardware = place["hardware"]
    parts = [place["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores, {place['threads']} thread"]
    versions = [f"{name} {version}" for name, version in place["versions"].items()]
    parts += [f"Python {place['python']}", *versions, f"measured on {place['date']}"]
    small = " **Miniature run of the code: its figures mean nothing.**" if place["tiny"] else ""
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


def overhead(result: Mapping[str, Any]) -> list[str]:
    """Harness against bare calls: ratios by row, and seconds by phase."""
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
        [row["row"], *(f"{found['harness']:.3f} / {found['bare']:.3f}" for found in row["phases"].values())]
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


def loops(result: Mapping[str, Any]) -> list[str]:
    """The harness's update loop against the straightforward one."""
    head = ["work", "samples x steps (trained)", "latent tokens", "harness, s", "straightforward, s"]
    rows = []
    for case in result["cases"]:
        memory = case.get("memory")
        held = ["-", "-"]
        if memory is not None:
            held = [f"{memory['gb']['harness']:.2f} / {memory['gb']['straightforward']:.2f}", f"{memory['ratio']:.2f}"]
        rows.append(
            [
                case["case"],
                f"{case['samples']} x {case['steps']} ({case['train_steps']})",
                f"{case['latent_tokens']}",
                *(f"{case['fastest'][name]['total']:.2f}" for name in ("harness", "straightforward")),
                f"{case['time_ratio']:.2f}",
                f"{case['cpu_ratio']:.2f}",
                *held,
            ]
        )
    worst = max(case["gradient_difference"] for case in result["cases"])
    return [
        prose(LOOPS, worst=worst, bound=result["bound"]),
        table([*head, "time ratio", "processor time", "memory, GB", "memory ratio"], rows),
        LOOPS_NOTE,
    ]


def gpu(result: Mapping[str, Any]) -> list[str]:
    """Pace, share of the ceiling and memory of the full-size transformer."""
    head = ["video", "latent tokens", "what", "seconds", "TFLOP", "TFLOP/s", "of the ceiling", "peak, GB"]
    rows = []
    for name, found in result["videos"].items():
        for what in ("rollout", "train", "stock"):
            pace = found[what]
            numbers = [f"{pace['seconds']['median']:.3f}", f"{pace['tflop']:.1f}", f"{pace['tflops']:.1f}"]
            rows.append(
                [name, str(found["latent_tokens"]), what, *numbers, f"{pace['share']:.0%}", f"{pace['peak_gb']:.1f}"]
            )
    columns = ("rollout_seconds", "update_seconds", "rollout_peak_gb", "update_peak_gb")
    updates = [
        [found["video"], f"{found['guidance']:g}", *(f"{found[key]:.1f}" for key in columns)]
        for found in result["updates"]
    ]
    last = list(result["videos"])[-1]
    share, goal = result["videos"][last]["rollout"]["share"], result["share_goal"]
    memory = max(max(found["rollout_peak_gb"], found["update_peak_gb"]) for found in result["updates"])
    ratios = ", ".join(f"{found['stock_ratio']:.2f} at {name}" for name, found in result["videos"].items())
    return [
        prose(GPU, parameters=result["parameters"], ceiling=result["ceiling"]["tflops"]),
        table(head, rows),
        f"The stock forward pass takes this many times the harness's: {ratios}.\n",
        verdict(share >= goal, f"{goal:.0%} of the ceiling in the rollout at {last}; {share:.0%}"),
        GPU_ROUND,
        table(["video", "guidance", "rollout, s", "update, s", "rollout peak, GB", "update peak, GB"], updates),
        verdict(memory < result["memory_goal_gb"], f"below {result['memory_goal_gb']:g} GB; {memory:.1f} GB"),
    ]
