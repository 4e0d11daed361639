"""The stored reference runs: where they are, and a copy of them, which is not compared with itself."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest

from bench.cli import main
from bench.cli.suite_records import recorded_suites
from bench.core.errors import BenchError
from bench.core.provenance import ROOT
from bench.report.data.stored import stored_folder
from bench.store.record import RUN

STORED = ROOT / "results" / "reference" / "nano"
AGAINST = {
    "nano": ["flow_grpo-tuned=flow_grpo-fixed", "dance_grpo-tuned=dance_grpo-fixed", "sage_grpo-tuned=sage_grpo-dual"],
    "nano_zoo": ["mix_grpo-tuned=mix_grpo-window5", "awm-tuned=awm-none", "diffusion_nft-tuned=diffusion_nft-none"],
}
"""Suite with the defaults to the rows that are compared with them; CPS chose its default."""


def test_a_copy_of_the_stored_runs_is_its_own_reference(tmp_path: Path) -> None:
    copy = tmp_path / STORED.name
    for path in STORED.rglob(RUN):
        (copy / path.parent.relative_to(STORED)).mkdir(parents=True)
        shutil.copy(path, copy / path.relative_to(STORED))
    assert stored_folder(STORED.name, own=copy) == copy
    assert stored_folder(STORED.name, own=STORED) == STORED
    (record, *_) = copy.glob(f"*/seed-*/{RUN}")
    record.write_text(record.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert stored_folder(STORED.name, own=copy) == STORED, "one run is another one"


def test_runs_that_are_not_stored_are_compared_with_those_that_are(tmp_path: Path) -> None:
    assert stored_folder(STORED.name, own=tmp_path) == STORED
    assert stored_folder(STORED.name, tmp_path / "reference", tmp_path) == tmp_path / "reference"


def test_prompts_are_compared_by_their_contents(tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / STORED.name)
    for name in ("train", "heldout"):
        shutil.copy(ROOT / "bench" / "prompts" / f"nano_{name}.txt", tmp_path / f"{name}.txt")
    overrides = [f"prompts.{name}={tmp_path / name}.txt" for name in ("train", "heldout")]
    args = argparse.Namespace(suite=STORED.name, overrides=overrides, results=tmp_path, command="table")
    (recorded,) = recorded_suites(args)
    assert recorded.suite.prompts.train == str(tmp_path / "train.txt")
    (tmp_path / "train.txt").write_text("another\nprompt\nand\nmore\n", encoding="utf-8")
    with pytest.raises(BenchError, match=r"made with other settings: the prompts are other ones"):
        recorded_suites(args)


@pytest.mark.parametrize("suite", AGAINST)
def test_the_stored_comparison_of_tuned_rows_with_defaults_is_what_the_command_prints(
    suite: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    folders = [f"results/reference/{name}" for name in ("nano_tuned", suite)]
    assert main(["compare", *folders, "--open", "--rows", *AGAINST[suite]]) == 0
    assert capsys.readouterr().out == Path(folders[0], f"against_{suite}.md").read_text(encoding="utf-8")
