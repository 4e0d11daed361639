"""The table of scores: one row per video and metric, in one order and one set of types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.errors import BenchError
from bench.core.hashing import digest

if TYPE_CHECKING:
    import pandas as pd
from bench.store.files import write_table

#: Columns that name one score; `value` is the score itself.
SCORE_KEY = ["prompt_index", "video", "evaluator", "metric"]
SCORE_COLUMNS = ["prompt_index", "prompt", "video", "evaluator", "metric", "value"]


# scores -------------------------------------------------------------------------------------------------------
def sorted_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores in their one order and their one set of types; wrong columns, doubles, gaps and NaN are refused."""
    import numpy as np

    if sorted(scores.columns) != sorted(SCORE_COLUMNS):
        raise BenchError(f"scores need the columns {SCORE_COLUMNS}, got {list(scores.columns)}: fix what made them.")
    frame = scores[SCORE_COLUMNS].astype({"prompt_index": "int64", "video": "int64", "value": "float64"})
    frame = frame.sort_values(SCORE_KEY, kind="stable", ignore_index=True)
    bad = frame[~np.isfinite(frame["value"])]
    if len(bad):
        raise BenchError(f"score is not finite: {bad.iloc[0].to_dict()}; look at the evaluator and at this video.")
    double = frame[frame.duplicated(SCORE_KEY)][SCORE_KEY]
    if len(double):
        raise BenchError(f"score is given twice: {double.iloc[0].to_dict()}; each video is scored once per metric.")
    videos = len(frame[["prompt_index", "video"]].drop_duplicates())
    counts = frame.groupby(["evaluator", "metric"]).size()
    short = counts[counts != videos]
    if len(short):
        raise BenchError(
            f"metric {short.index[0]} scores {short.iloc[0]} of {videos} videos: every video needs every metric."
        )
    if (frame.groupby("prompt_index")["prompt"].nunique() > 1).any():
        raise BenchError("scores give one prompt_index to two prompts: the index must follow the prompt list.")
    return frame


def scores_digest(scores: pd.DataFrame) -> str:
    """Digest of the content: equal for two clones that computed the same scores, whatever wrote the file."""
    return content_digest(sorted_scores(scores))


def content_digest(frame: pd.DataFrame) -> str:
    return digest({name: frame[name].tolist() for name in SCORE_COLUMNS})


def write_parquet(scores: pd.DataFrame, path: Path) -> None:
    import pyarrow as pa

    numbers = {"prompt_index": pa.int64(), "video": pa.int64(), "value": pa.float64()}
    columns = {name: pa.array(scores[name].tolist(), numbers.get(name, pa.string())) for name in SCORE_COLUMNS}
    table = pa.table(columns)  # not from pandas, whose metadata would change with its version
    write_table(table, path)
