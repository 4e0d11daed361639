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
from bench.report.data.records import failed_gates, is_nano
from bench.report.tables.main import HEADS as NAMES
from bench.report.tables.main import Table
from bench.report.tables.notes import nano_warning
from bench.store.files import write_text

FOLDER, NAME = "tables", "ablation"
#: Scores and their heads, those that decide first.
HEADS = {name: NAMES[name] for name in SCORES}
#: In place of a difference of the baseline to itself.
ITSELF = "-"


def build_ablation(folder: Path | str, levels: Sequence[AblationLevel], title: str) -> dict[str, Path]:
    """Write ablation.md, ablation.csv and ablation.tex atomically, as {file name: path}.

    Levels that do not compare are a `BenchError`, and nothing is written; see `render_ablation`.
    """
    texts = render_ablation(levels, title)
    paths = {name: Path(folder) / FOLDER / name for name in texts}
    for name, path in paths.items():
        write_text(path, texts[name])
    return paths


def render_ablation(levels: Sequence[AblationLevel], title: str) -> dict[str, str]:
    """The text of each file, nothing written; `title` is the name of the suite or the study."""
    if not levels:
        raise BenchError(f"{title} has no ablation: give one method several rows, or the study several variants.")
    table = compare_levels(levels)
    notes = _notes(levels, table)
    return {
        f"{NAME}.md": _markdown(levels, table, title, notes),
        f"{NAME}.csv": table.to_csv(index=False, float_format="%.8g", lineterminator="\n"),
        f"{NAME}.tex": _tex(levels, table, title, notes),
    }


def ablation_sections(levels: Sequence[AblationLevel]) -> tuple[dict[str, Table], list[str]]:
    """Title to head and lines of each part, and the notes."""
    table = compare_levels(levels)
    return _sections(levels, table), _notes(levels, table)


# the parts ----------------------------------------------------------------------------------------------------
def _sections(levels: Sequence[AblationLevel], table: pd.DataFrame) -> dict[str, Table]:
    return {
        "Scores": _scores(levels, table),
        "Differences": _differences(table),
        "Single scores": _parts(table),
        "Training": _course(table),
    }


def _lead(table: pd.DataFrame) -> list[list[str]]:
    """Group and level of each line; the baseline is named, and a run that fails a gate is marked."""
    lead = []
    for is_first, (_, row) in zip(_firsts(table), table.iterrows(), strict=True):
        marks = [" (baseline)"] if is_first else []
        marks += [" †"] if row["failed_gates"] else []
        lead.append([row["group"], row["level"] + "".join(marks)])
    return lead


def _firsts(table: pd.DataFrame) -> list[bool]:
    """Whether each line is the baseline of its group."""
    return [not repeated for repeated in table["group"].duplicated()]


def _scores(levels: Sequence[AblationLevel], table: pd.DataFrame) -> Table:
    digits = {name: formatting.decimals(table, name) for name in HEADS}
    seeds = {(level.group, level.name): len(level.seeds) for level in levels}
    rows = []
    for lead, (_, row) in zip(_lead(table), table.iterrows(), strict=True):
        failed = f" ({row['n_failed']} failed)" if row["n_failed"] else ""
        count = f"{row['n_seeds']}/{seeds[row['group'], row['level']]}{failed}"
        rows.append([*lead, count, *[formatting.interval(row, name, digits[name]) for name in HEADS]])
    return ["Group", "level", "seeds", *HEADS.values()], rows


def _differences(table: pd.DataFrame) -> Table:
    names = ("overall_delta", "to_first", "gold_overall_delta", "to_first_gold")
    digits = {name: formatting.decimals(table, name) for name in names}
    rows = []
    for lead, is_first, (_, row) in zip(_lead(table), _firsts(table), table.iterrows(), strict=True):
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


def _parts(table: pd.DataFrame) -> Table:
    """The three scores of Overall against the baseline."""
    heads = {"to_first_vq": "VQ - baseline", "to_first_mq": "MQ - baseline", "to_first_ta": "TA - baseline"}
    digits = {name: formatting.decimals(table, name) for name in heads}
    rows = []
    for lead, is_first, (_, row) in zip(_lead(table), _firsts(table), table.iterrows(), strict=True):
        line = [ITSELF if is_first else formatting.interval(row, name, digits[name]) for name in heads]
        rows.append([*lead, *line])
    return ["Group", "level", *heads.values()], rows


def _course(table: pd.DataFrame) -> Table:
    """How training went: the spread of the steps' gradients, setbacks, how much of the gradient is the KL term's."""
    names = ("grad_spread", "setback", "to_first_setback")
    digits = {name: formatting.decimals(table, name) for name in names[1:]}
    rows = []
    for lead, is_first, (_, row) in zip(_lead(table), _firsts(table), table.iterrows(), strict=True):
        fall = formatting.interval(row, "setback", digits["setback"])
        beside = ITSELF if is_first else formatting.interval(row, "to_first_setback", digits["to_first_setback"])
        rows.append([*lead, formatting.interval(row, "grad_spread", 1), fall, beside, _share(row["kl_share"])])
    return ["Group", "level", "gradient spread", "setback", "setback - baseline", "KL share"], rows


def _share(value: Any) -> str:
    """Two significant digits: KL shares span orders of magnitude."""
    return formatting.MISSING if pd.isna(value) else f"{value:.2g}"


# the notes ----------------------------------------------------------------------------------------------------
def _notes(levels: Sequence[AblationLevel], table: pd.DataFrame) -> list[str]:
    tests = {name: int(table[f"{name}_p"].notna().sum()) for name in ("to_first", "to_first_gold")}
    notes = [
        _counts(levels),
        "Overall = VQ + MQ + TA per video; gold Overall = gold_VQ + gold_MQ + gold_TA. The training reward is left "
        "out, as its weights may differ between levels.",
        "`x [lo, hi]` is a mean and its 95 % interval over seeds x prompts, both random. [n/a]: fewer than two seeds.",
        "The baseline is the first level of its group; differences to it are paired by seed and prompt, over the "
        "seeds that both levels finished. Differences to the base, the untrained model, are paired by prompt.",
        f"p is adjusted after Holm over all comparisons with a baseline: {tests['to_first']} of Overall and, apart "
        f"from these, {tests['to_first_gold']} of gold Overall. Bold only where the interval excludes 0 and the "
        "adjusted p is below 0.05. Differences to the base and those of single scores are not tested.",
    ]
    effects = table["to_first_mde"].dropna()
    if len(effects):
        notes.append(
            "MDE: the smallest true difference to the baseline that a two-sided 5 % test, not adjusted, finds with a "
            f"power of 80 %; for Overall {formatting.number(effects.min())} to {formatting.number(effects.max())}. "
            "Smaller ones are not ruled out."
        )
    notes.append(
        "Gradient spread: largest over smallest gradient norm of the trained steps, geometric means over updates and "
        "seeds; 1 is balanced. Setback: the deepest fall of the training reward (running mean of 5 updates) below "
        "what it had reached, in standard deviations of the reward within a group at the start; mean over seeds. "
        "Their intervals are Student's t over seeds."
    )
    notes.append(
        "KL share: norm of the KL term's gradient over the norm of the rest of the gradient, mean over the updates "
        "that log both (a rest of 0 has no ratio), then over seeds. n/a: no update logged it."
    )
    return [*notes, *_settings(levels), *_runs(levels)]


def _counts(levels: Sequence[AblationLevel]) -> str:
    """How many seeds and prompts stand behind a level."""
    seeds = {tuple(level.seeds) for level in levels}
    named = ", ".join(map(str, next(iter(seeds)))) if len(seeds) == 1 else "not the same in all levels"
    counts = sorted(map(len, seeds))
    n = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    prompts = next((len(run.cells) for level in levels for run in level.runs.finished), 0)
    return f"n = {n} seeds ({named}) of each level, independent training runs, on {prompts} held-out prompts."


def _settings(levels: Sequence[AblationLevel]) -> list[str]:
    """Which keys of the configuration differ within a group; groups that differ alike share a note."""
    told: dict[str, list[str]] = {}
    for name, group in grouped(levels).items():
        keys = []
        for key, values in settings_that_differ(group).items():
            given = [f"{value} ({', '.join(names)})" for value, names in values.items()]
            keys.append(f"`{key}` {', '.join(given)}")
        if sum(bool(level.runs.finished) for level in group) > 1:
            told.setdefault("; ".join(keys) or "none", []).append(name)
    return [f"Settings that differ between the levels of {', '.join(names)}: {text}." for text, names in told.items()]


def _runs(levels: Sequence[AblationLevel]) -> list[str]:
    """Runs that failed, fail a gate or have not run yet, and bases without a record."""
    notes = []
    for level in levels:
        label = f"{level.group}, {level.name}"
        for record in level.runs.failed:
            notes.append(f"{label}, seed {record.seed} failed: {record.error or 'no reason recorded'}.")
        waiting = len(level.seeds) - len(level.runs.finished) - len(level.runs.failed)
        if waiting > 0:
            notes.append(f"{label}: {waiting} of {len(level.seeds)} seeds have not run yet.")
        for run in level.runs.finished:
            if failed := failed_gates(run.record):
                gates = ", ".join(failed)
                notes.append(f"† {label}, seed {run.record.seed} fails the validity gate {gates}: do not cite it.")
    for group in grouped(levels).values():
        for level in group[1:]:
            if same_runs(level, group[0]):
                notes.append(f"{level.group}, {level.name}: the same runs as {group[0].name}, nothing to compare.")
    bare = dict.fromkeys(level.suite for level in levels if level.base is None)
    if bare:
        notes.append(f"The base of {', '.join(bare)} has no record yet, so no difference to it is shown.")
    return notes


# the files ----------------------------------------------------------------------------------------------------
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
