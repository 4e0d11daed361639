"""`bench run` where the results cannot be written, go away, or lie at odd places."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import store
from tests.helpers.commands import finish, run, start, toy_command

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, which needs root")


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own with as many KiB as the test's parameter says."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def one_sentence(output: str) -> str:
    """The only line of a command that was refused."""
    (line,) = [line for line in output.splitlines() if line.startswith("bench run: ")]
    return line


def test_results_that_are_a_file(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("x")
    code, output = run(toy_command("run", tmp_path), tmp_path)
    assert code == 2
    assert "a file is where a folder must be" in one_sentence(output)
    assert "loading" not in output


@ROOT_ONLY
@pytest.mark.parametrize("small_disk", [100], indirect=True)
def test_results_on_a_read_only_disk(tmp_path: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    command = [*toy_command("run", tmp_path)[:-1], str(small_disk)]
    code, output = run(command, tmp_path)
    assert code == 2
    assert "Read-only file system" in one_sentence(output)
    assert "--results" in one_sentence(output)


@ROOT_ONLY
@pytest.mark.long
@pytest.mark.parametrize("small_disk", [8, 24, 40, 60, 100, 200], indirect=True)
def test_a_full_disk_stops_runs_and_the_same_command_goes_on(tmp_path: Path, small_disk: Path) -> None:
    command = [*toy_command("run", tmp_path)[:-1], str(small_disk)]
    code, output = run(command, tmp_path)
    if code != 0:
        assert code == 2
        assert "no space left on the disk" in output
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    code, output = run(command, tmp_path)
    assert code == 0, output
    assert store.is_complete(small_disk / "toy" / "base")
    assert store.is_complete(small_disk / "toy" / "cps-dual" / "seed-0")


def test_a_folder_that_is_removed_while_its_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "toy" / "cps-dual" / "seed-0"
    process = start(toy_command("run", tmp_path), tmp_path, {"TOY_SECONDS": "0.3"})
    while process.poll() is None and not (folder / store.TRAIN).exists():
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)
    code, output = finish(process)
    assert "Traceback" not in output, output
    assert code == 2
    assert "run the same command again" in output
    assert not store.is_complete(folder)
    code, output = run(toy_command("run", tmp_path), tmp_path)
    assert code == 0, output
    assert [line["update"] for line in store.read_lines(folder / store.TRAIN)] == list(range(8))


@pytest.mark.long
@pytest.mark.parametrize(
    "env",
    [
        pytest.param({"HOME": None, "XDG_CACHE_HOME": None, "MPLCONFIGDIR": None}, id="no HOME"),
        pytest.param({"HOME": "/nowhere/at/all"}, id="HOME does not exist"),
        pytest.param({"TMPDIR": "/nowhere/at/all"}, id="TMPDIR does not exist"),
    ],
)
def test_an_odd_environment(tmp_path: Path, env: dict[str, str | None]) -> None:
    code, output = run(toy_command("run", tmp_path, "budget.updates=1"), tmp_path, env)
    assert code == 0, output
    code, output = run(toy_command("table", tmp_path, "budget.updates=1"), tmp_path, env)
    assert code == 0, output


@pytest.mark.long
@ROOT_ONLY
@pytest.mark.parametrize("small_disk", [4], indirect=True)
def test_no_space_in_the_folder_of_temporary_files(tmp_path: Path, small_disk: Path) -> None:
    (small_disk / "full").write_bytes(b"x" * 4096)
    code, output = run(toy_command("run", tmp_path, "budget.updates=1"), tmp_path, {"TMPDIR": str(small_disk)})
    assert code == 0, output


@pytest.mark.long
def test_paths_with_blanks_and_unicode(tmp_path: Path) -> None:
    folder = tmp_path / "two words, ünï 視頻 'quoted' [x]"
    folder.mkdir()
    command = toy_command("run", tmp_path, "budget.updates=1")
    code, output = run([*command[:-1], str(folder / "my results")], folder)
    assert code == 0, output
    command = toy_command("table", tmp_path, "budget.updates=1")
    code, output = run([*command[:-1], str(folder / "my results")], folder)
    assert code == 0, output
