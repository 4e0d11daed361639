"""Checks of a suite before anything is loaded or trained."""

from __future__ import annotations

from bench import plugins
from bench.api import ChecksSuite
from bench.checks.methods import check_method
from bench.checks.rules import check_rule
from bench.flow import sigma_schedule
from bench.suite.prepared import PreparedSuite


def check_suite(prepared: PreparedSuite) -> None:
    """Raise a `BenchError` where a run of the suite would, before anything is loaded or trained."""
    check_methods(prepared)
    check_rules(prepared)
    check_backbone(prepared)


def check_methods(prepared: PreparedSuite) -> None:
    """Run the checks of `bench check` on the methods of the suite with its schedule."""
    budget = prepared.suite.budget
    for row in prepared.rows:
        check_method(row.method, sigma_schedule(budget.steps, budget.shift))


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
