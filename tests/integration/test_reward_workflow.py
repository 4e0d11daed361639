"""The example workflow that regression-tests a reward model, run step by step as a shell would on a runner."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from tests.helpers.paths import PROJECT

WORKFLOW = PROJECT / "examples" / "github" / "reward-regression.yml"
PAGE = PROJECT / "docs" / "how-to" / "regression-test-a-reward-model.md"


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    return content


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A user's repository with the reward model of the documentation's page, its weights, and `bench` on the PATH."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (tmp_path / "my_reward.py").write_text(code, encoding="utf-8")
    (tmp_path / "weights").mkdir()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(3, 8, 3), nn.SiLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 1))
    save_file(net.state_dict(), tmp_path / "weights" / "model.safetensors")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "bench"
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{PROJECT}" exec "{sys.executable}" -m bench.cli "$@"\n')
    command.chmod(0o755)
    return tmp_path


def step(workflow: dict[str, Any], name: str) -> str:
    """The script of a step."""
    steps = workflow["jobs"]["golden-scores"]["steps"]
    (script,) = [step["run"] for step in steps if step.get("name") == name]
    return str(script)


def run(script: str, workflow: dict[str, Any], repository: Path) -> tuple[int, str]:
    """Exit code and output of a step's script, with the workflow's variables and its shell."""
    assert workflow["defaults"]["run"]["shell"] == "bash"
    result = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],  # what `shell: bash` means there
        cwd=repository,
        env={**os.environ, **workflow["env"], "PATH": f"{repository / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


def test_the_workflow_writes_golden_scores_compares_them_and_notices_what_moved(
    workflow: dict[str, Any], repository: Path
) -> None:
    check = step(workflow, "Check the evaluator and compare with the golden scores")
    code, output = run(check, workflow, repository)
    assert code == 1
    assert "is not committed: start this workflow with write_golden once" in output

    code, output = run(step(workflow, "Make golden scores"), workflow, repository)
    assert code == 0, output
    assert (repository / workflow["env"]["GOLDEN"]).is_file()  # the path that the next step uploads

    code, output = run(check, workflow, repository)
    assert code == 0, output
    assert "golden scores: 7 clips reproduced" in output

    source = repository / "my_reward.py"
    source.write_text(source.read_text().replace("video[None] * 2 - 1", "video[None] * 2 - 1.001"))
    code, output = run(check, workflow, repository)
    assert code == 1
    assert "does not reproduce its golden scores" in output

    source.write_text(source.read_text().replace("- 1.001", "- 1").replace("[-1, 1]", "[-1, 1)"))
    code, output = run(check, workflow, repository)  # other settings: nothing is compared, which must fail here
    assert code == 1
    assert "no golden score was compared" in output

    source.write_text(source.read_text().replace("[-1, 1)", "[-1, 1]"))
    path = repository / "weights" / "model.safetensors"
    weights = {name: value + 0.01 for name, value in load_file(path).items()}
    save_file(weights, path)
    code, output = run(check, workflow, repository)
    assert code == 1
    assert "made with other files" in output
