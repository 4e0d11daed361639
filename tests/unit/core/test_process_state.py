"""The global state of a run: what is fixed, what no plug-in may change, and that our own plug-ins change nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.algorithm.update import StepUpdater
from bench.api import Method
from bench.core import process_state
from bench.core.errors import ProcessStateError
from bench.core.process_state import SETTINGS, fix_process_state, unchanged_process, unchanged_settings
from bench.train import trainer

OTHER: dict[str, Any] = {
    "num_threads": 2,
    "float32_matmul_precision": "high",
    "cudnn.conv.fp32_precision": "ieee",
    "cudnn.rnn.fp32_precision": "ieee",
    "default_dtype": "float64",
    "default_device": "meta",
    "deterministic_algorithms": 1,
    "numpy_errors": {"divide": "raise", "over": "warn", "under": "ignore", "invalid": "warn"},
    **dict.fromkeys([name for name in SETTINGS if name.endswith("fp32_precision") and "cudnn." not in name], "tf32"),
    "cudnn.fp32_precision": "tf32",
}
"""Another value of each setting that is not a switch."""


@pytest.fixture(autouse=True)
def fixed() -> Iterator[None]:
    """The state is that of a run before and after each test."""
    fix_process_state()
    yield
    fix_process_state()


def python(code: str) -> Any:
    """The last line that this code prints in a new process, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_new_process_has_this_state_but_for_its_threads_and_our_plug_ins_keep_it() -> None:
    changed, interop = python(
        "import json, torch\n"
        "torch.set_num_threads(2)\n"
        "from bench.core.process_state import fix_process_state, process_state\n"
        "new = process_state()\n"
        "fix_process_state()\n"
        "import bench.train.run\n"
        "from bench import plugins\n"
        "for group in ('methods', 'evaluators', 'backbones'):\n"
        "    for name in plugins.available(group):\n"
        "        plugins.find(group, name)\n"
        "fixed = process_state()\n"
        "changed = {name: [new[name], fixed[name]] for name in new if new[name] != fixed[name]}\n"
        "print(json.dumps([changed, fixed['interop_threads']]))"
    )
    assert changed == {"num_threads": [2, 1]}
    assert interop >= 1


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_fixed_and_watched(name: str) -> None:
    setting = SETTINGS[name]
    other = OTHER.get(name, not setting.value)
    with (
        pytest.raises(ProcessStateError, match=rf"^method 'x' changes .*({name} from| more:).* take out .*or restore"),
        unchanged_settings("method 'x'"),
    ):
        setting.write(other)
    assert process_state.process_state()[name] == other
    fix_process_state()
    assert {key: each.read() for key, each in SETTINGS.items()} == {key: each.value for key, each in SETTINGS.items()}


def test_environment_variables_of_libraries_are_recorded_without_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", "/home/someone/models")
    with (
        pytest.raises(ProcessStateError, match=r"changes environment from .*take out what sets environment"),
        unchanged_settings("evaluator 'x'"),
    ):
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    recorded = process_state.process_state()["environment"]
    assert recorded["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert "TORCH_HOME" not in recorded


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (StepUpdater, "__call__", lambda self, *inputs: None),
        (StepUpdater, "added", lambda self: None),
        (Method, "clip_range", 0.5),
        (trainer, "check_method", lambda *inputs: None),
        (trainer, "RATIO_TOLERANCE", 1.0),
        (torch, "randn", torch.rand),
    ],
)
def test_replaced_code_of_the_harness_is_named(
    owner: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = owner.__name__ if isinstance(owner, types.ModuleType) else f"{owner.__module__}.{owner.__qualname__}"
    with (
        pytest.raises(ProcessStateError, match=rf"^method 'x' replaces {path}\.{name}( and \d+ more)?: the harness"),
        unchanged_process("method 'x'"),
    ):
        monkeypatch.setattr(owner, name, value, raising=False)


def test_a_replaced_body_of_a_function_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(self: Any) -> None:
        return None

    with (
        pytest.raises(ProcessStateError, match=r"replaces bench\.train\.trainer\.Trainer\.save"),
        unchanged_process("x"),
    ):
        monkeypatch.setattr(trainer.Trainer.save, "__code__", other.__code__)


def test_nothing_is_reported_where_nothing_changes() -> None:
    with unchanged_process("x"), unchanged_settings("x"):
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.benchmark = False
