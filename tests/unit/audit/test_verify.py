"""`bench verify`: whole records pass, and every check finds the error that is planted for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench import store
from bench.audit.verify import verify
from bench.audit.verify_tables import suites_of_tables
from bench.cli import main
from bench.core.provenance import ROOT
from bench.report.data.ablation import levels_of
from bench.report.data.loading import load_records
from bench.report.data.selection import rows_of
from bench.report.tables.ablation import build_ablation
from bench.report.tables.main import build_table
from bench.store.replay import REPLAY, ReplayRecord, write_replay
from bench.suite.schema import Suite
from bench.suite.stored import write_suite as write_suite_file
from tests.helpers.toy_records import CONFIG, ledger, write, write_suite

RUN = "cps-fixed/seed-1"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one suite with its table, written once."""
    folder = tmp_path_factory.mktemp("written") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        build_table(write_suite(folder / "toy"))
    return folder


@pytest.fixture
def results(written: Path, tmp_path: Path) -> Path:
    """A copy of the base and of one row that a test may spoil, without the table, which costs most of the time."""
    return shutil.copytree(written, tmp_path / "results", ignore=shutil.ignore_patterns("tables", "sage_grpo-dual"))


def lines(folder: Path, wrong: bool = True) -> list[str]:
    """What is found, without the folder's own name and the note on what older records do not have."""
    found = [finding for finding in verify([folder]).findings if finding.wrong == wrong]
    found = [finding for finding in found if not finding.text.startswith("older records: ")]
    return [finding.line.replace(f"{folder}/", "") for finding in found]


def rewrite(path: Path, **changes: Any) -> None:
    """A record with other values, its digests left as they are."""
    content = json.loads((path / store.RUN).read_text(encoding="utf-8"))
    (path / store.RUN).write_text(json.dumps(content | changes), encoding="utf-8")


def rescore(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Other scores, with the digest that belongs to them: a forgery that is whole in itself."""
    record, frame = store.read_run(path)
    store.write_run(path, record, change(frame))


# whole --------------------------------------------------------------------------------------------------------
def test_whole_records_pass(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(written)]) == 0
    note, summary = capsys.readouterr().out.splitlines()
    assert "older records: 74 checks of 7 runs need fields that they do not have (the gates" in note
    assert summary == "7 runs, 1 suites, 4 stored tables: all well, 1 to note"


def test_the_committed_reference_passes_for_its_controls() -> None:
    """Real records with their tables; `bench verify` on all of results/reference takes minutes."""
    report = verify([ROOT / "results" / "reference" / name for name in ("nano_control_gold", "nano_kl_pilot")])
    assert report.wrong == 0
    assert (report.runs, report.tables) == (22, 8)


def test_a_failed_run_is_a_finding_and_the_exit_code_1(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spent = ledger(Suite.model_validate(CONFIG), 6)
    write(results / "toy", "cps-fixed", 1, status="failed", error="reward is not finite.", ledger=spent)
    assert main(["verify", str(results)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3
    assert "the run failed (reward is not finite): delete the folder" in out[0]
    assert out[2].endswith("1 wrong, 1 to note")


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


# one run ------------------------------------------------------------------------------------------------------
Spoil = Callable[[Path], None]
BUDGET = json.loads(Suite.model_validate(CONFIG).model_dump_json())["budget"]
TOLD = Suite.model_validate(CONFIG).model_dump(mode="json")
SPENT = ledger(Suite.model_validate(CONFIG), 6)


def edit(name: str, old: str, new: str) -> Spoil:
    def spoil(path: Path) -> None:
        text = (path / name).read_text(encoding="utf-8")
        assert old in text
        (path / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return spoil


def cut_lines(path: Path) -> None:
    content = (path / store.TRAIN).read_text(encoding="utf-8").splitlines(keepends=True)
    (path / store.TRAIN).write_text("".join(content[:-1]), encoding="utf-8")


def put(name: str, text: str = "x") -> Spoil:
    return lambda path: (path / name).write_text(text, encoding="utf-8") and None


def move(path: Path) -> None:
    path.rename(path.with_name("seed-7"))


SPOILT: dict[str, tuple[Spoil, str]] = {
    "half a record": (lambda path: (path / store.RUN).write_text("{") and None, "run.json is not JSON"),
    "unknown key": (lambda path: rewrite(path, extras=1), "is not valid at extras"),
    "no scores": (lambda path: (path / store.SCORES).unlink(), "scores.parquet cannot be read"),
    "no scores named": (lambda path: rewrite(path, scores_digest=None), "has no scores"),
    "other scores": (lambda path: rewrite(path, scores_digest="0" * 16), "do not belong to their record"),
    "no record": (lambda path: (path / store.RUN).unlink(), "an unfinished run"),
    "checkpoint": (put(store.CHECKPOINT), "checkpoint.pt: a checkpoint beside a finished record"),
    "job": (put(store.JOB), "job.json: a job file for processes that have ended"),
    "half a file": (put(".run.json.12.tmp"), ".run.json.12.tmp: not a file of a run"),
    "sample of no failure": (put(store.OFFENDING), "offending_sample.safetensors: not a file of a run"),
    "replay": (put(REPLAY, "{}"), "replay.json is not valid"),
    "other folder": (move, "the record is of cps-fixed/seed-1"),
    "other start": (put(store.STARTED, "0123\n"), "was started with digest 0123"),
    "other inputs": (put(store.INPUTS, '{"seed": 1}\n'), "inputs.json has the digest"),
    "gate": (lambda path: rewrite(path, gates={"ratio_audit": {"passed": False}}), "the validity gate ratio_audit"),
    "nan": (lambda path: rewrite(path, extra={"a": [1.0, float("nan")]}), "at extra.a.1 that is not finite"),
    "budget": (lambda path: rewrite(path, budget=BUDGET | {"updates": 0}), "the budget is not one of this version"),
    "budget digest": (lambda path: rewrite(path, budget_digest="b"), "budget_digest is b"),
    "other budget": (edit(store.RUN, '"lr": 0.0003', '"lr": 0.003'), "not that of the record"),
    "updates": (lambda path: rewrite(path, updates_done=5), "5 updates are done, the budget has 6"),
    "ledger": (lambda path: rewrite(path, ledger=SPENT | {"nfe_rollout": 145}), "nfe_rollout is 145 after 6"),
    "calls": (lambda path: rewrite(path, ledger=SPENT | {"reward_calls": {"videoalign": 1}}), "reward_calls is 1"),
    "curve": (cut_lines, "does not hold the 6 updates"),
    "curve's ledger": (edit(store.TRAIN, '"nfe_rollout": 144', '"nfe_rollout": 145'), "has another ledger than"),
    "curve's nan": (edit(store.TRAIN, '"reward": 0.0', '"reward": NaN'), "line 1, holds a number at reward"),
    "curve's text": (edit(store.TRAIN, '{"update"', "{update"), "line 1, is not JSON"),
    "reward": (lambda path: rewrite(path, config={**TOLD, "reward": [1]}), "is not one of this version"),
    "budget's form": (lambda path: rewrite(path, config={**TOLD, "budget": 3}), "is not one of this version"),
    "calls' form": (lambda path: rewrite(path, ledger=SPENT | {"reward_calls": 3}), "reward_calls is 0"),
    "curve's form": (lambda path: (path / store.TRAIN).write_text("[1]\n") and None, "line 1, is not a JSON object"),
    "config": (edit(store.RUN, '"decode": "predicted_x0"', '"decode": "x0"'), "is not one of this version"),
}  # fmt: skip


BLOCKING = {
    *("half a record", "unknown key", "no scores", "no scores named", "other scores"),
    *("config", "reward", "budget's form", "nan"),
}
"""Errors after which the suite cannot be checked."""


@pytest.mark.parametrize("name", SPOILT)
def test_a_planted_error_of_a_run_is_found(results: Path, name: str) -> None:
    spoil, message = SPOILT[name]
    spoil(results / "toy" / RUN)
    found = lines(results)
    assert any(message in line for line in found), found
    unread = [line for line in lines(results, wrong=False) if "toy: not checked, because a run" in line]
    assert len(unread) == (name in BLOCKING)
    assert all("cps-fixed" in line for line in found), "only what was spoilt is told"


SCORES: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "no prompt": (lambda f: f[f["prompt_index"] != 35], "420 rows for 35 prompts, expected 432 = 36"),
    "no video": (lambda f: f[(f["prompt_index"] != 3) | (f["video"] != 1)], "432 = 36 prompts x 2 videos x 6"),
    "other video": (lambda f: f.assign(video=f["video"] + 1), "numbered from 0"),
    "other prompt": (lambda f: f.assign(prompt=f["prompt"] + "!"), "prompt 0 is '"),
    "no evaluator": (lambda f: f[f["evaluator"] != "gold"], "scores are by ['videoalign'], not by ['gold',"),
}  # fmt: skip


@pytest.mark.parametrize("name", SCORES)
def test_planted_gaps_of_scores_are_found(results: Path, name: str) -> None:
    change, message = SCORES[name]
    rescore(results / "toy" / RUN, change)
    assert any(message in line for line in lines(results)), lines(results)


def test_prompts_that_changed_since_are_a_note(tmp_path: Path) -> None:
    write(tmp_path / "toy", "cps-fixed", 0, prompts_digest="of another commit")
    (note,) = lines(tmp_path, wrong=False)
    assert lines(tmp_path) == []
    assert "only the numbers of prompts and videos are checked" in note
    rescore(tmp_path / "toy" / "cps-fixed" / "seed-0", lambda f: f[f["prompt_index"] != 3])
    assert verify([tmp_path]).wrong == 1


# suites and tables --------------------------------------------------------------------------------------------
def test_records_that_do_not_compare_are_found(results: Path) -> None:
    path = write(results / "toy", "cps-fixed", 1, backbone={"weights": "9"})
    assert path.is_dir()
    (line,) = lines(results)
    assert "do not compare: backbone fingerprint" in line


def test_a_copied_run_is_found(results: Path) -> None:
    digest = store.read_record(results / "toy" / RUN).digest
    rewrite(results / "toy" / "cps-fixed" / "seed-2", digest=digest)
    (line,) = lines(results)
    assert "cps-fixed/seed-1 and cps-fixed/seed-2 have one digest" in line


def test_two_seeds_with_one_curve_are_found(results: Path) -> None:
    shutil.copy(results / "toy" / RUN / store.TRAIN, results / "toy" / "cps-fixed" / "seed-2")
    (line,) = lines(results)
    assert "cps-fixed/seed-1 and cps-fixed/seed-2 have the same train.jsonl although their seeds differ" in line


def test_a_base_that_differs_between_suites_is_found(results: Path) -> None:
    other = write(results / "toy2", "base", None, {"suite": "toy2"})
    assert lines(results) == []
    rescore(other, lambda scores: scores.assign(value=scores["value"] + 0.1))
    (line,) = lines(results)
    assert "toy2/base: the base of toy2 has other scores than that of toy, although model, evaluators, " in line


@pytest.mark.parametrize("name", ["main.md", "main.csv", "main.tex", "main_narrow.tex"])
def test_an_edited_table_is_found(written: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(written, tmp_path / "results")
    path = folder / "toy" / "tables" / name
    text = path.read_text(encoding="utf-8")
    at = text.lower().index("sage")
    path.write_text(text[:at] + "cage" + text[at + 4 :], encoding="utf-8")
    (line,) = lines(folder)
    assert f"{name}: is not what `bench table` writes" in line
    assert f"from line {text[:at].count(chr(10)) + 1} on" in line


def test_a_table_that_quotes_other_replays_is_a_note(written: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(written, tmp_path / "results")
    record = store.read_record(copy / "toy" / RUN)
    replay = ReplayRecord(
        digest=record.digest,
        scores_digest=record.scores_digest,
        date="2026-01-01",
        hardware={"cpu": "another"},
        equal=True,
        training_gaps=0,
        first_gap=None,
        floors={},
        other=[],
    )
    table = copy / "toy" / "tables" / "main.md"
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace("- n = ", "- Nondeterminism floor: none\n- n = ", 1), encoding="utf-8")
    assert any("main.md: is not what `bench table` writes" in line for line in lines(copy)), "without any replay"
    table.write_text(text, encoding="utf-8")
    write_replay(copy / "toy" / RUN, replay)
    assert lines(copy) == []
    assert any("main.md: quotes other replays of these runs than are stored" in line for line in lines(copy, False))
    for forged in (text.replace("equal budget", "equal budgets", 1), text + "- 9.99\n"):
        assert forged != text
        table.write_text(forged, encoding="utf-8")
        assert any("main.md: is not what `bench table` writes" in line for line in lines(copy)), "beside a replay, too"


def test_a_half_written_file_of_a_killed_process_is_a_note(results: Path) -> None:
    (results / "toy" / RUN / ".checkpoint.pt.0123456789ab.tmp").write_text("half")
    assert lines(results) == []
    assert lines(results, wrong=False) == [
        f"note  toy/{RUN}/.checkpoint.pt.0123456789ab.tmp: a half-written checkpoint.pt of a killed process: "
        "delete it, the record is complete."
    ]


def test_a_table_without_one_of_its_runs_is_found(written: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(written, tmp_path / "results")
    shutil.rmtree(folder / "toy" / "sage_grpo-dual" / "seed-2")
    assert any("main.csv: is not what" in line for line in lines(folder))


def test_a_table_with_the_rows_of_the_stored_suite_passes(results: Path) -> None:
    """No record has this selection of rows and seeds in its own configuration."""
    rows = [{"method": "cps", "kl": "fixed"}, {"method": "flow_grpo", "kl": "fixed"}]
    suite = Suite.model_validate({**CONFIG, "rows": rows, "seeds": [0, 2]})
    build_table(results / "toy", rows_of(suite), suite.seeds)
    assert any("is not what `bench table` writes" in line for line in lines(results))
    write_suite_file(results / "toy", [suite])
    assert lines(results) == []


def test_a_study_is_checked_with_the_order_of_its_variants(tmp_path: Path) -> None:
    suites = {}
    for variant, decode in [("second", "predicted_x0"), ("first", "final_latent")]:
        settings = {"suite": f"toys/{variant}", "decode": decode, "rows": CONFIG["rows"][1:], "seeds": [0, 1]}
        folder = tmp_path / "toys" / variant
        write(folder, "base", None, settings)
        for seed in (0, 1):
            write(folder, "cps-fixed", seed, settings, lift=0.1)
        suite = Suite.model_validate({**CONFIG, **settings})
        suites[variant] = load_records(folder, rows_of(suite), suite.seeds)
    paths = build_ablation(tmp_path / "toys", levels_of(suites), "toys")
    assert lines(tmp_path) == []
    text = paths["ablation.csv"].read_text(encoding="utf-8")
    paths["ablation.csv"].write_text(text.replace("cps", "dps", 1), encoding="utf-8")
    (line,) = lines(tmp_path)
    assert "ablation.csv: is not what" in line


def test_a_copy_of_stored_runs_is_all_well_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their table quotes the stored controls, which the copy leaves behind, and has no reference beside it."""
    home = tmp_path / "reference"
    monkeypatch.setattr("bench.report.data.stored.STORED", home)
    write_suite(home / "toy", seeds=(0, 1))
    write_suite(home / "toy_control_shuffled", {"suite": "toy_control_shuffled", "shuffle_rewards": True}, (0, 1))
    build_table(home / "toy")
    text = (home / "toy" / "tables" / "main.md").read_text(encoding="utf-8")
    assert "Negative control toy_control_shuffled (our stored runs)" in text
    assert "Beside the stored reference" not in text
    copy = shutil.copytree(home / "toy", tmp_path / "elsewhere" / "toy")
    assert lines(home) == []
    assert lines(copy.parent) == []
    edited = text.replace("(our stored runs): 2 seeds", "(our stored runs): 3 seeds")
    (copy / "tables" / "main.md").write_text(edited, encoding="utf-8")
    assert any("main.md: is not what `bench table` writes" in line for line in lines(copy.parent))


def test_every_packaged_suite_is_known_by_its_name() -> None:
    assert {"nano", "nano_noise/native", "nano_kl"} <= suites_of_tables().keys()
