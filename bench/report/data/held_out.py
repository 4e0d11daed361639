"""Held-out learning curves: gains over the base on the same prompts and noise, at updates of the training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from bench.report.data.metrics import mean_scores, video_scores
from bench.report.data.records import Run, SuiteRecords
from bench.report.data.statistics import over_seeds
from bench.report.data.summary import count
from bench.report.data.training import TrainModel, read_updates
from bench.store.curve import read_curve
from bench.store.record import TRAIN

COLUMNS = ["row", "seed", "update", "nfe_rollout", "reward_calls", "minutes", "score", "gain", "level"]
"""Columns of `held_out_curves`."""
MEANS = ["nfe_rollout", "reward_calls", "minutes", "gain", "level"]
"""Columns whose means over seeds `summarise_curves` gives."""


class SpentLine(TrainModel):
    """What a line of `train.jsonl` says of the spending."""

    ledger: dict[str, Any] = Field(default_factory=dict)
    """Totals since the start of the run."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall-clock seconds of this update by phase; {} in older logs."""


class Spent(NamedTuple):
    """What training has spent up to a point; the curve and the evaluation are no part of it."""

    nfe_rollout: int | None
    reward_calls: int | None
    minutes: float
    """NaN if the log has no seconds."""


def held_out_curves(suite: SuiteRecords) -> pd.DataFrame:
    """One line per row, seed, update and score; columns `COLUMNS`. Empty if no run of the suite has a curve.

    `update` is the number of finished updates, from 0 to the last. `gain`, in units of the score, is the mean over the
    videos of the curve of their score less the base's score of the same prompt and video: 0 at update 0. All points
    have the same videos, the last one too; where the evaluation has more (`curve_videos`), the table's difference to
    the base is another number. `level` is the base's mean over all its videos plus the gain. `nfe_rollout`,
    `reward_calls` and `minutes` are what training had spent.
    """
    base = suite.base
    runs = [(rows.row.label, run) for rows in suite.rows for run in rows.finished if run.record.curve_digest]
    lines = [] if base is None else [line for label, run in runs for line in _run_lines(suite, base, label, run)]
    frame = pd.DataFrame(lines, columns=COLUMNS)
    return frame.astype({"seed": "Int64", "update": "Int64", "nfe_rollout": "Int64", "reward_calls": "Int64"})


def videos_of_curve(config: Mapping[str, Any]) -> str:
    """Which videos a suite's curves are of, where the table has more: a space and a sentence, else ""."""
    evaluation = config.get("evaluation") or {}
    some, whole = (evaluation.get(name, 1) for name in ("curve_videos", "videos_per_prompt"))
    first = "video" if some == 1 else f"{some} videos"
    return f" All points are of the first {first} of each prompt; the table has all {whole}." if some < whole else ""


def _run_lines(suite: SuiteRecords, base: Run, label: str, run: Run) -> Iterator[dict[str, Any]]:
    """The lines of one run, by update and then by score."""
    spent, means = _spent(run), base.cells.mean()
    points, last = {0: means * 0.0}, run.clips
    for update, point in read_curve(run.folder, run.record).groupby("update"):
        scores = video_scores(point.drop(columns="update"), suite.weights, run.folder)
        points[int(str(update))] = _gain(scores, base)
        last = run.clips.loc[scores.index]
    points[run.record.updates_done] = _gain(last, base)
    for update, gains in points.items():
        for score in suite.columns:
            gain = float(gains[score])
            values = {"score": score, "gain": gain, "level": float(means[score]) + gain}
            yield {"row": label, "seed": run.record.seed, "update": update, **spent[update]._asdict(), **values}


def _gain(clips: pd.DataFrame, base: Run) -> pd.Series[Any]:
    """Score to its mean over these videos, less that of the base over the same ones."""
    return mean_scores(clips - base.clips.loc[clips.index]).mean()


def _spent(run: Run) -> list[Spent]:
    """Spending of the training after 0, 1, 2, ... updates."""
    lines = read_updates(SpentLine, run.folder / TRAIN)
    minutes = accumulate(sum(line.seconds.values()) / 60 if line.seconds else np.nan for line in lines)
    totals = [
        Spent(count(line.ledger.get("nfe_rollout")), count(line.ledger.get("reward_calls")), spent)
        for line, spent in zip(lines, minutes, strict=True)
    ]
    return [Spent(0, 0, 0.0), *totals]


def summarise_curves(curves: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of `held_out_curves`: one line per row, update and score that any seed has.

    Columns: row, update, score, n (seeds), the means of `MEANS`, and `gain_lo`, `gain_hi`, `level_lo`, `level_hi`:
    95 % intervals by Student's t over seeds, NaN with fewer than 3 seeds.
    """
    lines = []
    for (row, update, score), part in curves.groupby(["row", "update", "score"], sort=False):
        line: dict[str, Any] = {"row": row, "update": update, "score": score, "n": len(part)}
        line |= {name: float(part[name].astype(float).mean()) for name in MEANS}
        for name in ("gain", "level"):
            estimate = over_seeds(part[name].to_numpy(dtype=float))
            line |= {f"{name}_lo": estimate.lo, f"{name}_hi": estimate.hi}
        lines.append(line)
    limits = ["gain_lo", "gain_hi", "level_lo", "level_hi"]
    return pd.DataFrame(lines, columns=["row", "update", "score", "n", *MEANS, *limits])
