"""The table of a user study, and `bench votes`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from bench.cli import main
from bench.report.data.loading import load_records
from bench.report.data.votes import votes_digest
from bench.report.tables.screen import WIDTH
from tests.helpers import toy_records
from tests.helpers.raters import by_order, keep_videos, vote_list, votes, write_votes


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results/toy, whose runs keep videos, and the votes of four raters, of whom one fails."""
    folder = tmp_path_factory.mktemp("study")
    suite = toy_records.write_suite(folder / "results" / "toy")
    for run in load_records(suite).runs:
        keep_videos(run.folder, run.record.row, "" if run.record.seed is None else str(run.record.seed))
    own = votes_digest(load_records(suite).runs)
    for number, alias in enumerate(("anna", "ben", "cem")):
        write_votes(folder, votes(alias, by_order(), vote=number, digest=own))
    write_votes(
        folder, votes("left", lambda *_: "left", vote=0, shown=vote_list(0, length=9), digest=own, seconds=0.4)
    )
    return folder


def files(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("votes-*.csv"))]


def test_the_table_stands_in_the_suites_folder(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results)
    assert main(["votes", *files(results)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= WIDTH
    tables = results / "results" / "toy" / "tables"
    stored = {end: (tables / f"user_study.{end}").read_text(encoding="utf-8") for end in ("md", "csv", "tex")}
    for title in ("Share of pairs won, %", "Row against row, % won", "Strength, log odds", "Checks"):
        assert f"## {title}\n" in text
        assert f"## {title}\n" in stored["md"]
    assert "SAGE-GRPO, dual KL" in text
    assert "Failed on identical pairs (at most 50 % of the answers are ties): `left`; numbers" in stored["md"]
    assert "Answers within 1 s after the pair was shown: `left` 27; they are counted." in stored["md"]
    assert "Pairs of lists shorter than the longest (12): `left` 9 (list 0)." in stored["md"]
    assert set(pd.read_csv(tables / "user_study.csv")["raters_used"]) == {"all raters", "without raters who failed"}
    assert stored["tex"].count(r"\begin{table*}") == stored["tex"].count(r"\end{table*}") >= 9
    assert main(["votes", *reversed(files(results)), "--suite", str(tables.parent)]) == 0
    assert {end: (tables / f"user_study.{end}").read_text(encoding="utf-8") for end in stored} == stored


def test_the_published_study_stands_by_itself(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["votes", *files(results), "--suite", str(results / "results" / "toy")]) == 0
    own, _, published = capsys.readouterr().out.partition("## The published study")
    assert "nano's clips are not the published model's" in " ".join(published.split())
    assert "29 raters, 32 prompts" in published
    assert "85.9" in published
    assert "85.9" not in own


def test_without_records_votes_are_counted_and_no_file_is_written(
    results: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["votes", *files(results), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["written"] == []
    assert list(tmp_path.iterdir()) == []
    line = next(each for each in document["shares"] if (each["row"], each["against"]) == ("base", "cps-fixed"))
    assert line["question"] == "visual"
    assert 0 < line["share"] <= 1
    assert main(["votes", *files(results)]) == 0
    assert "No records of suite toy: the votes are not checked" in " ".join(capsys.readouterr().out.split())


def test_a_row_without_votes_is_named(results: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    suite = results / "results" / "toy"
    shown = vote_list(0, rows=("base", "cps-fixed"))
    path = write_votes(tmp_path, votes("dora", by_order(), shown=shown, digest=votes_digest(load_records(suite).runs)))
    copy = tmp_path / "toy"
    shutil.copytree(suite, copy)
    assert main(["votes", str(path), "--suite", str(copy)]) == 0
    text = capsys.readouterr().out
    assert "Without votes, so not in a table: SAGE-GRPO, dual KL." in text
    assert "[n/a]" in text, "one rater: no interval"


def test_a_wrong_file_ends_with_one_sentence(
    results: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write_votes(tmp_path, votes("anna", by_order()))
    assert main(["votes", str(path), "--suite", str(results / "results" / "toy")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"bench votes: {path}:2: a vote on the report with digest 0000000000000000")
    assert error.count("\n") == 1
