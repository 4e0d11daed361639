"""`bench check` as a linter: every broken promise a line with file and line, exit code 1; a wrong name is 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.checks.methods import CHECKS
from bench.cli import main
from tests.helpers.paths import PROJECT

BAD = """\
import torch
from dataclasses import dataclass
from bench.api import Gaussian, Method
from bench.flow import euler

@dataclass(frozen=True, kw_only=True)
class Bad(Method):
    eta: float = 0.5

    def transition(self, x, v, sigma, sigma_next):
        return Gaussian(euler(x, v**2, sigma, sigma_next), (sigma / (1 - sigma)).sqrt().to(x))

    def step_weights(self, sigmas):
        return -torch.ones(len(sigmas) - 1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run the command in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def check(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    code = main(["check", *words])
    return code, capsys.readouterr().out.splitlines()


def test_sound_methods_get_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = check(capsys, "flow_grpo", "cps")
    assert code == 0
    assert [line.partition(":")[0] for line in lines] == ["flow_grpo", "cps"]
    assert all(f"{len(CHECKS)} checks passed" in line and "affine in v" in line for line in lines)


def test_every_broken_promise_is_a_line_and_the_next_method_is_checked(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "bad_a.py").write_text(BAD)
    code, lines = check(capsys, "bad_a:Bad", "cps")
    assert code == 1
    findings = [tuple(line.split(": ")[:2]) for line in lines[:-2]]
    assert findings[0] == ("bad_a.py:6", "paper")  # the class, from its decorator on
    assert ("bad_a.py:10", "transition") in findings
    assert ("bad_a.py:10", "affine-in-v") in findings
    assert ("bad_a.py:10", "no-noise-limit") in findings
    assert ("bad_a.py:13", "step_weights") in findings
    assert len({name for _, name in findings}) == len(findings)
    assert lines[-2] == f"bad_a:Bad: {len(findings)} of {len(CHECKS)} checks failed"
    assert lines[-1].startswith("cps: ")
    (line,) = [line for line in lines if ": transition: " in line]
    assert "std is not finite" in line
    assert line.endswith("[10 steps, sigma 1, 0.978, ...]")


def test_a_suite_adds_its_schedule(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    nano = PROJECT / "bench" / "configs" / "nano.yaml"
    (folder / "long.yaml").write_text(f"extends: {nano}\nbudget: {{steps: 50, shift: 9.0}}\n")
    code, lines = check(capsys, "sage_grpo", "--suite", "long.yaml")
    assert code == 1
    assert "sage_grpo.py:" in lines[0]
    assert ": transition: " in lines[0]
    assert "[50 steps, sigma 1, 0.998, ...]" in lines[0]
    assert "steps: SAGE-GRPO's first step has no variance" in lines[1]
    assert lines[2:] == [f"sage_grpo: 2 of {len(CHECKS)} checks failed"]


@pytest.mark.parametrize(
    ("module", "source", "line"),
    [
        (
            "bad_b",
            "from bench.api import Method\n\nclass A(Method):\n    group_size: int = 3\n",
            "bad_b.py:3: no-budget-field: method class bad_b:A declares the field 'group_size'",
        ),
        (
            "bad_c",
            "from bench.api import Method\n\nclass A(Method):\n    paper = 'none'\n",
            "bad_c.py:3: construction: with its defaults the class cannot be constructed: Can't instantiate abstract",
        ),
        (
            "bad_d",
            "from dataclasses import dataclass\nfrom bench.api import Method\n\n"
            "@dataclass\nclass A(Method):\n    pass\n",
            "bad_d.py:4: construction: TypeError: cannot inherit non-frozen dataclass",
        ),
        ("bad_e", "import torch\nclass A(:\n", "bad_e.py:2: construction: SyntaxError"),
    ],
)
def test_a_class_that_cannot_be_constructed_is_a_finding(
    capsys: pytest.CaptureFixture[str], folder: Path, module: str, source: str, line: str
) -> None:
    (folder / f"{module}.py").write_text(source)
    code, lines = check(capsys, f"{module}:A", "cps")
    assert code == 1
    assert lines[0].startswith(line)
    assert lines[1] == f"{module}:A: cannot be checked further before that is fixed"
    assert lines[2].startswith("cps: ")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["flow_gpro"], "did you mean 'flow_grpo'?"),
        (["nowhere:Thing"], "module 'nowhere' cannot be imported"),
        (["pathlib:Path"], "is not a class that derives from bench.api.Method"),
        (["cps", "--suite", "none.yaml"], "suite none.yaml cannot be read"),
    ],
)
def test_a_wrong_name_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], folder: Path, words: list[str], sentence: str
) -> None:
    assert main(["check", *words]) == 2
    assert sentence in capsys.readouterr().err
