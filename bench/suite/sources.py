"""The sources that decide the numbers of a run: those of the harness and of the run's own plug-ins.

Nothing here imports torch or a plug-in.
"""

from __future__ import annotations

from typing import Any

from bench.core.plugin_sources import plugin_digests
from bench.core.provenance import source_digest
from bench.suite.schema import RowSpec, Suite


def run_sources(suite: Suite, row: RowSpec | None, harness: str | None = None) -> dict[str, Any]:
    """`harness`: the source digest of the harness; `plugins`: "group name" to its files and the digests of their code.

    `row` is None for the base. `harness` is the source digest, if the caller has it.
    """
    plugins = {f"{group} {name}": plugin_digests(group, name) for group, name in suite.run_plugins(row)}
    return {"harness": harness or source_digest(), "plugins": plugins}
