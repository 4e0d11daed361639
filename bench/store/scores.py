"""The table of scores: one row per video and metric, in a fixed order and with fixed types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.errors import BenchError
from bench.core.hashing import digest
from bench.store.files import write_table

if TYPE_CHECKING:
    import pandas as pd

SCORE_KEY = ["prompt_index", "video", "evaluator", "metric"]
"""Columns that identify a score."""
SCORE_COLUMNS = ["prompt_index", "prompt", "video", "evaluator", "metric", "value"]
"""All columns; `value` is the score."""


def sorted_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores in their fixed order and types. Wrong columns, duplicates, gaps and NaN are a `BenchError`."""
    import numpy as np

    if sorted(scores.columns) != sorted(SCORE_COLUMNS):
        raise BenchError(f"scores need the columns {SCORE_COLUMNS}, got {list(scores.columns)}: fix what made them.")
    frame = scores[SCORE_COLUMNS].astype({"prompt_index": "int64", "video": "int64", "value": "float64"})
    frame = frame.sort_values(SCORE_KEY, kind="stable", ignore_index=True)
    not_finite = frame[~np.isfinite(frame["value"])]
    if len(not_finite):
        raise BenchError(f"score is not finite: {not_finite.iloc[0].to_dict()}; check the evaluator and this video.")
    duplicates = frame[frame.duplicated(SCORE_KEY)][SCORE_KEY]
    if len(duplicates):
        raise BenchError(f"score is given twice: {duplicates.iloc[0].to_dict()}; score each video once per metric.")
    videos = len(frame[["prompt_index", "video"]].drop_duplicates())
    counts = frame.groupby(["evaluator", "metric"]).size()
    incomplete = counts[counts != videos]
    if len(incomplete):
        raise BenchError(
            f"metric {incomplete.index[0]} scores {incomplete.iloc[0]} of {videos} videos: every video needs every "
            "metric."
        )
    if (frame.groupby("prompt_index")["prompt"].nunique() > 1).any():
        raise BenchError("scores have one prompt_index for two prompts: the index must follow the prompt list.")
    return frame


def scores_digest(scores: pd.DataFrame) -> str:
    """Digest of the scores: it does not depend on the order of rows or on the version of parquet."""
    return content_digest(sorted_scores(scores))


def content_digest(frame: pd.DataFrame) -> str:
    """The same for scores that are sorted already."""
    return digest({name: frame[name].tolist() for name in SCORE_COLUMNS})


def write_parquet(scores: pd.DataFrame, path: Path) -> None:
    """Write sorted scores, or a curve of them; equal scores give equal bytes."""
    import pyarrow as pa

    numbers = {"update": pa.int64(), "prompt_index": pa.int64(), "video": pa.int64(), "value": pa.float64()}
    columns = {name: pa.array(scores[name].tolist(), numbers.get(name, pa.string())) for name in scores.columns}
    table = pa.table(columns)  # not from pandas, whose metadata would change with its version
    write_table(table, path)
