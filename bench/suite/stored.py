"""Store a suite in the folder of its records, which can then be named in place of the YAML and its overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bench.store.files import write_text
from bench.suite.load import suite_mapping
from bench.suite.paths import names_package, path_parameters, resolve
from bench.suite.recorded import SUITE_FILE
from bench.suite.schema import Suite

HEAD = """\
# The suite of this folder: all settings of the latest `bench run`. Commands take the folder in place of a YAML file.
"""


class _PlainDumper(yaml.SafeDumper):
    """YAML without anchors and aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_suite(folder: Path, suites: Sequence[Suite]) -> Path:
    """Write `suite.yaml` of a suite, or of all variants of a study; loading the folder gives equal suites."""
    mapping = suite_mapping([_located(suite) for suite in suites])
    text = HEAD + yaml.dump(mapping, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=1000)
    path = folder / SUITE_FILE
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)
    return path


def _located(suite: Suite) -> Suite:
    """The suite with absolute paths, so that it can be read in any folder."""
    params = {
        name: {**own, **{key: _absolute(path) for key, path in path_parameters(own).items()}}
        for name, own in suite.evaluator_params.items()
    }
    changes: dict[str, Any] = {
        "backbone": suite.backbone.model_copy(update={"checkpoint": _absolute(suite.backbone.checkpoint)}),
        "evaluator_params": params,
        "prompts": suite.prompts.model_copy(
            update={key: _absolute(name) for key, name in suite.prompts.model_dump().items()}
        ),
    }
    return suite.model_copy(update=changes)


def _absolute(name: str | None) -> str | None:
    """The name of something packaged as it is, every other path absolute; None for None."""
    if name is None:
        return None
    return name if names_package(name) else str(resolve(name))
