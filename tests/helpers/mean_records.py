"""Records whose rows have chosen means of each seed: for tests of what follows from the tests of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.report.tables.main import MainTable, load_main_table
from tests.helpers.records import make_record, make_scores, write_run

PROMPTS = [f"prompt {p}" for p in range(8)]
LEDGER = {"nfe_rollout": 10, "nfe_train": 20, "reward_calls": {"videoalign": 8}}
CONFIG: dict[str, Any] = {
    "suite": "toy",
    "backbone": {"name": "toy", "checkpoint": "full"},
    "budget": {"updates": 2},
    "reward": {"videoalign": {"VQ": 0.5, "MQ": 0.5, "TA": 1.0}},
}
METRICS = {"videoalign": ["VQ", "MQ", "TA"]}
CLEAR = {"cps-fixed": [0.50, 0.52, 0.48], "sage_grpo-dual": [1.0, 1.02, 0.98], "flow_grpo-none": [0.53, 0.46, 0.54]}
"""One row is clearly better than two that are alike."""


Means = dict[str, list[float]]


def write(folder: Path, means: Means, spread: float = 0.1, gold: Means | None = None, **config: Any) -> Path:
    """A suite whose row `name` has the VQ `means[name][seed]`, plus a pattern over the prompts of each run.

    And the gold_VQ `gold[name][seed]` plus the same pattern, if gold is given.
    """
    metrics = METRICS if gold is None else {**METRICS, "gold": ["gold_VQ", "gold_MQ", "gold_TA"]}
    seeds = list(range(max(map(len, means.values()))))
    rows = [dict(zip(("method", "kl"), name.split("-"), strict=True)) for name in means]
    settings = {**CONFIG, "seeds": seeds, "rows": rows, **config}
    runs = [("base", None, 0.0), *((name, s, v) for name, values in means.items() for s, v in enumerate(values))]
    for number, (name, seed, value) in enumerate(runs):
        levels = {"VQ": value, "gold_VQ": 0.0 if gold is None or seed is None else gold[name][seed]}
        pattern = np.random.default_rng(number).normal(0, spread, len(PROMPTS))
        pattern -= pattern.mean()

        def score(p: int, k: int, metric: str, levels: Any = levels, pattern: Any = pattern) -> float:
            return float(levels[metric] + pattern[p]) if metric in levels else 0.0

        record = make_record(settings, name, seed, ledger={} if seed is None else LEDGER)
        write_run(folder, record, make_scores(PROMPTS, 1, score, metrics))
    return folder


def load(folder: Path, **options: Any) -> MainTable:
    """The main table of these records, beside no stored runs unless an option names them."""
    return load_main_table(folder, **{"reference": folder.parent / "nowhere", **options})
