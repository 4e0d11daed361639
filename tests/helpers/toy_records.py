"""Whole records of a small suite that `bench verify` accepts: for tests of pages, checks and comparisons."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import store
from bench.core.hashing import digest
from bench.core.ledger import planned
from bench.store.record import RunRecord
from bench.suite.schema import Experiment

METRICS = {"videoalign": ["VQ", "MQ", "TA"], "gold": ["gold_VQ", "gold_MQ", "gold_TA"]}
CONFIG: dict[str, Any] = {
    "suite": "toy",
    "backbone": {"name": "hunyuanvideo15", "checkpoint": "nano"},
    "budget": {
        **{"updates": 6, "prompts": 2, "group_size": 4, "steps": 3, "train_steps": 2},
        **{"shift": 5.0, "guidance": 1.0, "lr": 3e-4},
    },
    "reward": {"videoalign": {"VQ": 0.5, "MQ": 0.5, "TA": 1.0}},
    "monitor": ["gold"],
    "evaluation": {"evaluators": list(METRICS), "steps": 4, "videos_per_prompt": 2},
    "seeds": [0, 1, 2],
    "rows": [{"method": "sage_grpo", "kl": "dual"}, {"method": "cps", "kl": "fixed"}],
}
LIFTS = {"sage_grpo-dual": 0.5, "cps-fixed": 0.0}
SCHEDULE = {
    **{"sigma": [1.0, 0.8, 0.5, 0.0], "std": [0.4, 0.3, 0.0]},
    **{"predicted_grad_norm": [0.5, 1.0, 2.0], "step_weight": [1.0, 1.0, 1.0]},
}


def scores(exp: Experiment, row: str, seed: int | None, lift: float) -> pd.DataFrame:
    """Scores of every held-out video: the prompt's ease, the row's lift, the seed's drift and some noise."""
    prompts = exp.prompt_list("heldout")
    rng = np.random.default_rng([sum(row.encode()), 0 if seed is None else seed + 1])
    ease, drift = np.random.default_rng(0).normal(size=len(prompts)), 0.0 if seed is None else rng.normal(0, 0.02)
    rows = [
        (p, prompt, k, evaluator, metric, ease[p] + lift + drift + rng.normal(0, 0.05))
        for p, prompt in enumerate(prompts)
        for k in range(exp.evaluation.videos_per_prompt)
        for evaluator in exp.evaluation.evaluators
        for metric in METRICS[evaluator]
    ]
    return pd.DataFrame(rows, columns=store.SCORE_COLUMNS)


def ledger(exp: Experiment, updates: int) -> dict[str, Any]:
    """What the budget says of so many updates."""
    counts: dict[str, Any] = dict(planned(exp.budget, len(exp.reward), updates))
    calls = counts.pop("reward_calls") // len(exp.reward)
    return {"nfe_anchor": 0, **counts, "reward_calls": dict.fromkeys(exp.reward, calls), "restarts": 0}


def lines(exp: Experiment, lift: float) -> str:
    """`train.jsonl` of a run whose reward rises."""
    told = [
        {
            **{
                "update": u,
                "reward": lift * u,
                "reward_group_std": 0.5,
                "monitor": dict.fromkeys(METRICS["gold"], 0.1),
            },
            **{"rewards": dict.fromkeys(METRICS["videoalign"], lift * u), "ledger": ledger(exp, u + 1)},
            "grad_norm_of_step": {"0": 0.5, "1": 1.0},
        }
        for u in range(exp.budget.updates)
    ]
    return "".join(json.dumps(line) + "\n" for line in told)


def write(
    folder: Path, row: str, seed: int | None, settings: dict[str, Any] | None = None, lift: float = 0.0, **changes: Any
) -> Path:
    """One run below `folder`; `settings` change the suite's configuration, `changes` the finished record."""
    exp = Experiment.model_validate({**CONFIG, **(settings or {})})
    budget, entry = dataclasses.asdict(exp.budget), next((one for one in exp.rows if one.name == row), None)
    trained = seed is not None
    values: dict[str, Any] = {
        **{"suite": exp.suite, "row": row, "seed": seed, "method": entry.method if entry else None},
        **{"kl": entry.kl_spec.name if entry else None, "method_params": dict(entry.params) if entry else {}},
        **{"status": "finished", "digest": digest([exp.shared(), row, seed]), "budget": budget},
        **{"budget_digest": digest(budget), "prompts_digest": exp.check_prompts()},
        **{"config": exp.model_dump(mode="json"), "evaluators": {name: {"weights": "1"} for name in METRICS}},
        **{"backbone": {"weights": "2"}, "ledger": ledger(exp, exp.budget.updates) if trained else {}},
        **{"seconds": {"rollout": 60.0, "update": 30.0}, "peak_memory_mb": 900.4},
        **{"updates_done": exp.budget.updates if trained else 0},
        "gates": {"ratio_audit": {"passed": True, "largest": 0.0, "tolerance": 1e-5}} if trained else {},
        "provenance": {"git": {"commit": "c0ffee" + 34 * "0", "dirty": False}, "python": "3.12.1"},
        "extra": {"scale": "nano", **({"schedule": SCHEDULE} if trained else {})},
        **changes,
    }
    record, path = RunRecord(**values), store.run_folder(folder, row, seed)
    store.write_run(path, record, None if record.status == "failed" else scores(exp, row, seed, lift))
    if trained:
        (path / store.TRAIN).write_text(lines(exp, lift), encoding="utf-8")
    return path


def write_suite(folder: Path, settings: dict[str, Any] | None = None, seeds: tuple[int, ...] = (0, 1, 2)) -> Path:
    """The base and both rows with these seeds."""
    changed = {"seeds": list(seeds), **(settings or {})}
    write(folder, "base", None, changed)
    for row, lift in LIFTS.items():
        for seed in seeds:
            write(folder, row, seed, changed, lift)
    return folder
