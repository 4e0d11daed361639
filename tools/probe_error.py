"""Error of `bench plan --probe`: `python -m tools.probe_error`, on a machine where a run of nano is short.

It alternates between a probe of the nano suite's first row and a run of `UPDATES` updates, so that other load on the
machine affects both. Seconds per update, predicted and measured, are written to results/reference/probe_nano.csv.
Scoring and loading, which a probe does not time, are left out of both.
"""

from __future__ import annotations

import csv
import io
import sys
import tempfile
from pathlib import Path

import torch

from bench import store
from bench.core.provenance import ROOT
from bench.plan.probe import run_probe
from bench.plan.workload import UnitCost, phase_costs, run_counts
from bench.suite.job import TrainingRun
from bench.suite.load import load_suite
from bench.suite.prepared import PreparedSuite, prepare
from bench.train.run import execute

SUITE = ROOT / "bench" / "configs" / "nano.yaml"
OUT = ROOT / "results" / "reference" / "probe_nano.csv"
UPDATES, TURNS = 3, 5
SHORT = (f"budget.updates={UPDATES}", "seeds=[0]", "evaluation.steps=1", "evaluation.videos_per_prompt=1")
"""Overrides: the suite's updates with the smallest evaluation."""
COLUMNS = ("turn", "phase", "predicted", "measured")
PHASES = {"rollout": ("rollout", "anchor"), "decode": ("decode",), "update": ("train", "kl_probe")}
"""A run's phases, and the plan's phases that each includes."""


def predicted_seconds(prepared: PreparedSuite, unit_seconds: UnitCost) -> dict[str, float]:
    """Predicted seconds of one update by phase."""
    seconds = phase_costs(run_counts(prepared, prepared.rows[0]), unit_seconds)
    suite = prepared.suite
    return {phase: sum(seconds[part] for part in parts) / suite.budget.updates for phase, parts in PHASES.items()}


def measured_seconds(prepared: PreparedSuite) -> dict[str, float]:
    """Measured seconds of one update by phase, of a temporary run."""
    with tempfile.TemporaryDirectory() as folder:
        job = TrainingRun(prepared, Path(folder) / "run", "probe", prepared.rows[0].name, prepared.suite.seeds[0])
        record = execute(job)
    return {phase: record.seconds[phase] / prepared.suite.budget.updates for phase in PHASES}


def main(turns: int = TURNS) -> None:
    torch.set_num_threads(1)
    prepared, rows = prepare(load_suite(SUITE, list(SHORT))), []
    for turn in range(turns):
        predicted = predicted_seconds(prepared, run_probe(prepared).unit_cost(prepared.suite))
        measured = measured_seconds(prepared)
        rows += [(turn, phase, f"{predicted[phase]:.4f}", f"{measured[phase]:.4f}") for phase in PHASES]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
        store.write_text(OUT, text.getvalue())
        sys.stderr.write(
            f"turn {turn}: predicted {sum(predicted.values()):.2f} s, measured {sum(measured.values()):.2f} s\n"
        )


if __name__ == "__main__":
    main()
