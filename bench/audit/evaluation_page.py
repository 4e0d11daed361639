"""The result of `bench evaluate` as a Markdown table: the base, and each policy with its difference to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.audit.evaluation import Scored
from bench.report import formatting
from bench.report.data.differences import interval_columns
from bench.report.data.metrics import column_names, mean_scores, metric_columns, reward_weights, video_scores
from bench.report.data.statistics import one_way


def evaluation_table(scored: Sequence[Scored]) -> pd.DataFrame:
    """One line per policy, the base first: `policy`, and for each score its mean and, but for the base, `NAME_diff`.

    `NAME_diff` is the mean difference to the base over prompts, with `_lo` and `_hi` of its 95 % interval, prompts
    random. Names of scores are those of `main.csv`.
    """
    weights = reward_weights(scored[0].evaluation.config)
    cells = [mean_scores(video_scores(each.scores, weights, each.folder)) for each in scored]
    lines: list[dict[str, Any]] = []
    for each, own in zip(scored, cells, strict=True):
        line: dict[str, Any] = {"policy": each.evaluation.name}
        for column in own.columns:
            line[str(column)] = float(own[column].mean())
            gain = None if each is scored[0] else one_way(own[column].to_numpy() - cells[0][column].to_numpy())
            line |= interval_columns(f"{column}_diff", gain)
        lines.append(line)
    return pd.DataFrame(lines)


def evaluation_page(scored: Sequence[Scored]) -> str:
    """The table, and what each line is."""
    table, first = evaluation_table(scored), scored[0]
    columns = column_names(first.scores)
    evaluators = dict(zip(first.scores["metric"], first.scores["evaluator"], strict=True))
    sources = {column: (str(evaluators[metric]), str(metric)) for metric, column in columns.items()}
    names = [name.removesuffix("_diff") for name in table.columns if name.endswith("_diff")]
    heads = metric_columns(names, sources, first.evaluation.metrics)
    rows = []
    for _, line in table.iterrows():
        rows.append([line["policy"], *(formatting.number(line[name]) for name in names)])
        if line["policy"] != first.evaluation.name:
            digits = {name: formatting.decimals(table, f"{name}_diff") for name in names}
            gains = [formatting.interval(line, f"{name}_diff", digits[name]) for name in names]
            rows.append([f"{line['policy']} - base", *gains])
    videos = first.scores[["prompt_index", "video"]].drop_duplicates()
    prompts = first.scores["prompt_index"].nunique()
    suite = first.evaluation
    notes = [
        f"suite {suite.suite}: {len(videos)} videos of {prompts} {suite.config['evaluation']['prompts']} prompts. "
        "Differences are means over prompts with their 95 % interval, of one policy each: no interval covers another "
        "training of the same kind, and nothing is tested.",
        "These lines stand in no table of the suite: its rows share a budget, prompts and seeds, a policy from "
        "elsewhere does not.",
        *(f"{each.evaluation.name}: {each.evaluation.what}; {each.folder}" for each in scored),
    ]
    return "\n\n".join([formatting.markdown(["policy", *(heads[name].label for name in names)], rows), *notes])
