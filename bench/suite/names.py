"""What is checked of a suite before torch is imported: names of plug-ins and prompt lists."""

from __future__ import annotations

from bench import plugins
from bench.suite.schema import Suite


def check_names(suite: Suite) -> None:
    """Raise a `BenchError` on an unknown plug-in and on a wrong prompt list."""
    for group, name in suite.plugin_names():
        plugins.check_name(group, name)
    suite.prompt_lists()
