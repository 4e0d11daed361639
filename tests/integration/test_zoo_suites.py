"""The suites with the newer methods on nano: what they share, their preflight, and a shrunken copy of each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.algorithm.steps import noisy_steps, step_weights, trainable_steps
from bench.api import Method
from bench.core.provenance import source_digest
from bench.launch.jobs import suite_jobs
from bench.plugins import available
from bench.report.data.differences import MOST_ROWS_FOR_PAIRS
from bench.suite.checkpoints import Checkpoint
from bench.suite.load import load_suite
from bench.suite.prepared import PreparedSuite, prepare
from bench.train.preflight import check_methods
from bench.train.run import execute
from tests.helpers.nano_suite import TINY

NEW_RUNS = {"nano_zoo": 50, "nano_reuse": 18, "nano_window": 6, "nano_one_step": 12, "nano_weights": 18}
"""Trained runs that a suite has and neither nano nor a suite above it has."""


@pytest.fixture(scope="module")
def suites() -> dict[str, PreparedSuite]:
    checkpoints: dict[str, Checkpoint] = {}
    return {name: prepare(load_suite(name), checkpoints) for name in ("nano", *NEW_RUNS)}


def test_a_run_of_two_suites_is_trained_once(suites: dict[str, PreparedSuite], tmp_path: Path) -> None:
    sources, seen = source_digest(), dict[str, str]()
    for name, prepared in suites.items():
        trained = {job.digest: job.label for job in suite_jobs(prepared, tmp_path, sources)[1:]}
        if name != "nano":
            assert len(trained.keys() - seen.keys()) == NEW_RUNS[name], name
        if name == "nano_zoo":
            assert seen.items() <= trained.items(), "all runs of nano, under their names"
        if name == "nano_window":
            shared = {trained[digest] for digest in trained.keys() & seen.keys()}
            assert {label.split(" ")[0] for label in shared} == {
                *("flow_grpo-fixed", "flow_grpo-equalized", "mix_grpo-window5", "flow_grpo_fast-window5")
            }
        seen |= trained


def test_every_method_is_in_one_of_them(suites: dict[str, PreparedSuite]) -> None:
    used = {row.spec.method for prepared in suites.values() for row in prepared.rows}
    assert used == available("methods").keys()


@pytest.mark.parametrize("name", NEW_RUNS)
def test_a_suite_passes_the_checks_before_a_run_and_is_closed(suites: dict[str, PreparedSuite], name: str) -> None:
    """`check_methods` asks every method for its steps at every update; test_division.py computes the divisions."""
    prepared, nano = suites[name], suites["nano"].suite
    check_methods(prepared)
    suite = prepared.suite
    assert (suite.evaluation, suite.reward) == (nano.evaluation, nano.reward)
    assert suite.seeds == ([0, 1, 2, 3, 4] if name == "nano_zoo" else nano.seeds)
    assert (suite.budget.updates, suite.budget.lr) == (nano.budget.updates, nano.budget.lr)
    assert (suite.budget.minibatches == 1) == (name != "nano_reuse")


def test_the_tables_test_pairs_where_a_suite_asks_for_them(suites: dict[str, PreparedSuite]) -> None:
    pairs = {name for name, prepared in suites.items() if len(prepared.rows) <= MOST_ROWS_FOR_PAIRS}
    assert pairs == {"nano", "nano_reuse", "nano_window", "nano_one_step"}
    one = {name: prepared.suite.compare_with for name, prepared in suites.items() if prepared.suite.compare_with}
    assert one == {"nano_zoo": "sage_grpo-dual"}


def test_equal_weights_are_those_of_the_equalizer(suites: dict[str, PreparedSuite]) -> None:
    """nano_weights writes `equal` as the equalizer, to share nano's runs."""
    from methods.dance_grpo import DanceGRPO
    from methods.flow_grpo import FlowGRPO

    prepared = suites["nano_weights"]
    sigmas, config = prepared.sigmas, prepared.rollout_config(0)
    methods: tuple[type[Method], ...] = (FlowGRPO, DanceGRPO)
    for cls in methods:
        trainable = trainable_steps(noisy_steps(cls(), sigmas, config, 0), config)
        equal = step_weights(cls(weighting="equal"), sigmas, trainable)[trainable]
        released = step_weights(cls(equalizer="released"), sigmas, trainable)[trainable]
        torch.testing.assert_close(equal, released, rtol=1e-6, atol=0)  # two roundings to float32


@pytest.mark.parametrize(
    ("name", "row", "overrides"),
    [
        ("nano_zoo", "precise-fixed", []),
        ("nano_zoo", "rvm-none", []),
        ("nano_zoo", "longcat_grpo-fixed", []),
        ("nano_zoo", "flow_grpo_fast-window5", []),
        ("nano_zoo", "diffusion_nft-none", []),
        ("nano_reuse", "flow_dppo-fixed", ["budget.minibatches=2"]),
        ("nano_reuse", "awm-none", ["budget.minibatches=2"]),
        ("nano_reuse", "grpo_guard-fixed", ["budget.minibatches=2"]),
        ("nano_window", "mix_grpo-early5-equalized", []),
        ("nano_one_step", "mix_grpo-any1", ["budget.train_steps=1"]),
        ("nano_weights", "dance_grpo-longcat", []),
    ],
)
def test_a_shrunken_suite_runs(name: str, row: str, overrides: list[str], tmp_path: Path) -> None:
    prepared = prepare(load_suite(name, [*TINY, *overrides]))
    (job,) = [job for job in suite_jobs(prepared, tmp_path, "s") if job.identity["row"] == row]
    record = execute(job)
    assert (record.status, record.updates_done) == ("finished", 2)
    assert record.ledger["optimizer_steps"] == 2 * prepared.suite.budget.minibatches
    assert record.open_reasons == []
