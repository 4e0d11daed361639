"""Whole records of a small suite that `bench verify` accepts: for tests of pages, checks and comparisons."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pandas as pd

from bench.algorithm.steps import injected_variance, noisy_steps
from bench.core.hashing import digest
from bench.core.ledger import planned_counts
from bench.flow import sigma_schedule
from bench.suite.methods import make_method, recorded_params, rollout_config
from bench.suite.schema import RowSpec, Suite
from tests.helpers import records
from tests.helpers.records import make_record, make_scores, noisy_value, write_run

METRICS = {name: records.METRICS[name] for name in ("videoalign", "gold")}
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
LATENT_ELEMENTS = 8 * 4 * 4 * 4
"""Numbers of one latent of nano: channels, frames, height and width."""
LIFTS = {"sage_grpo-dual": 0.5, "cps-fixed": 0.0}
SCHEDULE = {
    **{"sigma": [1.0, 0.8, 0.5, 0.0], "std": [0.4, 0.3, 0.0]},
    **{"predicted_grad_norm": [0.5, 1.0, 2.0], "step_weight": [1.0, 1.0, 1.0]},
}


def scores(suite: Suite, row: str, seed: int | None, lift: float) -> pd.DataFrame:
    """Noisy scores of every held-out video."""
    prompts = suite.prompt_list("heldout")
    metrics = {name: METRICS[name] for name in suite.evaluation.evaluators}
    value = noisy_value(row, seed, lift, len(prompts))
    return make_scores(prompts, suite.evaluation.videos_per_prompt, value, metrics)


def ledger(suite: Suite, updates: int) -> dict[str, Any]:
    """What the budget says of so many updates."""
    counts: dict[str, Any] = dict(planned_counts(suite.budget, len(suite.reward), updates))
    calls = counts.pop("reward_calls") // len(suite.reward)
    return {"nfe_anchor": 0, **counts, "reward_calls": dict.fromkeys(suite.reward, calls), "restarts": 0}


def lines(suite: Suite, lift: float, seed: int = 0) -> list[dict[str, Any]]:
    """`train.jsonl` of a run whose reward rises, as older versions wrote it."""
    return [
        {
            **{"update": u, "reward": lift * u, "reward_group_std": 0.5, "log_prob": -1.0 - seed},
            **{
                "monitor": dict.fromkeys(METRICS["gold"], 0.1),
                "rewards": dict.fromkeys(METRICS["videoalign"], lift * u / sum(suite.weights.values())),
            },
            **{"ledger": ledger(suite, u + 1), "grad_norm_of_step": {"0": 0.5, "1": 1.0}},
        }
        for u in range(suite.budget.updates)
    ]


def class_fields(suite: Suite, row: RowSpec) -> dict[str, Any]:
    """What the row's class decides in a record of older rules, for the size of nano's latents."""
    method = make_method(suite, row)
    config, sigmas = rollout_config(suite, 0), sigma_schedule(suite.budget.steps, suite.budget.shift)
    noisy = noisy_steps(method, sigmas, config, 0)
    predicted = dataclasses.replace(method, equalizer="derived").step_weights(sigmas)
    schedule = {
        "sigma": sigmas.tolist(),
        "std": (injected_variance(method, sigmas).sqrt() * noisy).tolist(),
        "predicted_grad_norm": (1 / predicted).tolist(),
        "step_weight": method.step_weights(sigmas).tolist(),
    }
    params = recorded_params(method)
    if suite.clip_reference_size is not None:
        params["clip_range"] *= math.sqrt(suite.clip_reference_size / LATENT_ELEMENTS)
    return {"method_params": params, "extra": {"scale": "nano", "schedule": schedule}}


def write(
    folder: Path, row: str, seed: int | None, settings: dict[str, Any] | None = None, lift: float = 0.0, **changes: Any
) -> Path:
    """One run below `folder`; `settings` change the suite's configuration, `changes` the finished record."""
    suite = Suite.model_validate({**CONFIG, **(settings or {})})
    budget, entry = dataclasses.asdict(suite.budget), next((one for one in suite.rows if one.name == row), None)
    trained = seed is not None
    values: dict[str, Any] = {
        **{"method": entry.method if entry else None, "kl": entry.kl_spec.name if entry else None},
        "digest": digest([suite.shared(), row, seed]),
        **{
            "budget": budget,
            "budget_digest": digest(budget),
            "prompts_digest": suite.read_prompts().digest("heldout"),
        },
        **{"evaluators": {name: {"weights": "1"} for name in METRICS}},
        **{"ledger": ledger(suite, suite.budget.updates) if trained else {}},
        **{"seconds": {"rollout": 60.0, "update": 30.0}, "peak_memory_mb": 900.4},
        **{"updates_done": suite.budget.updates if trained else 0},
        "gates": {"ratio_audit": {"passed": True, "largest": 0.0, "tolerance": 1e-5}} if trained else {},
        "provenance": {
            "git": {"commit": "c0ffee" + 34 * "0", "dirty": False},
            "source_digest": "5" * 16,
            "python": "3.12.1",
        },
        "extra": {"scale": "nano"},
        **(class_fields(suite, entry) if trained and entry and ":" not in entry.method else {}),
        **changes,
    }
    record = make_record(suite.model_dump(mode="json"), row, seed, **values)
    curve = None if seed is None else lines(suite, lift, seed)
    return write_run(folder, record, scores(suite, row, seed, lift), curve)


def write_suite(folder: Path, settings: dict[str, Any] | None = None, seeds: tuple[int, ...] = (0, 1, 2)) -> Path:
    """The base and both rows with these seeds."""
    changed = {"seeds": list(seeds), **(settings or {})}
    write(folder, "base", None, changed)
    for row, lift in LIFTS.items():
        for seed in seeds:
            write(folder, row, seed, changed, lift)
    return folder
