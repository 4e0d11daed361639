"""The table of an ablation, from the records only: `<folder>/tables/ablation.{md,csv,tex}`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bench.core.errors import BenchError
from bench.report import formatting
from bench.report.data.ablation import (
    AblationLevel,
    by_group,
    compare_levels,
    level_metrics,
    level_scores,
    settings_that_differ,
    shows_same_runs,
    to_first_columns,
)
from bench.report.data.ablation_verdict import ablation_verdict
from bench.report.data.attempts import seed_kind
from bench.report.data.records import is_nano
from bench.report.data.selection import scored_prompts
from bench.report.legend import legend
from bench.report.tables.latex import latex_ablation
from bench.report.tables.main import FOLDER, LEGEND, NOTES, VERDICT, bullets
from bench.report.tables.notes import (
    INTERVAL_NOTE,
    MARGIN_NOTE,
    TESTED_LEAD,
    effect_note,
    family_note,
    nano_note,
    nano_warning,
    run_notes,
)
from bench.report.tables.sections import Table, digits_of, seed_means
from bench.store.files import write_files

NAME = "ablation"
#: Cell for the difference of the baseline to itself.
ITSELF = "-"


class AblationTable:
    """The numbers of an ablation, and its texts."""

    def __init__(self, levels: Sequence[AblationLevel], title: str) -> None:
        if not levels:
            raise BenchError(f"{title} has no ablation: give one method several rows, or the study several variants.")
        self.levels = levels
        self.title = title
        """Name of the suite or the study."""
        self.metrics = level_metrics(levels)
        self.table = compare_levels(levels)
        """The columns of ablation.csv."""
        self.nano = any(is_nano(level.config) for level in levels)
        self.config = levels[0].config
        """Settings of the first level; the levels have one backbone."""

    @property
    def sections(self) -> dict[str, Table]:
        """Title to heads and lines of each section."""
        content = {
            "Scores": _scores(self),
            "Differences": _differences(self),
            "Each seed": _each_seed(self),
            "Single scores": _single_scores(self),
            "Training": _training(self.table),
        }
        return {title: section for title, section in content.items() if len(section[0]) > 2}

    @property
    def verdict(self) -> list[str]:
        """What the levels show, in sentences that follow from the tested differences only."""
        return [
            *([nano_warning(self.title, self.config)] if self.nano else []),
            *ablation_verdict(self.table, self.metrics),
        ]

    @property
    def notes(self) -> list[str]:
        """The notes under the table."""
        return ablation_notes(self)

    def legend(self, text: str) -> list[str]:
        """One line per word of the table that occurs in `text`."""
        return legend(text, (level.runs.row.kl for level in self.levels), self.metrics.values())


def build_ablation(folder: Path | str, levels: Sequence[AblationLevel], title: str) -> dict[str, Path]:
    """Write ablation.md, ablation.csv and ablation.tex atomically: {file name: path}; see `render_ablation`."""
    return write_ablation_files(folder, AblationTable(levels, title))


def write_ablation_files(folder: Path | str, ablation: AblationTable) -> dict[str, Path]:
    """Write ablation.md, ablation.csv and ablation.tex of a loaded table atomically: {file name: path}."""
    return write_files(Path(folder) / FOLDER, _render(ablation))


def render_ablation(levels: Sequence[AblationLevel], title: str) -> dict[str, str]:
    """The text of each file; `title` is the name of the suite or the study.

    Levels that do not compare are a `BenchError`.
    """
    return _render(AblationTable(levels, title))


def _render(ablation: AblationTable) -> dict[str, str]:
    return {
        f"{NAME}.md": _markdown(ablation),
        f"{NAME}.csv": formatting.csv(ablation.table),
        f"{NAME}.tex": _tex(ablation),
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


def _scores(ablation: AblationTable) -> Table:
    table, metrics = ablation.table, ablation.metrics
    digits = digits_of(table, list(metrics))
    seeds = {(level.group, level.name): len(level.seeds) for level in ablation.levels}
    rows = []
    for lead, _, row in _lines(table):
        failed = f" ({row['n_failed']} failed)" if row["n_failed"] else ""
        count = f"{row['n_seeds']}/{seeds[row['group'], row['level']]}{failed}"
        rows.append([*lead, count, *[formatting.interval(row, name, digits[name]) for name in metrics]])
    return ["Group", "level", "seeds", *(metric.label for metric in metrics.values())], rows


def _differences(ablation: AblationTable) -> Table:
    """Differences of the tested scores to the base and to the baseline."""
    table, columns = ablation.table, to_first_columns(ablation.metrics)
    names = {f"{score}_delta": columns[score] for score in level_scores(ablation.metrics)}
    digits = {name: formatting.decimals(table, name) for pair in names.items() for name in pair}
    rows = []
    for lead, is_first, row in _lines(table):
        line = []
        for base, first in names.items():
            line += [formatting.interval(row, base, digits[base])]
            text, star = formatting.interval(row, first, digits[first]), formatting.is_significant(row, first)
            tested = [formatting.p_value(row[f"{first}_p_holm"]), formatting.effect(row[f"{first}_mde"])]
            line += [ITSELF] * 3 if is_first else [formatting.marked(text, is_starred=star), *tested]
        rows.append([*lead, *line])
    heads = [
        head
        for score in level_scores(ablation.metrics)
        for head in (
            *(ablation.metrics[score].difference_label(other) for other in ("base", "baseline")),
            *("p (Holm)", "MDE"),
        )
    ]
    return ["Group", "level", *heads], rows


def _each_seed(ablation: AblationTable) -> Table:
    """The mean of the primary score of each seed of each level."""
    score, metric = next(iter(ablation.metrics.items()))
    seeds = sorted(set().union(*(level.seeds for level in ablation.levels)))
    runs = {(level.group, level.name): level.runs for level in ablation.levels}
    rows = [
        [*lead, seed_means(runs[row["group"], row["level"]], score, seeds)] for lead, _, row in _lines(ablation.table)
    ]
    return ["Group", "level", f"{metric.title} of seed {', '.join(map(str, seeds))}"], rows


def _single_scores(ablation: AblationTable) -> Table:
    """Differences to the baseline of the scores that are not tested."""
    table, tested = ablation.table, level_scores(ablation.metrics)
    columns = {name: column for name, column in to_first_columns(ablation.metrics).items() if name not in tested}
    digits = {column: formatting.decimals(table, column) for column in columns.values()}
    rows = []
    for lead, is_first, row in _lines(table):
        line = [ITSELF if is_first else formatting.interval(row, name, digits[name]) for name in columns.values()]
        rows.append([*lead, *line])
    return ["Group", "level", *(ablation.metrics[name].difference_label("baseline") for name in columns)], rows


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


def ablation_notes(ablation: AblationTable) -> list[str]:
    """The notes under an ablation: what the reader must know about these runs first, definitions last."""
    levels, table, metrics = ablation.levels, ablation.table, ablation.metrics
    columns = to_first_columns(metrics)
    tested = level_scores(metrics)
    primary, *checks = [metrics[name].title for name in tested]
    tests = sum(int(table[f"{columns[name]}_p"].notna().sum()) for name in tested)
    sizes = pd.concat([table[f"{columns[name]}_mde"] for name in tested])
    sums = {
        "overall": "Overall = VQ + MQ + TA per video",
        "gold_overall": "gold Overall = gold VQ + gold MQ + gold TA",
    }
    known = "; ".join(text for name, text in sums.items() if name in metrics)
    reward = "The training reward is left out, because its weights may differ between levels."
    return [
        *_runs(levels),
        *_settings(levels),
        f"{_counts(levels)} Runs started / shown: in the notes of the main table of each suite.",
        *([f"{known}. {reward}"] if known else []),
        f"`x [lo, hi]` is a mean and its 95 % interval over seeds x prompts, both random. {INTERVAL_NOTE}",
        "The baseline is the first level of its group; differences to it are paired by seed and prompt, over the "
        "seeds that both levels finished. Differences to the base, the untrained model, are paired by prompt.",
        *family_note(primary, checks, tests, "to the baseline, in all groups,"),
        "Ablation results are exploratory at best unless p after Holm over the whole table is below 0.05. Studies may "
        "share the runs of a baseline, so their results are not independent.",
        *effect_note(sizes, "difference to the baseline", tests),
        MARGIN_NOTE,
        "Gradient spread: largest over smallest gradient norm of the trained steps, geometric means over updates and "
        "seeds; 1 is balanced. Setback: the largest fall of the training reward (running mean of 5 updates) below its "
        "earlier maximum, in standard deviations of the reward within a group at the start; mean over seeds. Their "
        "intervals are Student's t over seeds.",
        "KL share: norm of the KL term's gradient over the norm of the rest of the gradient, mean over the updates "
        "that record both (a rest of 0 has no ratio), then over seeds. n/a: not recorded.",
    ]


def _counts(levels: Sequence[AblationLevel]) -> str:
    """Number of seeds and prompts of a level."""
    seeds = {tuple(level.seeds) for level in levels}
    named = ", ".join(map(str, next(iter(seeds)))) if len(seeds) == 1 else "not the same in all levels"
    counts = sorted(map(len, seeds))
    n = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    prompts = next((len(run.cells) for level in levels for run in level.runs.finished), 0)
    kind = seed_kind(set().union(*seeds))
    scored = scored_prompts(levels[0].config)
    return f"n = {n} {kind}seeds ({named}) of each level, independent training runs, on {prompts} {scored} prompts."


def _settings(levels: Sequence[AblationLevel]) -> list[str]:
    """Settings that differ within a group; groups with the same differences share a note."""
    groups: dict[str, list[str]] = {}
    for name, group in by_group(levels).items():
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
    for group in by_group(levels).values():
        for level in group[1:]:
            if shows_same_runs(level, group[0]):
                notes.append(f"{level.group}, {level.name}: the same runs as {group[0].name}, nothing to compare.")
    missing = dict.fromkeys(level.suite for level in levels if level.base is None)
    if missing:
        notes.append(f"The base of {', '.join(missing)} has no record yet, so differences to it are not shown.")
    return notes


def _markdown(ablation: AblationTable) -> str:
    parts = [f"# {ablation.title}: ablation", f"## {VERDICT}", bullets(ablation.verdict)]
    for name, section in ablation.sections.items():
        parts += [f"## {name}", formatting.markdown(*section)]
    parts += [f"## {NOTES}", bullets(ablation.notes)]
    parts += [f"## {LEGEND}", bullets(ablation.legend("\n".join(parts)))]
    return "\n\n".join(parts) + "\n"


def _tex(ablation: AblationTable) -> str:
    nano = nano_note(ablation.config) if ablation.nano else ""
    note = f"{nano}{_counts(ablation.levels)} {TESTED_LEAD}"
    parts: dict[str, Table] = {
        name: ablation.sections[name] for name in ("Scores", "Differences") if name in ablation.sections
    }
    return latex_ablation(parts, ablation.levels, ablation.title, note)
