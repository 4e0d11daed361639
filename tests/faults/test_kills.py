"""`bench run` killed by SIGKILL at random moments: the same command goes on, and ends in the same bits.

FAULT_KILLS sets the number of kills (default 3; `make faults` does 40) and FAULT_SEED their moments. The tests marked
`long` are left out of the normal test run.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from bench import store
from bench.audit.verify import verify
from tests.helpers.commands import finish, run, start, toy_command

KILLS = int(os.environ.get("FAULT_KILLS", "3"))
SEED = int(os.environ.get("FAULT_SEED", "0"))
SLOW = {"TOY_SECONDS": "0.1"}
"""An update takes a second or two, so that most kills fall into the training."""
RUNS = ("base", "cps-dual/seed-0", "cps-dual/seed-1")


def signature(folder: Path) -> dict[str, object]:
    """What must be equal: scores, weights and the training curve of every run."""
    content: dict[str, object] = {}
    for name in RUNS:
        record, _ = store.read_run(folder / "results" / "toy" / name)
        lines = store.read_lines(folder / "results" / "toy" / name / store.TRAIN)
        timeless = [{k: v for k, v in line.items() if k not in ("seconds", "ledger")} for line in lines]
        policy = folder / "results" / "toy" / name / store.POLICY
        weights = {k: v.tolist() for k, v in load_file(policy).items()} if policy.exists() else None
        content[name] = (record.status, record.scores_digest, weights, timeless)
    return content


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The signature of runs that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    code, output = run(toy_command("run", folder, "seeds=[0, 1]"), folder)
    assert code == 0, output
    return signature(folder)


def kill_one(process: subprocess.Popen[str], victim: str) -> None:
    """Kill the whole group, the parent alone, or one worker."""
    workers = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    with contextlib.suppress(ProcessLookupError):
        if victim == "group":
            os.killpg(process.pid, signal.SIGKILL)
        elif victim == "parent" or not workers:
            os.kill(process.pid, signal.SIGKILL)
        else:
            os.kill(workers[-1], signal.SIGKILL)


def wait_for_line(folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a training has begun."""
    while process.poll() is None and not list(folder.glob("results/toy/*/*/" + store.TRAIN)):
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_runs_resume_to_the_same_bits(tmp_path: Path, whole: dict[str, object]) -> None:
    moments = random.Random(SEED)
    command, killed = toy_command("run", tmp_path, "seeds=[0, 1]"), 0
    for number in range(KILLS):
        if all(store.is_complete(tmp_path / "results" / "toy" / name) for name in RUNS):
            for name in RUNS:  # again from the beginning
                (tmp_path / "results" / "toy" / name / store.RUN).unlink()
        process = start(command, tmp_path, SLOW)
        if number % 2 == 0:
            wait_for_line(tmp_path, process)
        time.sleep(moments.uniform(0, 4))
        if process.poll() is None:
            kill_one(process, ("group", "parent", "worker")[number % 3])
            killed += 1
        code, output = finish(process)
        assert "Traceback" not in output, output
        assert code in (0, 2, -signal.SIGKILL)
    code, output = run(command, tmp_path)
    assert code == 0, output
    assert signature(tmp_path) == whole
    assert not list(tmp_path.rglob("*.tmp"))
    report = verify([tmp_path / "results"])
    assert not report.wrong, report
    print(f"{killed} kills survived")
    assert killed


@pytest.mark.long
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    process = start(toy_command("run", tmp_path, "seeds=[0, 1]"), tmp_path, {"TOY_SECONDS": "5"})
    wait_for_line(tmp_path, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    finish(process)


def test_a_second_terminal_waits_for_the_runs_of_the_first(tmp_path: Path) -> None:
    command = toy_command("run", tmp_path, "seeds=[0, 1, 2, 3]")
    first = start(command, tmp_path, SLOW)
    wait_for_line(tmp_path, first)
    code, output = run(command, tmp_path, SLOW)
    assert code == 0, output
    assert "waiting for another process" in output
    code, output = finish(first)
    assert code == 0, output
    starts = [line for line in output.splitlines() if "error" in line]
    assert not starts


@pytest.mark.long
def test_what_a_killed_first_terminal_leaves_is_done_by_the_second(tmp_path: Path, whole: dict[str, object]) -> None:
    command = toy_command("run", tmp_path, "seeds=[0, 1]")
    first = start(command, tmp_path, {"TOY_SECONDS": "1"})
    wait_for_line(tmp_path, first)
    second = start(command, tmp_path)
    time.sleep(1)
    os.killpg(first.pid, signal.SIGKILL)
    finish(first)
    code, output = finish(second)
    assert code == 0, output
    assert signature(tmp_path) == whole
