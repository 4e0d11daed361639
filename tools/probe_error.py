"""How well `bench plan --probe` predicts a run: `python -m tools.probe_error`, on a machine where a run is short.

By turns it probes the nano suite's first row and does `UPDATES` updates of it, so that other load on the machine meets
both. Seconds per update, as predicted and as measured, go into results/reference/probe_nano.csv; scoring and loading,
which a probe does not time, are left out of both.
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
from bench.suite.job import Job
from bench.suite.load import load
from bench.suite.schema import Experiment
from bench.train.run import execute

SUITE = ROOT / "bench" / "configs" / "nano.yaml"
OUT = ROOT / "results" / "reference" / "probe_nano.csv"
UPDATES, TURNS = 3, 5
SHORT = (f"budget.updates={UPDATES}", "seeds=[0]", "evaluation.steps=1", "evaluation.videos_per_prompt=1")
"""Of the suite's own updates, with as little evaluation as there can be."""
COLUMNS = ("turn", "phase", "predicted", "measured")
PHASES = {"rollout": ("rollout", "anchor"), "decode": ("decode",), "update": ("train", "kl_probe")}
"""A run's phases by what the plan counts in them."""


def predicted(exp: Experiment, price: UnitCost) -> dict[str, float]:
    """Seconds of one update by phase."""
    spent = phase_costs(run_counts(exp, exp.rows[0]), price)
    return {phase: sum(spent[part] for part in parts) / exp.budget.updates for phase, parts in PHASES.items()}


def measured(exp: Experiment) -> dict[str, float]:
    """The same of a run that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        record = execute(Job(exp, exp.rows[0], exp.seeds[0], Path(folder) / "run", "probe"), lambda *progress: None)
    return {phase: record.seconds[phase] / exp.budget.updates for phase in PHASES}


def main(turns: int = TURNS) -> None:
    torch.set_num_threads(1)
    exp, rows = load(SUITE, list(SHORT)), []
    for turn in range(turns):
        guess = predicted(exp, run_probe(exp).price(exp))
        found = measured(exp)
        rows += [(turn, phase, f"{guess[phase]:.4f}", f"{found[phase]:.4f}") for phase in PHASES]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
        store.write_text(OUT, text.getvalue())
        sys.stderr.write(f"turn {turn}: predicted {sum(guess.values()):.2f} s, took {sum(found.values()):.2f} s\n")


if __name__ == "__main__":
    main()
