"""Two updates of a method on the nano checkpoint, in this process, for `bench check METHOD --train`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import store
from bench.core.errors import BenchError
from bench.core.process_state import unchanged_process
from bench.core.progress import silent
from bench.core.provenance import ROOT
from bench.suite.job import TrainingRun
from bench.suite.load import load_suite
from bench.suite.prepared import prepare
from bench.suite.schema import Suite
from bench.train.run import load_models
from bench.train.trainer import Trainer

ROW = "trial"
PROMPTS, GROUP = 2, 4
"""Prompts of an update of a trial, and the least samples of each."""
SETTINGS = ("decode", "last_step", "uncond_branch", "group_noise", "noise_policy", "advantage", "clip_reference_size")
"""Further settings that a trial takes from the suite."""


def trial_suite(method: str, suite: Suite | None = None) -> Suite:
    """The suite of a trial: nano's model and its closed-form rewards, all else as in `suite`, by default nano."""
    nano = load_suite(ROOT / "bench" / "configs" / "nano.yaml").model_dump()
    settings = nano if suite is None else suite.model_dump()
    parts = settings["budget"]["minibatches"]
    group = next(size for size in range(GROUP, GROUP + parts) if PROMPTS * size % parts == 0)
    small = {"updates": 2, "prompts": PROMPTS, "group_size": group, "micro_batch": PROMPTS * group // parts}
    return Suite.model_validate(
        {
            **nano,
            **{key: settings[key] for key in SETTINGS},
            "suite": ROW,
            "budget": {**settings["budget"], **small},
            "reward": {"gold": {"gold_VQ": 0.5, "gold_MQ": 0.5, "gold_TA": 1.0}},
            "monitor": [],
            "evaluation": {"evaluators": ["gold"], "steps": 1, "videos_per_prompt": 1},
            "evaluator_params": {},
            "seeds": [0],
            "rows": [{"method": method, "label": ROW}],
        }
    )


def train_trial(method: str, suite: Suite | None = None) -> list[str]:
    """Train two updates in a temporary folder: a line for each, and one for the whole.

    Raises `BenchError` where a run would stop, and where the ratio at update 0, if the loss has one, is not 1.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-check-") as folder, unchanged_process(f"method {method!r}"):
        job = TrainingRun(prepare(trial_suite(method, suite)), Path(folder), ROW, ROW, 0)
        models = load_models(job)
        trainer = Trainer.new(job, models.backbone, models.evaluators)
        trainer.train(silent)
        lines = store.read_lines(job.folder / store.TRAIN)
    audit = trainer.audit
    if audit is not None and not audit["passed"]:
        raise BenchError(
            f"method {method!r}: the ratio before the first update differs from 1 by {audit['largest']:.3g} "
            f"(tolerance {audit['tolerance']:g}): log_prob must give the same for the same step."
        )
    seconds = time.monotonic() - start
    return [*map(_update_line, lines), f"{len(lines)} updates on nano, {seconds:.1f} s with loading"]


def _update_line(line: Mapping[str, Any]) -> str:
    seconds = sum(line["seconds"].values())
    ratio = f"ratio - 1 at most {line['ratio_error']:.3g}, " if "ratio_error" in line else ""
    return (
        f"update {line['update']}: reward {line['reward']:.4g}, gradient norm {max(line['grad_norm']):.4g}, "
        f"{ratio}{seconds:.1f} s"
    )
