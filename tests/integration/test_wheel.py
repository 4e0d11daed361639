"""The built wheel holds what an installed command needs, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.helpers.paths import PROJECT

SOURCES = ("bench", "methods", "evaluators", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of the sources, with the installed setuptools."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, target = PROJECT / name, folder / "project" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(folder / "project")], check=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_has_every_module_and_no_tool_or_test(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if name.endswith(".py")}
    packages = ("bench", "methods", "evaluators")
    ours = {path.relative_to(PROJECT).as_posix() for name in packages for path in (PROJECT / name).rglob("*.py")}
    assert packed == ours


def test_the_wheel_has_the_data_that_commands_read(wheel: zipfile.ZipFile) -> None:
    packed = set(wheel.namelist())
    folders = {
        "bench/configs": "*.yaml",
        "bench/prompts": "*.txt",
        "bench/nano/checkpoints": "*",
        "bench/report/page/templates": "*",
        "bench/report/published": "*.csv",
        "bench/suite": "*.yaml",
        "bench/backbones": "*.yaml",
        "evaluators/golden": "*.json",
    }
    for folder, pattern in folders.items():
        files = [path for path in (PROJECT / folder).rglob(pattern) if path.is_file()]
        assert files, folder
        missing = {path.relative_to(PROJECT).as_posix() for path in files} - packed
        assert not missing, missing


def test_the_wheel_names_the_command_and_the_plug_ins(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    text = wheel.read(name).decode()
    for line in (
        "bench = bench.cli:main",
        "sage_grpo = methods.sage_grpo:SAGEGRPO",
        "[bench.backbones]",
        "dual = bench.algorithm.kl:DualKL",
    ):
        assert line in text
