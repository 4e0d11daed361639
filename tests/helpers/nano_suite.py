"""Runs of seconds on the real nano checkpoint, rewarded by the world's closed-form scores."""

from __future__ import annotations

from pathlib import Path

from bench.core.provenance import ROOT
from bench.store.record import RunRecord
from bench.suite.job import TrainingRun
from bench.suite.load import load_suite
from bench.suite.prepared import prepare
from bench.suite.schema import Suite
from bench.train.run import execute

NANO = ROOT / "bench" / "configs" / "nano.yaml"
CHECKPOINT = ROOT / "bench" / "nano" / "checkpoints" / "hunyuanvideo15"
TINY = (
    "suite=tiny",
    *(f"budget.{key}" for key in ("updates=2", "prompts=2", "group_size=2", "steps=4", "train_steps=2")),
    "budget.micro_batch=4",
    "reward={gold: {gold_VQ: 0.5, gold_MQ: 0.5, gold_TA: 1.0}}",
    "evaluation={evaluators: [gold], steps: 2, videos_per_prompt: 1}",
    "evaluator_params={}",
    "seeds=[0]",
)
"""Overrides that make the nano suite tiny: 2 updates of 4 samples in 4 steps, 36 held-out videos in 2."""


def tiny(*overrides: str) -> Suite:
    return load_suite(NANO, [*TINY, *overrides])


def first_run(suite: Suite, folder: Path, digest: str = "d") -> TrainingRun:
    """The suite's first row with its first seed."""
    return TrainingRun(prepare(suite), folder, digest, suite.rows[0].name, suite.seeds[0])


def run(suite: Suite, folder: Path, digest: str = "d") -> RunRecord:
    """The suite's first row and seed, in this process."""
    return execute(first_run(suite, folder, digest))
