"""A missing package: one sentence that names the extra, at one place of the command line."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from bench.cli import main
from bench.core.extras import EXTRAS, missing_extra
from tests.helpers.paths import PROJECT

DISTRIBUTIONS = {"open_clip": "open-clip-torch"}
"""Modules whose distribution has another name."""


def test_the_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, modules in EXTRAS.items():
        names = {re.split(r"[=<>;!~]", each)[0] for each in project["optional-dependencies"][extra]}
        assert {DISTRIBUTIONS.get(module, module) for module in modules} <= names, extra
    run = {re.split(r"[=<>;!~]", each)[0] for each in project["optional-dependencies"]["run"]}
    assert {DISTRIBUTIONS.get(module, module) for module in EXTRAS["run"]} == run


@pytest.mark.parametrize(
    ("module", "extra"), [("torch", "run"), ("av", "run"), ("diffusers.models", "run"), ("submitit", "slurm")]
)
def test_a_missing_package_names_its_extra(module: str, extra: str) -> None:
    sentence = missing_extra(ModuleNotFoundError(name=module))
    assert sentence is not None
    assert f"`pip install 'grpo-video-bench[{extra}]'`" in sentence


def test_any_other_module_names_none() -> None:
    assert missing_extra(ModuleNotFoundError(name="bench.nothing")) is None
    assert missing_extra(ModuleNotFoundError(name="torchlike")) is None


def test_a_command_without_its_packages_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("video,prompt\na.mp4,a dog\n")
    monkeypatch.delitem(sys.modules, "bench.score.scoring", raising=False)
    monkeypatch.delitem(sys.modules, "bench.score.evaluators", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["score", "clipscore", "--prompts", str(prompts), "--out", "a.parquet"]) == 2
    assert capsys.readouterr().err == (
        "bench score: the package 'torch' is missing: install it with `pip install 'grpo-video-bench[run]'`.\n"
    )


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bench.suite.packaged", None)
    with pytest.raises(ModuleNotFoundError):
        main(["suites"])
