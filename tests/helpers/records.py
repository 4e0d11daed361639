"""Fake records of runs: `make_record`, scores by a formula or with noise, and the folder of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import store
from bench.store.record import RunRecord

#: Evaluator to the metrics that it gives.
METRICS = {
    "videoalign": ["VQ", "MQ", "TA"],
    "clipscore": ["clipscore"],
    "pickscore": ["pickscore"],
    "gold": ["gold_VQ", "gold_MQ", "gold_TA"],
}


def make_record(config: Mapping[str, Any], row: str, seed: int | None, /, **changes: Any) -> RunRecord:
    """A finished record of a row `method-kl` ("base" without a seed) of the suite `config`, with some fields changed.

    Its digest is that of the suite's name, the row and the seed; all other digests are equal for all runs.
    """
    method, _, kl = row.partition("-")
    suite = changes.get("suite", config["suite"])
    budget = config.get("budget", {})
    values: dict[str, Any] = {
        **{"suite": suite, "row": row, "method": method if kl else None, "kl": kl or None, "seed": seed},
        **{"status": "finished", "digest": f"{sum(f'{suite}/{row}'.encode()):04x}{seed or 0:012x}"},
        **{"budget": budget, "budget_digest": "b", "prompts_digest": "p", "config": config},
        **{"evaluators": {name: {"weights": "1"} for name in METRICS}, "backbone": {"weights": "2"}},
        **{"updates_done": budget.get("updates", 0), "gates": {"ratio_audit": {"passed": True}}, **changes},
    }
    return RunRecord(**values)


def make_scores(
    prompts: Sequence[str],
    videos: int,
    value: Callable[[int, int, str], float],
    metrics: Mapping[str, Sequence[str]] = METRICS,
) -> pd.DataFrame:
    """The scores `value(prompt index, video, metric)` of every prompt, video and metric."""
    rows = [
        (p, prompt, k, evaluator, metric, value(p, k, metric))
        for p, prompt in enumerate(prompts)
        for k in range(videos)
        for evaluator, names in metrics.items()
        for metric in names
    ]
    return pd.DataFrame(rows, columns=store.SCORE_COLUMNS)


def noisy_value(row: str, seed: int | None, lift: float, prompts: int) -> Callable[[int, int, str], float]:
    """For `make_scores`: a level per prompt, the row's lift, a drift of the seed (none for the base), and noise."""
    rng = np.random.default_rng([sum(row.encode()), 0 if seed is None else seed + 1])
    level, drift = np.random.default_rng(0).normal(size=prompts), 0.0 if seed is None else rng.normal(0, 0.02)
    return lambda p, k, metric: level[p] + lift + drift + rng.normal(0, 0.05)


def write_run(
    folder: Path, record: RunRecord, scores: pd.DataFrame, lines: Iterable[Mapping[str, Any]] | None = None
) -> Path:
    """The folder of one run below that of its suite; a failed run has no scores, `lines` are its `train.jsonl`."""
    path = store.run_folder(folder, record.row, record.seed)
    store.write_run(path, record, None if record.status == "failed" else scores)
    if lines is not None:
        write_lines(path, lines)
    return path


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """`train.jsonl` in the folder of a run."""
    (path / store.TRAIN).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
