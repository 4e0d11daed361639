"""The built wheel holds what an installed command needs, and nothing else."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.helpers.paths import PROJECT

SOURCES = ("bench", "methods", "evaluators", "results/reference", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of the sources, with the installed setuptools."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, target = PROJECT / name, folder / "project" / name
        target.parent.mkdir(exist_ok=True)
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


def test_the_wheel_has_the_stored_runs_once_and_without_their_figures(wheel: zipfile.ZipFile) -> None:
    stored, folder = PROJECT / "results" / "reference", "bench/report/reference/"
    packed = {name.removeprefix(folder) for name in wheel.namelist() if name.startswith(folder)}
    files = {
        path.relative_to(stored)
        for name in ("run.json", "scores.parquet", "train.jsonl")
        for path in stored.rglob(name)
    }
    assert packed == {path.as_posix() for path in files}
    assert wheel.read(f"{folder}nano/base/run.json") == (stored / "nano" / "base" / "run.json").read_bytes()
    assert sum(info.compress_size for info in wheel.infolist()) < 40e6, "packages of 60 MB are a nuisance"


def test_an_installed_wheel_shows_the_stored_runs_and_is_not_written_to(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    """The wheel, unpacked as if installed, in a process of its own and an empty folder."""
    site, here = tmp_path / "site", tmp_path / "here"
    wheel.extractall(site)
    shutil.copytree(PROJECT / "results" / "reference" / "nano", here / "results" / "nano")
    for record in here.rglob("seed-*/run.json"):  # runs of the user's, in another folder than the stored ones
        record.write_text(record.read_text(encoding="utf-8") + "\n", encoding="utf-8")

    copy = here / "copy" / "nano"
    shutil.copytree(PROJECT / "results" / "reference" / "nano", copy)
    before = {path: path.stat().st_mtime_ns for path in site.rglob("*")}
    words = [["table", "nano"], ["verify", "copy"], ["nano", "vae"]]
    program = f"from bench.cli import main; print([main(words) for words in {words}])"
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[0, 0, 2]", done.stdout + done.stderr
    assert "## Beside the stored reference" in done.stdout
    assert "band for the seeds here" in done.stdout
    assert "stored tables: all well" in done.stdout
    assert "belongs to the installed package" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in site.rglob("*")} == before


def test_the_lock_of_uv_has_the_pinned_versions_and_names_only_the_public_registry() -> None:
    text = (PROJECT / "uv.lock").read_text(encoding="utf-8")
    lock = tomllib.loads(text)
    versions = {(each["name"], each.get("version")) for each in lock["package"]}
    pins = re.findall(
        r"^([\w.-]+)==([^\s;]+)", (PROJECT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert pins
    assert {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in pins} <= versions
    sources = {source for each in lock["package"] for source in each["source"].items()}
    assert sources == {("registry", "https://pypi.org/simple"), ("editable", ".")}
    (own,) = (each for each in lock["package"] if each["name"] == "grpo-video-bench")
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = {re.split(r"[\[=<>;!~]", each)[0].lower() for each in wanted} - {"grpo-video-bench"}
    assert {each["name"] for each in own["metadata"]["requires-dist"]} - {"grpo-video-bench"} == names


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
