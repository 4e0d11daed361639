"""What the source of a module says about a plug-in, without running the module."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import plugins
from bench.api import BenchError
from bench.core.plugin_classes import refuse_by_source
from bench.core.plugin_sources import module_file

SOURCE = """
raise SystemExit("this module was imported")

import os
from collections import OrderedDict as Mapping
Alias = Mapping

class Bare: pass
class Derived(Mapping): pass
def function(): pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "trap_package"
    (package / "inner").mkdir(parents=True)
    for path in (tmp_path / "trap.py", package / "__init__.py", package / "inner" / "__init__.py"):
        path.write_text(SOURCE)
    (package / "part.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "file"),
    [
        ("trap", "trap.py"),
        ("trap_package", "trap_package/__init__.py"),
        ("trap_package.part", "trap_package/part.py"),
        ("trap_package.inner", "trap_package/inner/__init__.py"),
        ("trap_package.missing", None),
        ("no_such_module", None),
    ],
)
def test_a_module_is_found_without_being_imported(folder: Path, module: str, file: str | None) -> None:
    found = module_file(module)
    assert found == (None if file is None else folder / file)
    assert "trap" not in sys.modules
    assert "trap_package" not in sys.modules


@pytest.mark.parametrize("module", ["trap", "trap_package.part"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Bare", "derived from no class"),
        ("function", "is a function, not a class"),
        ("Missing", "has no class 'Missing'"),
        ("Derived", None),
        ("Mapping", None),
        ("Alias", None),
    ],
)
def test_what_cannot_be_a_plug_in_is_refused_by_its_source(
    folder: Path, module: str, name: str, reason: str | None
) -> None:
    answer = refuse_by_source(module, name, needs_base=True)
    assert answer is None if reason is None else reason in str(answer)


def test_a_backbone_needs_no_base(folder: Path) -> None:
    assert refuse_by_source("trap", "Bare", needs_base=False) is None


@pytest.mark.parametrize("group", ["methods", "evaluators", "backbones"])
@pytest.mark.parametrize("name", ["trap:Missing", "trap:function", "subprocess:Popen", "os:system"])
def test_a_suite_cannot_make_the_harness_import_any_module(folder: Path, group: str, name: str) -> None:
    with pytest.raises(BenchError, match="was not imported"):
        plugins.find(group, name)
    assert "trap" not in sys.modules
