"""Which files count as the source of a plug-in: its own and those it imports beside it, and no other file."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.api import BenchError
from bench.core.plugin_sources import plugin_digests, plugin_files
from bench.core.provenance import SOURCE_ROOMS, source_digest

FILES = {
    "mine_grpo.py": "import json, bench.api\nimport mine_helper\nfrom mine_pack.deep import kernel\n",
    "mine_helper.py": "def f():\n    import mine_late\n    return 1\n",
    "mine_late.py": "x = 1\n",
    "mine_other.py": "x = 1\n",
    "mine_pack/__init__.py": "",
    "mine_pack/deep/__init__.py": "from .kernel import step\nfrom ..shared import y\n",
    "mine_pack/deep/kernel.py": "from . import __init__\nstep = 1\n",
    "mine_pack/shared.py": "from methods.cps import CPS\ny = 1\n",
    "mine_pack/unused.py": "x = 1\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with plug-ins that nobody imports."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digests() -> dict[str, str]:
    return plugin_digests("methods", "mine_grpo:Mine")


def test_a_module_counts_with_what_it_imports_beside_it(folder: Path) -> None:
    files = plugin_files("methods", "mine_grpo:Mine")
    own = set(FILES) - {"mine_other.py", "mine_pack/unused.py"}
    assert set(files) == own | {"methods/__init__.py", "methods/cps.py"}
    assert files["mine_grpo.py"] == folder / "mine_grpo.py"


@pytest.mark.parametrize("name", ["mine_grpo.py", "mine_late.py", "mine_pack/shared.py"])
def test_an_edit_of_code_counts_and_a_comment_does_not(folder: Path, name: str) -> None:
    before = digests()
    (folder / name).write_text(f'"""What it is."""\n{FILES[name]}\n# a comment\n', encoding="utf-8")
    assert digests() == before
    (folder / name).write_text(f"{FILES[name]}z = 2\n", encoding="utf-8")
    after = digests()
    assert {key for key in before if before[key] != after[key]} == {name}


def test_other_files_do_not_count(folder: Path) -> None:
    before = digests()
    (folder / "mine_other.py").write_text("x = 2\n", encoding="utf-8")
    (folder / "mine_new.py").write_text("x = 2\n", encoding="utf-8")
    assert digests() == before


def test_methods_and_evaluators_of_the_project_are_independent() -> None:
    assert set(plugin_files("methods", "cps")) == {"methods/__init__.py", "methods/cps.py"}
    pickscore = set(plugin_files("evaluators", "pickscore"))
    assert {"evaluators/pickscore.py", "evaluators/clip/scorer.py", "evaluators/common.py"} <= pickscore
    assert "evaluators/clipscore.py" not in pickscore
    assert set(plugin_files("evaluators", "gold")) == {"bench/nano/gold.py"}, "the harness has its own digest"


def test_the_harness_digest_does_not_depend_on_plug_ins(tmp_path: Path) -> None:
    assert not {"methods", "evaluators"} & set(SOURCE_ROOMS)
    (tmp_path / "bench" / "core").mkdir(parents=True)
    (tmp_path / "bench" / "core" / "a.py").write_text("x = 1\n", encoding="utf-8")
    before = source_digest(tmp_path)
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "new_grpo.py").write_text("x = 1\n", encoding="utf-8")
    assert source_digest(tmp_path) == before


def test_a_plug_in_that_is_gone_has_no_files() -> None:
    assert plugin_digests("methods", "no_such_module:Thing") == {}


def test_a_file_that_is_not_python_is_named(folder: Path) -> None:
    (folder / "mine_late.py").write_text("x = (\n", encoding="utf-8")
    with pytest.raises(BenchError, match=r"mine_late\.py is not Python \(.*\): fix it"):
        digests()


@pytest.mark.parametrize("text", ["# -*- coding: latin-1 -*-\nname = 'é'\n", 'x = 1\n\x0c\n"""Doc."""\ny = 2  # é\n'])
def test_any_python_file_can_be_hashed(folder: Path, text: str) -> None:
    (folder / "mine_late.py").write_bytes(text.encode("latin-1" if "latin" in text else "utf-8"))
    before = digests()["mine_late.py"]
    (folder / "mine_late.py").write_bytes(text.replace("1", "3").encode("latin-1" if "latin" in text else "utf-8"))
    assert ("latin" in text) or digests()["mine_late.py"] != before
