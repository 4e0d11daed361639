"""The metrics of a table: column, label, direction and unit of each, from the scores and the records."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench.core.errors import BenchError
from bench.store.record import MetricEntry

#: Columns that add up metrics of one video, each with weight 1.
SUMS = {"overall": ("VQ", "MQ", "TA"), "gold_overall": ("gold_VQ", "gold_MQ", "gold_TA")}
#: Column of the training reward, measured on held-out videos.
REWARD = "trained"
#: Labels of columns, in the order of the tables. Other columns follow under the names of their metrics.
LABELS = {
    **{"overall": "Overall", REWARD: "Reward", "vq": "VQ", "mq": "MQ", "ta": "TA"},
    **{"clipscore": "CLIPScore", "pickscore": "PickScore", "hpsv2": "HPSv2", "gold_overall": "gold Overall"},
}
#: Pixel statistics whose drift is a sign of reward hacking.
DETECTORS = ("dark_fraction", "edge_density", "colour_entropy", "motion_energy")
#: Columns that repeat another one in other units, are a part of it, or are no quality, and their names: they are
#: shown as further metrics.
FURTHER = {
    **{"vq_raw": "VQ, raw", "mq_raw": "MQ, raw", "ta_raw": "TA, raw"},
    **{"gold_vq": "gold VQ", "gold_mq": "gold MQ", "gold_ta": "gold TA"},
    **{"clip_cosine": "CLIP cosine", "pickscore_cosine": "PickScore cosine", "pickscore_div26": "PickScore / 26"},
    **{"hpsv2_x100": "HPSv2 x 100", "dark_fraction": "dark pixels", "edge_density": "edge density"},
    **{"colour_entropy": "colour entropy", "motion_energy": "motion energy"},
}
TITLES = {**LABELS, **FURTHER}
#: Metrics of the packaged evaluators of which less is better, for older records that declare no direction.
LESS_IS_BETTER = frozenset({"dark_fraction"})
#: Names of columns that are no metric.
RESERVED = frozenset(
    {
        *(*SUMS, REWARD, "suite", "row", "method", "kl", "seed", "status", "error", "digest", "folder"),
        *(
            "seconds",
            "updates",
            "videos",
            "decodes",
            "reward_calls",
            "seeds",
            "improvement",
            "run_ids",
            "failed_gates",
        ),
    }
)


@dataclass(frozen=True)
class MetricColumn:
    """One column of scores."""

    name: str
    """Name of the column in main.csv."""
    title: str
    """Name in tables, without direction."""
    evaluator: str | None = None
    """Name of the evaluator; None for a sum of metrics."""
    higher_is_better: bool = True
    unit: str | None = None
    """As declared; None if the records do not have it, and for a sum."""
    declared: bool = True
    """Whether the records have the direction."""

    @property
    def arrow(self) -> str:
        """The direction in which the column is better, to stand after its name; "" for a pixel statistic."""
        if self.name in DETECTORS and self.higher_is_better:
            return ""
        return " ↑" if self.higher_is_better else " ↓"

    @property
    def label(self) -> str:
        """Head of the column, with the arrow of its direction."""
        return f"{self.title}{self.arrow}"

    def difference_label(self, other: str) -> str:
        """Head of the column of the differences to `other`, with the arrow of the direction."""
        return f"{self.title} - {other}{self.arrow}"

    @property
    def sign(self) -> int:
        """1 if more is better, -1 if less is better."""
        return 1 if self.higher_is_better else -1

    @property
    def is_own(self) -> bool:
        """Whether the metric is of none of the packaged evaluators."""
        return self.name not in LABELS and self.name not in FURTHER


def column_names(scores: pd.DataFrame) -> dict[str, str]:
    """Metric to its column: the name in lower case, or `<evaluator>_<metric>` where that name has another meaning."""
    evaluators = dict(zip(scores["metric"], scores["evaluator"], strict=True))
    lowered = Counter(str(metric).lower() for metric in evaluators)
    names = {}
    for metric, evaluator in evaluators.items():
        name = str(metric).lower()
        unique = lowered[name] == 1 and name not in RESERVED
        names[metric] = name if unique else f"{re.sub(r'[^0-9A-Za-z]+', '_', evaluator)}_{metric}"
    return names


def ordered(names: list[str]) -> list[str]:
    """Columns in the order of the tables."""
    first = [name for name in LABELS if name in names]
    return [*first, *sorted(set(names) - set(first))]


def metric_columns(
    columns: list[str], sources: Mapping[str, tuple[str, str]], declared: Mapping[str, MetricEntry]
) -> dict[str, MetricColumn]:
    """Column to what it shows; `sources` has evaluator and metric of each column that is no sum."""
    result = {}
    for name in columns:
        if name not in sources:
            result[name] = MetricColumn(name, TITLES.get(name, name))
            continue
        evaluator, metric = sources[name]
        title = TITLES.get(name, metric if name == metric.lower() else name)
        entry = declared.get(metric)
        result[name] = (
            MetricColumn(name, title, evaluator, name not in LESS_IS_BETTER, None, declared=False)
            if entry is None
            else MetricColumn(name, title, evaluator, entry.higher_is_better, entry.unit)
        )
    return result


def video_scores(scores: pd.DataFrame, weights: Mapping[str, float], folder: Path) -> pd.DataFrame:
    """`Run.clips` of the scores of one run; `weights` is the training reward, metric to weight."""
    if scores.groupby("metric")["evaluator"].nunique().max() > 1:
        raise BenchError(
            f"scores in {folder} have one metric from two evaluators: metric names must be unique in a suite."
        )
    videos = scores.pivot(index=["prompt_index", "prompt", "video"], columns="metric", values="value")
    missing = sorted(set(weights) - set(videos.columns))
    if missing:
        raise BenchError(
            f"scores in {folder} lack the trained metrics {missing}: add their evaluator to the suite's evaluation."
        )
    columns = {column: videos[metric] for metric, column in column_names(scores).items()}
    columns |= {name: videos[list(parts)].sum(axis=1) for name, parts in SUMS.items() if set(parts) <= set(videos)}
    if weights:
        columns[REWARD] = (videos[list(weights)] * pd.Series(weights)).sum(axis=1)
    return pd.DataFrame({name: columns[name] for name in ordered(list(columns))})


def mean_scores(clips: pd.DataFrame) -> pd.DataFrame:
    """Means of `video_scores` over the videos of a prompt. Index: prompt_index."""
    return clips.groupby(level="prompt_index").mean()


def reward_weights(config: Mapping[str, Any]) -> dict[str, float]:
    """The training reward of a recorded configuration: metric to weight."""
    reward = config.get("reward") or {}
    return {name: float(weight) for weights in reward.values() for name, weight in weights.items()}
