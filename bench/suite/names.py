"""What is checked of a suite before torch is imported: names of plug-ins, KL policies and prompt lists."""

from __future__ import annotations

from bench import plugins
from bench.algorithm.kl import kl_policy
from bench.suite.schema import Suite


def check_names(suite: Suite) -> None:
    """Raise a `BenchError` on an unknown method, evaluator or backbone, and on a wrong KL policy or prompt list."""
    for name in [*suite.all_evaluators, *suite.evaluator_params]:
        plugins.check_name("evaluators", name)
    plugins.check_name("backbones", suite.backbone.name)
    for row in suite.rows:
        plugins.check_name("methods", row.method)
        kl_policy(row.kl_spec.name, **row.kl_spec.params)
    suite.prompt_lists()
