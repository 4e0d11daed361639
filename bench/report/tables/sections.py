"""The sections of the main table: heads and lines of text, from the numbers of `data.summary`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.report import formatting
from bench.report.data.differences import best_rows, between_rows, tested_scores
from bench.report.data.metrics import FURTHER, LABELS, REWARD, SUMS, MetricColumn
from bench.report.data.records import RowRuns, SuiteRecords
from bench.report.data.selection import BASE
from bench.report.data.summary import COUNTS

Table = tuple[list[str], list[list[str]]]
"""Column heads, and lines of cells."""

#: Column heads of the cost of one run: the totals of `summary.COUNTS`, then time and memory.
COST_HEADS = (
    *("rollout NFE", "train NFE", "anchor NFE", "reward calls", "videos", "decodes", "updates"),
    *("minutes", "peak MB"),
)
#: Titles of the sections that have a note of their own.
VIEWS, AGGREGATES = "Sensitivity of the pairs", "Aggregates"
RUNS = "Runs"
P_VALUE = "p (Holm)"
#: Heads of columns that stay beside the column before them.
JOINED = (P_VALUE, "MDE", "published", "KL share", "verdict")


def shown_metrics(suite: SuiteRecords) -> list[MetricColumn]:
    """The metrics of the section Scores, in order: all that were scored but further metrics and the reward."""
    return [metric for name, metric in suite.metrics.items() if name not in FURTHER and name != REWARD] or [
        suite.metrics[suite.primary] for _ in suite.columns[:1]
    ]


def without(section: Table, head: str) -> Table:
    """The section without the columns of this head."""
    heads, rows = section
    kept = [index for index, name in enumerate(heads) if name != head]
    return [heads[index] for index in kept], [[row[index] for index in kept] for row in rows]


def named(section: Table, titles: Sequence[str]) -> Table:
    """The section with other names of its lines."""
    heads, rows = section
    return heads, [[title, *row[1:]] for title, row in zip(titles, rows, strict=True)]


def label(row: pd.Series[Any]) -> str:
    """Name of a row, with a dagger if one of its runs fails a gate."""
    return f"{formatting.row_name(row)} †" if row["failed_gates"] else formatting.row_name(row)


def _seeds(row: pd.Series[Any], suite: SuiteRecords) -> str:
    if row["method"] == BASE:
        return "-"
    failed = f" ({row['n_failed']} failed)" if row["n_failed"] else ""
    return f"{row['n_seeds']}/{len(suite.seeds)}{failed}"


def scores(suite: SuiteRecords, table: pd.DataFrame, tests: pd.DataFrame) -> Table:
    """Means with their intervals of the base and of every row; the best of a column is bold."""
    metrics = shown_metrics(suite)
    names = [metric.name for metric in metrics]
    best = [best_rows(suite, table, tests, name) for name in names]
    rows = []
    for (_, row), cells in zip(table.iterrows(), _intervals(table, names), strict=True):
        bold = [row["row"] in labels for labels in best]
        rows.append([label(row), _seeds(row, suite), *map(formatting.marked, cells, bold)])
    return ["Row", "seeds", *(metric.label for metric in metrics)], rows


def run_ids(table: pd.DataFrame) -> Table:
    """The first 8 digits of the digest of each run of a row."""
    return ["Row", "run ids"], [[label(row), row["run_ids"] or formatting.MISSING] for _, row in table.iterrows()]


def digits_of(table: pd.DataFrame, names: Sequence[str], ending: str = "") -> dict[str, int]:
    """Decimals of the columns `<name><ending>`: one number for all scores in the same units.

    Overall, the reward, the gold scores and the scores that they add up have those of the first of them.
    """
    same = [*SUMS, REWARD, *(part.lower() for parts in SUMS.values() for part in parts)]
    first = next((name for name in names if name in same), "")
    return {name: formatting.decimals(table, f"{first if name in same else name}{ending}") for name in names}


def _intervals(table: pd.DataFrame, names: Sequence[str], ending: str = "") -> list[list[str]]:
    """`mean [lo, hi]` of the columns `<name><ending>`, for each line of the table."""
    digits = digits_of(table, names, ending)
    return [
        [formatting.interval(row, f"{name}{ending}", digits[name]) for name in names] for _, row in table.iterrows()
    ]


def by_seed(suite: SuiteRecords, table: pd.DataFrame) -> Table:
    """The mean of the primary score of each seed of each row, in the order of the suite's seeds."""
    title = suite.metrics[suite.primary].title if suite.columns else LABELS[suite.primary]
    lines = []
    for (_, row), runs in zip(table.iloc[1:].iterrows(), suite.rows, strict=True):
        lines.append([label(row), seed_means(runs, suite.primary, suite.seeds)])
    return ["Row", f"{title} of seed {', '.join(map(str, suite.seeds))}"], lines


def seed_means(runs: RowRuns, score: str, seeds: Sequence[int]) -> str:
    """The mean of a score over the prompts for each of the seeds, n/a for a run that has not finished."""
    x = runs.matrix(score)
    means = {} if x is None else dict(zip(runs.seeds, x.mean(1), strict=True))
    return ", ".join(formatting.number(means.get(seed)) for seed in seeds)


def differences(suite: SuiteRecords, table: pd.DataFrame, tests: pd.DataFrame) -> Table:
    """Differences to the base of the main scores and of metrics of the user's own, those of tested scores with p.

    Bold as in `scores`, unless the difference is a loss; with a star if it is significant.
    """
    own = [name for name, one in suite.metrics.items() if name in (REWARD, "gold_overall") or one.is_own]
    names = list(dict.fromkeys([suite.primary, *own] if suite.columns else []))
    trained, tested = table.iloc[1:], tested_scores(suite)
    heads, columns = ["Row"], [[[label(row)] for _, row in trained.iterrows()]]
    intervals = _intervals(trained, names, "_delta")
    for index, name in enumerate(names):
        metric, best = suite.metrics[name], best_rows(suite, table, tests, name)
        cells = []
        for line, (_, row) in zip(intervals, trained.iterrows(), strict=True):
            bold = row["row"] in best and metric.sign * row[f"{name}_delta"] > 0
            star = name in tested and formatting.is_significant(row, f"{name}_delta")
            p = [formatting.p_value(row[f"{name}_delta_p_holm"])] if name in tested else []
            cells.append([formatting.marked(line[index], bold, star), *p])
        heads += [metric.difference_label(BASE), *([P_VALUE] if name in tested else [])]
        columns.append(cells)
    return heads, _side_by_side(columns) if names else []


def single_differences(suite: SuiteRecords, table: pd.DataFrame) -> Table:
    """Differences to the base of the single scores of the packaged evaluators."""
    metrics = [
        metric
        for metric in shown_metrics(suite)
        if not metric.is_own and metric.name not in (suite.primary, "gold_overall")
    ]
    trained = table.iloc[1:]
    lines = zip(trained.iterrows(), _intervals(trained, [one.name for one in metrics], "_delta"), strict=True)
    rows = [[label(row), *cells] for (_, row), cells in lines]
    return ["Row", *(metric.difference_label(BASE) for metric in metrics)], rows if metrics else []


def _side_by_side(columns: Sequence[Sequence[Sequence[str]]]) -> list[list[str]]:
    """Lines of the cells of several groups of columns."""
    return [[cell for cells in line for cell in cells] for line in zip(*columns, strict=True)]


def pairs(suite: SuiteRecords, tests: pd.DataFrame) -> Table:
    """Every pair of trained rows, of the table of `tested_differences`; no lines without pairs."""
    names = tested_scores(suite)
    found = {name: between_rows(tests, name) for name in names}
    if not suite.columns or found[suite.primary].empty:
        return [], []
    columns = [[[_pair(row)] for _, row in found[suite.primary].iterrows()]]
    heads = ["Pair"]
    for name in names:
        digits = formatting.decimals(found[name], "diff")
        columns.append([_pair_cells(row, digits) for _, row in found[name].iterrows()])
        heads += [suite.metrics[name].label, P_VALUE, "MDE"]
    return heads, _side_by_side(columns)


def _pair(row: pd.Series[Any]) -> str:
    return f"{row['row']} - {row['other']}"


def _pair_cells(row: pd.Series[Any], digits: int) -> list[str]:
    if row["same_runs"]:
        return ["the same runs", "-", "-"]
    star = formatting.is_significant(row, "diff")
    cell = formatting.marked(formatting.interval(row, "diff", digits), is_starred=star)
    return [cell, formatting.p_value(row["diff_p_holm"]), formatting.effect(row["diff_mde"])]


def pair_views(suite: SuiteRecords, table: pd.DataFrame) -> Table:
    """The difference of each pair by the primary score, one interval per view of the prompts, from `sensitivity`."""
    views = {"random": "prompts random", "fixed": "prompts fixed", "colour": "colours random"}
    names = [name for name in views if name in table]
    digits = {name: formatting.decimals(table, name) for name in names}
    title = suite.metrics[suite.primary].title if suite.columns else LABELS[suite.primary]
    lines = [
        [_pair(row), *(formatting.interval(row, name, digits[name]) for name in names)] for _, row in table.iterrows()
    ]
    return ["Pair", *(f"{title}, {views[name]}" for name in names)], lines


def aggregates(suite: SuiteRecords, table: pd.DataFrame) -> Table:
    """The reward, the interquartile mean and the probability of improvement."""
    primary = suite.primary
    title = suite.metrics[primary].title if suite.columns else LABELS[primary]
    names = {f"{primary}_iqm": f"IQM of {title}", "improvement": f"P({title} better than base)"}
    names = {REWARD: LABELS[REWARD], **names} if REWARD in suite.columns else names
    lines = zip(table.iterrows(), _intervals(table, list(names)), strict=True)
    return ["Row", *names.values()], [[label(row), *cells] for (_, row), cells in lines]


def further(suite: SuiteRecords, table: pd.DataFrame) -> Table:
    """All further metrics that were scored: other units, single gold scores, detectors of reward hacking."""
    metrics = [metric for name, metric in suite.metrics.items() if name in FURTHER]
    lines = zip(table.iterrows(), _intervals(table, [metric.name for metric in metrics]), strict=True)
    rows = [[label(row), *cells] for (_, row), cells in lines]
    return ["Row", *(metric.label for metric in metrics)], rows if metrics else []


def cost(suite: SuiteRecords, table: pd.DataFrame) -> Table:
    """What one run of each row spent."""
    rows = []
    for (_, row), runs in zip(table.iloc[1:].iterrows(), suite.rows, strict=True):
        counts = [formatting.count(row[name]) for name in COUNTS]
        rows.append([label(row), *counts, *minutes_and_memory(runs)])
    return ["Row", *COST_HEADS], rows


def minutes_and_memory(runs: RowRuns) -> list[str]:
    """Mean minutes per run and largest peak memory in MB of the finished runs, as text."""
    seconds = [sum(run.record.seconds.values()) for run in runs.finished if run.record.seconds]
    memory = [run.record.peak_memory_mb for run in runs.finished if run.record.peak_memory_mb is not None]
    minutes = formatting.number(sum(seconds) / len(seconds) / 60, 1) if seconds else formatting.MISSING
    return [minutes, formatting.count(max(memory)) if memory else formatting.MISSING]


def published(suite: SuiteRecords, table: pd.DataFrame) -> Table:
    """Our means beside the published ones, if they belong to the suite."""
    names = [name for name in suite.columns if f"published_{name}" in table]
    heads = [head for name in names for head in (f"{suite.metrics[name].label} here", "published")]
    rows = []
    for _, row in table.iterrows():
        cells = [(formatting.number(row[name], 4), formatting.number(row[f"published_{name}"], 4)) for name in names]
        rows.append([label(row), *[text for pair in cells for text in pair]])
    return ["Row", *heads], rows if names else []
