"""The documents of `--json`, command by command, and what `bench run` says about runs that failed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from bench import store
from bench.cli import main
from bench.launch import jobs, run
from bench.launch.launchers import Outcome
from bench.suite.job import Job, TrainingRun
from tests.helpers import toy_records
from tests.helpers.nano_suite import NANO, TINY

ROWS = "rows=[{method: flow_grpo, kl: fixed}, {method: cps}]"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the records of a toy suite in results/toy, and its YAML."""
    folder = tmp_path_factory.mktemp("toy")
    toy_records.write_suite(folder / "results" / "toy")
    (folder / "toy.yaml").write_text(yaml.safe_dump(toy_records.CONFIG))
    return folder


def document(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    """The JSON document of a command, which is alone on stdout and has no NaN."""
    assert main([*words, "--json"]) == code
    out = capsys.readouterr().out
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} in the document"))


def suite_words(toy: Path) -> list[str]:
    return [str(toy / "toy.yaml"), "--results", str(toy / "results")]


def test_table(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = document(capsys, "table", *suite_words(toy))
    tables = toy / "results" / "toy" / "tables"
    assert result["written"] == [str(tables / f"main{end}") for end in (".md", ".csv", ".tex", "_narrow.tex")]
    lines = result["suites"]["toy"]
    assert [line["row"] for line in lines] == ["base", "sage_grpo-dual", "cps-fixed"]
    numbers = pd.read_csv(tables / "main.csv")["overall"]
    assert [line["overall"] for line in lines] == numbers.tolist()
    assert lines[0]["overall_delta"] is None


def test_written_files(toy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"curves.png": Path("a/curves.png"), "figures.md": Path("a/figures.md")}
    monkeypatch.setattr("bench.report.figures.suite.build_figures", lambda *_, **__: figures)
    assert document(capsys, "figures", *suite_words(toy)) == {"written": list(map(str, figures.values()))}
    monkeypatch.setattr("bench.report.page.page.build_report", lambda *_: Path("a/report.html"))
    assert document(capsys, "report", *suite_words(toy)) == {"written": ["a/report.html"]}


def test_verify(toy: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(toy / "results", copy)
    result = document(capsys, "verify", str(copy))
    assert (result["runs"], result["suites"], result["wrong"], result["replays"]) == (7, 1, 0, [])
    assert [finding["text"].partition(":")[0] for finding in result["findings"]] == ["older records"]
    lost = copy / "toy" / "base" / store.SCORES
    lost.unlink()
    result = document(capsys, "verify", str(copy), code=1)
    assert result["wrong"] >= 1
    assert any(str(lost.parent) in finding["path"] and finding["wrong"] for finding in result["findings"])


def test_compare(toy: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    copy, csv = tmp_path / "copy", tmp_path / "numbers.csv"
    shutil.copytree(toy / "results" / "toy", copy)
    result = document(capsys, "compare", str(toy / "results" / "toy"), str(copy), "--csv", str(csv))
    assert result["unequal_settings"] == {}
    assert {line["row"] for line in result["differences"]} == {"base", "sage_grpo-dual", "cps-fixed"}
    assert all(line["diff"] == 0 for line in result["differences"])
    assert len(pd.read_csv(csv)) == len(result["differences"])


def test_check_and_assets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (plugin,) = document(capsys, "check", "cps")["plugins"]
    assert (plugin["name"], plugin["passed"]) == ("cps", True)
    assert plugin["lines"][-1].startswith("cps: ")
    assert document(capsys, "assets")["assets"]["VideoReward"]["hub"]
    needs = document(capsys, "assets", str(NANO))["needs"]
    assert needs[0]["use"] == "backbone.checkpoint"
    assert all(need["good"] for need in needs)


def test_a_dry_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["run", str(NANO), *TINY, ROWS, "--results", str(tmp_path), "--dry-run"]
    (suite,) = document(capsys, *words)["suites"]
    assert suite["suite"] == "tiny"
    assert [each["label"] for each in suite["runs"]] == ["base", "flow_grpo-fixed seed 0", "cps-none seed 0"]
    assert {each["status"] for each in suite["runs"]} == {"to do"}
    assert suite["each_row_spends"]["nfe_rollout"] == 32


def test_runs_that_failed_are_named_at_the_end(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_jobs(pending: list[Job], workloads: Any, launch: Any, outcome: Outcome, folder: Path) -> None:
        """The base finishes, the first row diverges, and the second one meets a full disk."""
        for job in pending:
            if isinstance(job, TrainingRun) and job.row_name == "cps-none":
                outcome.errors += 1
                outcome.reasons[job.label] = "the disk is full"
                continue
            failed = isinstance(job, TrainingRun)
            seconds = {"load": 1.0, "evaluate": 2.5}
            record = toy_records.make_record(
                job.suite.model_dump(mode="json"),
                "flow_grpo-fixed" if failed else "base",
                0 if failed else None,
                digest=job.digest,
                status="failed" if failed else "finished",
                error="a reward is NaN" if failed else None,
                seconds=seconds,
            )
            store.write_text(job.folder / store.STARTED, job.digest + "\n")
            store.write_run(job.folder, record, None if failed else toy_records.scores(job.suite, "base", None, 0.0))
            outcome.failed += failed
            outcome.finished += not failed
            if failed:
                outcome.reasons[job.label] = "a reward is NaN"

    monkeypatch.setattr(run, "run_jobs", run_jobs)
    monkeypatch.setattr(jobs, "source_digest", lambda: "these sources")
    words = ["run", str(NANO), *TINY, ROWS, "--results", str(tmp_path)]
    assert main([*words, "--quiet"]) == 2
    folder, lines = tmp_path / "tiny", capsys.readouterr().err.splitlines()
    assert lines == [
        "1 run(s) failed and 1 stopped with an error:",
        f"  flow_grpo-fixed seed 0 in {folder / 'flow_grpo-fixed' / 'seed-0'}: a reward is NaN",
        f"  cps-none seed 0 in {folder / 'cps-none' / 'seed-0'}: the disk is full",
        lines[-1],
    ]
    assert lines[-1].startswith(f"records: {folder}; print the table with: bench table ")
    result = document(capsys, *words, code=2)
    assert result["outcome"] == {"finished": 1, "failed": 1, "error": 1}
    assert [(each["status"], each["reason"]) for each in result["runs"]] == [
        ("finished", None),
        ("failed", "a reward is NaN"),
        ("error", "the disk is full"),
    ]
    assert math.isclose(result["runs"][0]["seconds"], 3.5)
    assert result["runs"][2]["seconds"] is None
    assert all(len(each["digest"]) == 16 and each["folder"].startswith(str(folder)) for each in result["runs"])
