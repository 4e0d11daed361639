"""Plug-ins by name: entry points, "module:Class", and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import methods
from bench import plugins
from bench.api import BenchError, Method
from bench.core.errors import ProcessStateError
from bench.core.extras import missing_extra
from bench.core.process_state import fix_process_state

EXTERNAL = """
from dataclasses import dataclass
from typing import ClassVar
from methods.cps import CPS

@dataclass(frozen=True, kw_only=True)
class External(CPS):
    paper: ClassVar[str] = "none"
    strength: float = 0.5

class NotAMethod:
    pass
"""


SIDE_EFFECTS = """
import torch
from bench.api import Evaluator
from bench.core import budget
torch.set_float32_matmul_precision("medium")

class Effect(Evaluator):
    metrics = {}

    def __init__(self):
        budget.PROBE_EVERY = 7

    def score(self, videos, prompts, fps):
        return {}

    def fingerprint(self):
        return {}
"""


@pytest.fixture
def external(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "external_grpo.py").write_text(EXTERNAL, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_our_plug_ins_are_entry_points() -> None:
    assert list(plugins.available("methods")) == [
        *("awm", "cps", "dance_grpo", "diffusion_nft", "flash_grpo", "flow_dppo", "flow_grpo", "flow_grpo_fast"),
        *("grpo_guard", "longcat_grpo", "mix_grpo", "precise", "rvm", "sage_grpo"),
    ]
    assert {"videoalign", "clipscore", "pickscore", "gold"} <= plugins.available("evaluators").keys()
    assert "hunyuanvideo15" in plugins.available("backbones")


@pytest.mark.parametrize("name", ["flow_grpo", "dance_grpo", "cps", "sage_grpo"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.3])
def test_every_method_constructs_with_any_eta(name: str, eta: float) -> None:
    method = plugins.method(name, eta=eta, clip_range=1e-3, equalizer="off")
    assert isinstance(method, Method)
    assert (method.eta, method.clip_range) == (eta, 1e-3)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("external")
def test_an_external_class_is_found_by_its_module() -> None:
    assert plugins.method("external_grpo:External", strength=2).strength == 2.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("sage_grp", {}, "unknown method 'sage_grp'.*did you mean 'sage_grpo'"),
        ("ppo", {}, "known are awm, cps, dance_grpo, diffusion_nft, "),
        ("cps", {"etta": 0.5}, "method 'cps' has no parameter 'etta': did you mean 'eta'"),
        ("cps", {"eta": "loud"}, "method 'cps', parameter 'eta'"),
        ("cps", {"group_size": 4}, "has no parameter 'group_size'"),
        ("cps", {"eta": -1}, "eta is -1"),
        ("no_such_module:Thing", {}, "module 'no_such_module' cannot be imported"),
        ("methods.cps:Thing", {}, "module methods.cps has no class 'Thing'"),
    ],
)
def test_a_wrong_method_is_refused(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        plugins.method(name, **params)


@pytest.mark.usefixtures("external")
def test_a_class_that_is_not_a_method_is_refused() -> None:
    with pytest.raises(BenchError, match="derived from no class"):
        plugins.method("external_grpo:NotAMethod")


@pytest.mark.parametrize("field", ["group_size", "steps", "lr", "seed", "updates", "optimizer"])
def test_a_method_that_declares_a_budget_field_is_refused(field: str) -> None:
    with pytest.raises(BenchError, match=f"declares the field '{field}', which belongs to the suite's budget"):
        type("Greedy", (Method,), {"__annotations__": {field: int}, "__module__": __name__})


def test_an_unknown_evaluator_parameter_is_refused() -> None:
    with pytest.raises(BenchError, match="no parameter 'chekpoint': did you mean 'checkpoint'"):
        plugins.evaluator("clipscore", chekpoint="x")


def test_methods_of_different_files_have_different_sources() -> None:
    assert plugins.source("methods", "cps") != plugins.source("methods", "flow_grpo")


@pytest.mark.parametrize("kind", ["method", "evaluator", "backbone"])
def test_an_import_that_changes_a_global_setting_is_refused_each_time(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fix_process_state()
    (tmp_path / f"effect_{kind}.py").write_text(SIDE_EFFECTS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"effect_{kind}:Effect"
    for _ in range(2):  # a module is imported once
        with pytest.raises(
            ProcessStateError, match=rf"^{kind} '{name}', when it is imported, changes float32_matmul_pre"
        ):
            plugins.find(f"{kind}s", name)
        fix_process_state()


def test_a_constructor_that_replaces_code_of_the_harness_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SIDE_EFFECTS.replace("torch.set", "# torch.set")
    (tmp_path / "effect_of_constructor.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("bench.core.budget.PROBE_EVERY", 3)  # restored at the end of the test
    with pytest.raises(ProcessStateError, match=r"in its constructor, replaces bench\.core\.budget\.PROBE_EVERY"):
        plugins.evaluator("effect_of_constructor:Effect")


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder `methods` of a user, in the current folder."""
    folder = tmp_path / "methods"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    before = list(methods.__path__)
    yield folder
    methods.__path__[:] = before
    for name in ("methods.own_grpo", "methods.own_parts"):
        sys.modules.pop(name, None)


def test_a_users_folder_methods_is_not_hidden_by_the_project(own_folder: Path) -> None:
    (own_folder / "own_grpo.py").write_text("from methods.own_parts import *\n" + EXTERNAL, encoding="utf-8")
    (own_folder / "own_parts.py").write_text("", encoding="utf-8")
    assert plugins.method("methods.own_grpo:External").paper == "none"
    sources = plugins.source("methods", "methods.own_grpo:External")
    assert {"methods/own_grpo.py", "methods/own_parts.py"} <= set(sources)
    with pytest.raises(BenchError, match=r"module 'methods\.missing' cannot be imported; run from the folder that"):
        plugins.method("methods.missing:External")


def test_a_users_module_with_a_name_of_the_project_is_refused(own_folder: Path) -> None:
    (own_folder / "cps.py").write_text(EXTERNAL, encoding="utf-8")
    with pytest.raises(
        BenchError, match=rf"{own_folder}/cps\.py has the name of a module of this project, methods\.cps"
    ):
        plugins.method("methods.cps:CPS")
    assert plugins.find("methods", "cps").__module__ == "methods.cps", "an entry point names the project's own"


def test_a_missing_module_of_a_plug_in_is_named_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needs_more.py").write_text(
        "import os\n\nimport no_such_package.parts\nfrom os import Thing\n", encoding="utf-8"
    )
    with pytest.raises(BenchError, match=rf"{tmp_path}/needs_more\.py, line 3, imports 'no_such_package', which is"):
        plugins.method("needs_more:Thing")


def test_a_missing_module_that_an_extra_brings_is_left_to_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    (tmp_path / "needs_extra.py").write_text("import diffusers\nfrom os import Thing\n", encoding="utf-8")
    with pytest.raises(ModuleNotFoundError) as caught:
        plugins.method("needs_extra:Thing")
    assert missing_extra(caught.value) == (
        "the package 'diffusers' is missing: install it with `pip install 'grpo-video-bench[run]'`."
    )
