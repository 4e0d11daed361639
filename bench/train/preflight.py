"""Checks of a suite before anything is loaded or trained."""

from __future__ import annotations

from bench import plugins
from bench.api import ChecksSuite
from bench.backbones.folder import read_header
from bench.checks.evaluators import check_reward_metrics, evaluator_gate
from bench.checks.methods import check_method
from bench.checks.rules import check_rule
from bench.checks.steps import check_steps
from bench.flow import sigma_schedule
from bench.suite.paths import path_parameters
from bench.suite.prepared import PreparedSuite, make_evaluator


def check_suite(prepared: PreparedSuite) -> None:
    """Raise a `BenchError` where a run of the suite would, before anything is loaded or trained."""
    check_methods(prepared)
    check_rules(prepared)
    check_rewards(prepared)
    check_backbone(prepared)
    check_evaluator_files(prepared)
    check_nano_evaluators(prepared)


def check_methods(prepared: PreparedSuite) -> None:
    """Run the checks of `bench check` on the methods of the suite, with its schedule and all updates of its budget."""
    budget = prepared.suite.budget
    for row in prepared.rows:
        check_method(row.method, sigma_schedule(budget.steps, budget.shift))
        check_steps(row.method, prepared.suite)


def check_rewards(prepared: PreparedSuite) -> None:
    """Compare the suite's rewards with the metrics of the evaluators' classes; nothing is loaded."""
    classes = {name: plugins.find("evaluators", name) for name in prepared.suite.reward}
    check_reward_metrics(
        prepared.suite.reward, {name: cls.metrics for name, cls in classes.items() if hasattr(cls, "metrics")}
    )


def check_evaluator_files(prepared: PreparedSuite) -> None:
    """Refuse missing checkpoints of evaluators, and safetensors files of theirs that end early; reads headers only."""
    for use, checkpoint in prepared.checkpoints.items():
        if not use.startswith("backbone"):
            root = checkpoint.require()
            for path in [root] if root.is_file() else sorted(root.rglob("*.safetensors")):
                if path.suffix == ".safetensors":
                    read_header(root.parent if root.is_file() else root, path)


def check_nano_evaluators(prepared: PreparedSuite) -> None:
    """Check the evaluators of a nano suite that need no checkpoint: they are made in no time, on the CPU.

    All others are checked by each run once it has loaded them, before it trains.
    """
    suite = prepared.suite
    if suite.scale == "nano":
        loaded = [name for name in suite.all_evaluators if path_parameters(suite.evaluator_params.get(name, {}))]
        names = [name for name in suite.all_evaluators if name not in loaded]
        evaluator_gate({name: make_evaluator(prepared, name) for name in names})


def check_rules(prepared: PreparedSuite) -> None:
    """Run the checks of `bench check` on the KL policies of the rows and on the suite's advantage rule."""
    for row in prepared.rows:
        check_rule("kl_policies", row.kl_policy)
    check_rule("advantage_rules", prepared.advantage_rule)


def check_backbone(prepared: PreparedSuite, may_lack: bool = False) -> None:
    """Raise a `BenchError` on a checkpoint or on settings that the backbone cannot load.

    `may_lack`: the checkpoint may be missing; then only the settings are checked.
    """
    suite, checkpoint = prepared.suite, prepared.checkpoints.get("backbone")
    backbone = plugins.find("backbones", suite.backbone.name)
    if isinstance(backbone, type) and issubclass(backbone, ChecksSuite):
        lacking = checkpoint is None or (may_lack and not checkpoint.path.exists())
        path = None if checkpoint is None or lacking else checkpoint.require()
        backbone.check_suite(path, suite.budget.guidance, suite.backbone.train)
