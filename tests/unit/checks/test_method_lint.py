"""`bench check` as a linter: every broken promise a line with file and line, exit code 1; a wrong name is 2."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.checks.methods import CHECKS
from bench.cli import main
from bench.core.process_state import fix_process_state
from bench.suite.load import load_suite
from bench.train.trial import trial_suite
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
    assert all(f"{len(CHECKS) + 1} checks passed" in line and "affine in v" in line for line in lines)


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
    assert lines[-2] == f"bad_a:Bad: {len(findings)} of {len(CHECKS) + 1} checks failed"
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
    assert lines[2:] == [f"sage_grpo: 2 of {len(CHECKS) + 2} checks failed"]


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
            "bad_c.py:3: construction: with its defaults the class cannot be constructed: method 'bad_c:A' is",
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
        (["pathlib:Path"], "pathlib is a module of Python itself"),
        (["cps", "budget.steps=4"], "budget.steps=4 overrides a setting of a suite: name the suite with --suite"),
        (["gold", "--train"], "gold is not a method: --train is for methods"),
        (["cps", "--suite", "none.yaml"], "suite none.yaml cannot be read"),
    ],
)
def test_a_wrong_name_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], folder: Path, words: list[str], sentence: str
) -> None:
    assert main(["check", *words]) == 2
    assert sentence in capsys.readouterr().err


WINDOW = """\
import torch
from dataclasses import dataclass
from typing import ClassVar
from methods.flow_grpo import FlowGRPO

@dataclass(frozen=True, kw_only=True)
class Window(FlowGRPO):
    paper: ClassVar[str] = "none"

    def stochastic(self, sigmas, update, rng):
        noisy = torch.zeros(len(sigmas) - 1, dtype=torch.bool)
        noisy[update : update + 5] = True
        return noisy

    def step_weights(self, sigmas):
        ones = torch.ones(len(sigmas) - 1)
        return ones

@dataclass(frozen=True, kw_only=True)
class Raises(Window):
    paper: ClassVar[str] = "none"

    def step_weights(self, sigmas):
        ones = torch.ones(len(sigmas) - 1)
        return ones / ones[99]
"""


def test_a_suite_is_checked_with_its_overrides_at_every_update(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "window_b.py").write_text(WINDOW)
    nano = str(PROJECT / "bench" / "configs" / "nano.yaml")
    words = ("window_b:Window", "--suite", nano)
    code, lines = check(capsys, *words, "budget.updates=5")
    assert code == 0, lines
    assert f"{len(CHECKS) + 2} checks passed" in lines[0]
    assert lines[0].endswith(", suite); division: closed")
    code, lines = check(capsys, *words, "budget.updates=6")
    assert code == 1
    assert lines[0].startswith("window_b.py:10: suite: in suite nano: Window has 4 steps to train at update 5, but")
    code, lines = check(capsys, "budget.updates=5", *words, "noise_policy={kind: matched_rss, rss: 50}")
    assert code == 1
    assert "lower rss" in lines[0]


def test_the_statement_that_raised_is_named(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "window_c.py").write_text(WINDOW)
    code, lines = check(capsys, "window_c:Raises")
    assert code == 1
    assert lines[0].startswith("window_c.py:25: step_weights: IndexError: index 99 is out of bounds")


def test_an_import_with_a_side_effect_is_a_finding(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "window_d.py").write_text(f"{WINDOW}\ntorch.set_num_threads(2)\n")
    code, lines = check(capsys, "window_d:Window")
    assert code == 1
    assert lines[0].startswith(
        "window_d.py:1: no-global-changes: method 'window_d:Window', when it is imported, changes"
    )
    assert lines[1] == "window_d:Window: cannot be checked further before that is fixed"
    fix_process_state()


def test_two_updates_are_trained_on_nano(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    nano = str(PROJECT / "bench" / "configs" / "nano.yaml")
    code, lines = check(capsys, "cps", "--train", "--suite", nano, "budget.steps=4", "budget.train_steps=2")
    assert code == 0
    number = r"-?[\d.e-]+"
    for update, line in enumerate(lines[1:3]):
        pattern = (
            rf"cps, nano: update {update}: reward {number}, gradient norm {number}, ratio - 1 at most 0, [\d.]+ s"
        )
        assert re.fullmatch(pattern, line), line
    assert re.fullmatch(r"cps, nano: 2 updates on nano, [\d.]+ s with loading", lines[3])
    assert not any(folder.iterdir())


@pytest.mark.parametrize(("minibatches", "group"), [(1, 4), (4, 4), (3, 6), (6, 6), (5, 5)])
def test_a_trial_keeps_the_optimizer_steps_per_rollout(minibatches: int, group: int) -> None:
    """With more than one the ratio leaves 1, and a loss differs from PPO's."""
    suite = load_suite("nano", [f"budget.minibatches={minibatches}", "budget.prompts=15", "budget.micro_batch=4"])
    budget = trial_suite("cps", suite).budget
    assert (budget.minibatches, budget.group_size, budget.micro_batch) == (
        minibatches,
        group,
        2 * group // minibatches,
    )


def test_a_method_that_cannot_train_is_a_finding(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "window_e.py").write_text(WINDOW.replace("update + 5", "update + 4"))
    code, lines = check(capsys, "window_e:Window", "--train")
    assert code == 1
    assert lines[1].startswith("window_e:Window: training: Window has 4 steps to train at update 0")


LOSS = """\
from dataclasses import dataclass
from typing import ClassVar
from methods.cps import CPS

@dataclass(frozen=True, kw_only=True)
class Loud(CPS):
    paper: ClassVar[str] = "none"

    def surrogate(self, logp_new, logp_old, adv):
        return 100 * super().surrogate(logp_new, logp_old, adv)
"""


def test_a_loss_of_another_scale_is_a_line_and_opens_the_division(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "loud.py").write_text(LOSS)
    code, lines = check(capsys, "loud:Loud")
    gradient = "the gradient of the loss is 400 at ratio 1 with the advantage -4"
    assert code == 1
    assert lines == [
        f"loud.py:9: scale: {gradient}; it is minus the advantage, to 1e-06, in the closed division: a row of this "
        "method stands in the open one.",
        f"loud:Loud: 1 of {len(CHECKS) + 1} checks failed; division: open ({gradient})",
    ]
