"""The table of an ablation, from the records only: `<folder>/tables/ablation.{md,csv,tex}`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bench.core.errors import BenchError
from bench.report import formatting
from bench.report.data.ablation import (
    SCORES,
    AblationLevel,
    compare_levels,
    grouped,
    same_runs,
    settings_that_differ,
)
from bench.report.data.records import is_nano
from bench.report.tables.main import FOLDER, Table
from bench.report.tables.main import HEADS as MAIN_HEADS
from bench.report.tables.notes import effect_notes, nano_warning, run_notes
from bench.store.files import write_files

NAME = "ablation"
#: Scores and their column heads, the most important ones first.
HEADS = {name: MAIN_HEADS[name] for name in SCORES}
#: Cell for the difference of the baseline to itself.
ITSELF = "-"


def build_ablation(folder: Path | str, levels: Sequence[AblationLevel], title: str) -> dict[str, Path]:
    """Write ablation.md, ablation.csv and ablation.tex atomically: {file name: path}; see `render_ablation`."""
    return write_files(Path(folder) / FOLDER, render_ablation(levels, title))


def render_ablation(levels: Sequence[AblationLevel], title: str) -> dict[str, str]:
    """The text of each file; `title` is the name of the suite or the study.

    Levels that do not compare are a `BenchError`.
    """
    if not levels:
        raise BenchError(f"{title} has no ablation: give one method several rows, or the study several variants.")
    table = compare_levels(levels)
    notes = ablation_notes(levels, table)
    return {
        f"{NAME}.md": _markdown(levels, table, title, notes),
        f"{NAME}.csv": table.to_csv(index=False, float_format="%.8g", lineterminator="\n"),
        f"{NAME}.tex": _tex(levels, table, title, notes),
    }


def ablation_sections(levels: Sequence[AblationLevel]) -> tuple[dict[str, Table], list[str]]:
    """Title to heads and lines of each section, and the notes."""
    table = compare_levels(levels)
    return _sections(levels, table), ablation_notes(levels, table)


def _sections(levels: Sequence[AblationLevel], table: pd.DataFrame) -> dict[str, Table]:
    return {
        "Scores": _scores(levels, table),
        "Differences": _differences(table),
        "Single scores": _single_scores(table),
        "Training": _training(table),
    }


def _lines(table: pd.DataFrame) -> list[tuple[list[str], bool, pd.Series[Any]]]:
    """For each level its first two cells (group and level), whether it is the baseline of its group, and its numbers.

    The baseline and a level with a run that fails a gate are marked.
    """
    lines = []
    for repeated, (_, row) in zip(table["group"].duplicated(), table.iterrows(), strict=True):
        marks = ("" if repeated else " (baseline)") + (" †" if row["failed_gates"] else "")
        lines.append(([row["group"], row["level"] + marks], not repeated, row))
    return lines


def _scores(levels: Sequence[AblationLevel], table: pd.DataFrame) -> Table:
    digits = {name: formatting.decimals(table, name) for name in HEADS}
    seeds = {(level.group, level.name): len(level.seeds) for level in levels}
    rows = []
    for lead, _, row in _lines(table):
        failed = f" ({row['n_failed']} failed)" if row["n_failed"] else ""
        count = f"{row['n_seeds']}/{seeds[row['group'], row['level']]}{failed}"
        rows.append([*lead, count, *[formatting.interval(row, name, digits[name]) for name in HEADS]])
    return ["Group", "level", "seeds", *HEADS.values()], rows


def _differences(table: pd.DataFrame) -> Table:
    names = ("overall_delta", "to_first", "gold_overall_delta", "to_first_gold")
    digits = {name: formatting.decimals(table, name) for name in names}
    rows = []
    for lead, is_first, row in _lines(table):
        line = []
        for base, first in (names[:2], names[2:]):
            line += [formatting.interval(row, base, digits[base])]
            tested = [formatting.p_value(row[f"{first}_p_holm"]), formatting.number(row[f"{first}_mde"])]
            line += [ITSELF] * 3 if is_first else [formatting.difference_cell(row, first, digits[first]), *tested]
        rows.append([*lead, *line])
    heads = [
        head
        for name in ("Overall", "gold Overall")
        for head in (f"{name} - base", f"{name} - baseline", "p (Holm)", "MDE")
    ]
    return ["Group", "level", *heads], rows


def _single_scores(table: pd.DataFrame) -> Table:
    """Differences of VQ, MQ and TA to the baseline."""
    heads = {"to_first_vq": "VQ - baseline", "to_first_mq": "MQ - baseline", "to_first_ta": "TA - baseline"}
    digits = {name: formatting.decimals(table, name) for name in heads}
    rows = []
    for lead, is_first, row in _lines(table):
        line = [ITSELF if is_first else formatting.interval(row, name, digits[name]) for name in heads]
        rows.append([*lead, *line])
    return ["Group", "level", *heads.values()], rows


def _training(table: pd.DataFrame) -> Table:
    """Training dynamics: gradient spread over steps, setbacks, share of the KL term."""
    names = ("grad_spread", "setback", "to_first_setback")
    digits = {name: formatting.decimals(table, name) for name in names[1:]}
    rows = []
    for lead, is_first, row in _lines(table):
        fall = formatting.interval(row, "setback", digits["setback"])
        change = ITSELF if is_first else formatting.interval(row, "to_first_setback", digits["to_first_setback"])
        rows.append([*lead, formatting.interval(row, "grad_spread", 1), fall, change, _share(row["kl_share"])])
    return ["Group", "level", "gradient spread", "setback", "setback - baseline", "KL share"], rows


def _share(value: Any) -> str:
    """Two significant digits, because KL shares span orders of magnitude."""
    return formatting.MISSING if pd.isna(value) else f"{value:.2g}"


def ablation_notes(levels: Sequence[AblationLevel], table: pd.DataFrame) -> list[str]:
    tests = {name: int(table[f"{name}_p"].notna().sum()) for name in ("to_first", "to_first_gold")}
    notes = [
        _counts(levels),
        "Overall = VQ + MQ + TA per video; gold Overall = gold_VQ + gold_MQ + gold_TA. The training reward is left "
        "out, because its weights may differ between levels.",
        "`x [lo, hi]` is a mean and its 95 % interval over seeds x prompts, both random. [n/a]: fewer than two seeds.",
        "The baseline is the first level of its group; differences to it are paired by seed and prompt, over the "
        "seeds that both levels finished. Differences to the base, the untrained model, are paired by prompt.",
        f"p is adjusted after Holm over all comparisons with a baseline: {tests['to_first']} of Overall and, apart "
        f"from these, {tests['to_first_gold']} of gold Overall. Bold only where the interval excludes 0 and the "
        "adjusted p is below 0.05. Differences to the base and those of single scores are not tested.",
        *effect_notes(table["to_first_mde"], "difference of Overall to the baseline"),
        "Gradient spread: largest over smallest gradient norm of the trained steps, geometric means over updates and "
        "seeds; 1 is balanced. Setback: the largest fall of the training reward (running mean of 5 updates) below its "
        "earlier maximum, in standard deviations of the reward within a group at the start; mean over seeds. Their "
        "intervals are Student's t over seeds.",
        "KL share: norm of the KL term's gradient over the norm of the rest of the gradient, mean over the updates "
        "that record both (a rest of 0 has no ratio), then over seeds. n/a: not recorded.",
    ]
    return [*notes, *_settings(levels), *_runs(levels)]


def _counts(levels: Sequence[AblationLevel]) -> str:
    """Number of seeds and prompts of a level."""
    seeds = {tuple(level.seeds) for level in levels}
    named = ", ".join(map(str, next(iter(seeds)))) if len(seeds) == 1 else "not the same in all levels"
    counts = sorted(map(len, seeds))
    n = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    prompts = next((len(run.cells) for level in levels for run in level.runs.finished), 0)
    return f"n = {n} seeds ({named}) of each level, independent training runs, on {prompts} held-out prompts."


def _settings(levels: Sequence[AblationLevel]) -> list[str]:
    """Settings that differ within a group; groups with the same differences share a note."""
    groups: dict[str, list[str]] = {}
    for name, group in grouped(levels).items():
        keys = []
        for key, values in settings_that_differ(group).items():
            texts = [f"{value} ({', '.join(names)})" for value, names in values.items()]
            keys.append(f"`{key}` {', '.join(texts)}")
        if sum(bool(level.runs.finished) for level in group) > 1:
            groups.setdefault("; ".join(keys) or "none", []).append(name)
    return [
        f"Settings that differ between the levels of {', '.join(names)}: {text}." for text, names in groups.items()
    ]


def _runs(levels: Sequence[AblationLevel]) -> list[str]:
    """Runs that failed, fail a gate or have not run yet; levels with the same runs; bases without a record."""
    notes = []
    for level in levels:
        notes += run_notes(f"{level.group}, {level.name}", level.runs, len(level.seeds))
    for group in grouped(levels).values():
        for level in group[1:]:
            if same_runs(level, group[0]):
                notes.append(f"{level.group}, {level.name}: the same runs as {group[0].name}, nothing to compare.")
    missing = dict.fromkeys(level.suite for level in levels if level.base is None)
    if missing:
        notes.append(f"The base of {', '.join(missing)} has no record yet, so differences to it are not shown.")
    return notes


def _markdown(levels: Sequence[AblationLevel], table: pd.DataFrame, title: str, notes: Sequence[str]) -> str:
    nano = any(is_nano(level.suite, level.config) for level in levels)
    parts = [f"# {title}: ablation", *([nano_warning(title)] if nano else [])]
    for name, section in _sections(levels, table).items():
        parts += [f"## {name}", formatting.markdown(*section)]
    parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _tex(levels: Sequence[AblationLevel], table: pd.DataFrame, title: str, notes: Sequence[str]) -> str:
    head = "% Written by `bench table` from the run records; needs the package booktabs.\n"
    scores = formatting.tex_table(
        *_scores(levels, table), f"{title}: ablation, scores", f"tab:{title}-ablation-scores", notes
    )
    differences = formatting.tex_table(
        *_differences(table), f"{title}: ablation, differences", f"tab:{title}-ablation-differences", []
    )
    return head + scores + "\n" + differences
