"""`bench table` on the screen: 100 columns, the verdict last; copies and rows that have changed are refused."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml

from bench import store
from bench.cli import main
from bench.core.provenance import ROOT
from bench.report.data import statistics
from bench.report.data.ablation import levels_of
from bench.report.data.loading import load_records, records_below
from bench.report.tables.ablation import AblationTable
from bench.report.tables.main import load_main_table
from bench.report.tables.screen import WIDTH, ablation_screen, main_screen
from tests.helpers.toy_records import CONFIG, write_suite

REFERENCE = ROOT / "results" / "reference"
TABLES = sorted(path.parent.parent.relative_to(REFERENCE).as_posix() for path in REFERENCE.glob("**/tables/main.md"))
ABLATIONS = sorted(
    path.parent.parent.relative_to(REFERENCE).as_posix() for path in REFERENCE.glob("**/tables/ablation.md")
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No flush to the disk, and a bootstrap of ten draws."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    for name in ("bootstrap_iqm", "bootstrap_improvement"):
        monkeypatch.setattr(f"bench.report.data.summary.{name}", partial(getattr(statistics, name), draws=10))


@pytest.fixture
def toy(tmp_path: Path) -> list[str]:
    """The arguments of `bench table` for a suite with records."""
    write_suite(tmp_path / "results" / "toy")
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return [str(path), "--results", str(tmp_path / "results")]


def too_wide(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(line) > WIDTH]


@pytest.mark.parametrize("name", TABLES)
def test_every_stored_table_fits_the_screen(name: str) -> None:
    folder = REFERENCE / name
    text = main_screen(load_main_table(folder), lambda seeds: f"bench run {folder.name}.yaml", f"results/{name}/x.md")
    assert too_wide(text) == []
    assert "## What these runs show" in text


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_stored_ablation_fits_the_screen(name: str) -> None:
    folder = REFERENCE / name
    variants = {"": folder} if records_below(folder) else {p.name: p for p in folder.iterdir() if records_below(p)}
    levels = levels_of({variant: load_records(path) for variant, path in variants.items()})
    text = ablation_screen(AblationTable(levels, folder.name), f"results/{name}/tables/ablation.md")
    assert too_wide(text) == []
    assert "## What these runs show" in text


def test_the_verdict_and_the_command_for_more_seeds_come_last(
    toy: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", *toy[:1], "seeds=[0, 1, 2]", "backbone.train.lora_rank=4", *toy[1:]]) == 2
    assert main(["table", toy[0], "seeds=[0, 1, 2]", *toy[1:]]) == 0
    out = capsys.readouterr().out
    assert [line for line in too_wide(out) if not line.startswith("    bench run") and toy[2] not in line] == []
    last = out.partition("## What these runs show")[2]
    assert "sage_grpo-dual is better than cps-fixed" in last.replace("\n  ", " ")
    assert last.rstrip().endswith(f"bench run {toy[2]}/toy seeds='[0, 1, 2, 3, 4]'")


def test_a_row_of_the_same_label_with_other_settings_is_refused(
    toy: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "rows=[{method: cps, kl: fixed, params: {eta: 0.5}, label: cps-fixed}, {method: sage_grpo, kl: dual}]"
    assert main(["table", toy[0], rows, *toy[1:]]) == 2
    err = capsys.readouterr().err
    assert "made with other settings: row cps-fixed.params.eta is None there and 0.5 here" in err


def test_a_copied_run_is_refused_everywhere(
    toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "results" / "toy"
    whole = shutil.copytree(suite, tmp_path / "whole")
    shutil.copytree(suite / "cps-fixed" / "seed-0", suite / "cps-fixed" / "seed-3")
    both = f"cps-fixed seed 0 is there twice: {suite}/cps-fixed/seed-0 and {suite}/cps-fixed/seed-3."
    assert main(["table", *toy]) == 2
    assert both in capsys.readouterr().err
    assert main(["compare", str(suite), str(whole)]) == 2
    assert both in capsys.readouterr().err
    assert main(["verify", str(suite)]) == 1
    assert f"WRONG {suite}: {both}" in capsys.readouterr().out


@pytest.mark.parametrize("place", [".ipynb_checkpoints/seed-0", "cps-fixed/.ipynb_checkpoints/seed-0", "cps-fixed/.x"])
def test_hidden_folders_are_passed_over(
    toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    suite = tmp_path / "results" / "toy"
    shutil.copytree(suite / "cps-fixed" / "seed-0", suite / place)
    assert main(["verify", str(suite)]) == 0
    assert capsys.readouterr().out.endswith("\n7 runs, 1 suites, 0 stored tables: all well, 1 to note\n")
    assert store.find(suite, f"**/{store.RUN}") == sorted(
        path for path in suite.rglob(store.RUN) if "/." not in path.relative_to(suite.parent).as_posix()
    )
