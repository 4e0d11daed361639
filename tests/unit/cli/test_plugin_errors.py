"""Mistakes in a plug-in of one's own are one sentence with file and line, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli import main

METHOD = """
from dataclasses import dataclass
from typing import ClassVar
from torch import Tensor
from bench.api import Gaussian, Method
from bench.flow import sde_step
{top}

@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    paper: ClassVar[str] = "none"
    eta: float = 0.5

    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        now, after = sigma.double(), sigma_next.double()
        return sde_step(x, v, sigma, sigma_next, self.{name}**2 * (now**3 - after**3) / 3)
{more}
"""
SILENT = """
    def stochastic(self, sigmas, update, rng):
        return sigmas[:-1] < 0
"""


def write(folder: Path, module: str, top: str = "", name: str = "eta", more: str = "") -> str:
    (folder / f"{module}.py").write_text(METHOD.format(top=top, name=name, more=more))
    return f"{module}:Mine"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", [["run", "nano", "--dry-run"], ["plan", "nano"]])
def test_an_exception_of_a_plug_in_names_its_file_and_line(
    folder: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = write(folder, f"misspelt_{command[0]}", name="eat")
    assert main([*command, f"rows=[{{method: '{name}', label: mine}}]"]) == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bench ")]
    assert (
        f"{folder}/misspelt_{command[0]}.py, line 16: AttributeError: 'Mine' object has no attribute 'eat'" in sentence
    )


def test_a_dry_run_notices_replaced_code_of_the_harness(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bench.algorithm import update

    before = update.Updater.__call__
    top = "from bench.algorithm import update\nupdate.Updater.__call__ = lambda *a: None"
    try:
        assert (
            main(["run", "nano", f"rows=[{{method: '{write(folder, 'replaces', top)}', label: mine}}]", "--dry-run"])
            == 2
        )
    finally:
        update.Updater.__call__ = before  # type: ignore[method-assign]
    assert "replaces bench.algorithm.update.Updater.__call__" in capsys.readouterr().err


def test_a_method_without_a_noisy_step_fails_the_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", write(folder, "silent", more=SILENT)]) == 1
    assert "noisy-steps: stochastic marks no step of any schedule noisy" in capsys.readouterr().out.replace(" ", " ")


def test_an_override_that_drops_what_an_earlier_one_adds_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nano", "seeds+=[9]", "seeds=[0]", "--dry-run"]) == 2
    assert "drops what 'seeds+=' before it adds: give it first" in capsys.readouterr().err
