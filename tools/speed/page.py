"""Stored figures of speed: performance.json, and the page performance.md, which is generated from it alone.

A section that is not measured again keeps its stored figures, hardware and date.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.core.hashing import plain
from bench.store.files import write_text
from tools.speed.full_page import EARLIER, gpu_section, loading_section
from tools.speed.markdown import prose, table, verdict

FILE, PAGE = "performance.json", "performance.md"
SECTIONS = ("overhead", "loops", "loading", "gpu")
TITLES = ("The harness", "The update loop", "Loading a full-size model", "Full size on a GPU")
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
    chapters = {
        "overhead": overhead_section,
        "loops": loops_section,
        "loading": loading_section,
        "gpu": gpu_section,
    }
    parts = [HEAD]
    for name, title in zip(SECTIONS, TITLES, strict=True):
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
