"""Numbers of a paper, shown only beside the model, the reward and the evaluators that they belong to."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.core.errors import BenchError
from bench.report.data.records import SuiteRecords

FOLDER = Path(__file__).parents[1] / "published"
FILE = "bench/report/published/sage_grpo_setting_b.csv"
"""The numbers, as a path in the repository."""
NAME = "sage_grpo_setting_b"
SCORES = ("overall", "vq", "mq", "ta", "clipscore", "pickscore")


def about() -> dict[str, Any]:
    """Title of the published numbers, and the backbone, the reward and the evaluators that they are about."""
    return dict(json.loads(_text(".json")))


def _text(ending: str) -> str:
    path = FOLDER / f"{NAME}{ending}"
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BenchError(
            f"published numbers {path} are missing: restore them with `git checkout -- {path.parent}`."
        ) from error


def is_backbone(suite: SuiteRecords) -> bool:
    """Whether the suite trains the published model or its miniature."""
    backbone = suite.config.get("backbone")
    return isinstance(backbone, dict) and backbone.get("name") == about()["backbone"]


def belongs(suite: SuiteRecords) -> bool:
    """Whether the numbers are about the suite's model at full size, its reward, and the weights of its evaluators."""
    content = about()
    if suite.nano or not suite.runs or not is_backbone(suite) or suite.config.get("shuffle_rewards"):
        return False
    recorded = suite.runs[0].record.evaluators
    same_weights = all(
        recorded.get(evaluator, {}).get(key) == value
        for evaluator, entries in content["evaluators"].items()
        for key, value in entries.items()
    )
    return same_weights and suite.config.get("reward") == content["reward"]


def add_published(table: pd.DataFrame, suite: SuiteRecords) -> pd.DataFrame:
    """Append `published_*`, matched on method and KL policy, NaN where none is known; nothing unless `belongs`.

    A row that changes parameters of its method is not the published method and stays empty.
    """
    if not belongs(suite):
        return table
    published = pd.read_csv(io.StringIO(_text(".csv"))).set_index(["method", "kl"])
    names = [name for name in SCORES if name in table and published[name].notna().any()]
    table = table.join(published[names].add_prefix("published_"), on=["method", "kl"])
    variants = [runs.row.label for runs in suite.rows if runs.row.variant]
    table.loc[table["row"].isin(variants), [f"published_{name}" for name in names]] = np.nan
    return table


def published_notes(suite: SuiteRecords) -> list[str]:
    """Where the published numbers are, or what is beside ours; none for another model or reward."""
    if belongs(suite):
        return [
            f"Published: numbers of {about()['title']}; they are for other prompts, seeds and settings than "
            "these runs. n/a: no number is known. The paper does not give the unit of its CLIPScore; ours is "
            "2.5 max(cosine, 0)."
        ]
    if suite.nano and is_backbone(suite):
        return [f"Published numbers, which do not compare with nano, are in {FILE}."]
    return []
