"""A folder of another run: what differs is named, and `--overwrite` starts exactly these runs anew."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import store
from bench.core.errors import BenchError
from bench.core.world import SINGLE_PROCESS
from bench.launch import jobs as jobs_module
from bench.launch import run as run_module
from bench.launch.jobs import copy_finished, suite_jobs, unfinished
from bench.launch.launchers import Outcome
from bench.launch.run import describe, run_suites
from bench.launch.torchrun import read_job, write_job
from bench.store.attempts import ATTEMPTS
from bench.suite import inputs
from bench.suite.job import Job
from bench.suite.load import load_suite
from bench.suite.prepared import prepare
from bench.suite.schema import Suite
from bench.train.run import execute
from tests.helpers.toy_records import write as write_toy_run
from tests.helpers.toy_suite import run_alone, toy_suite

METHOD = """
from dataclasses import dataclass
import loop_helper
from methods.cps import CPS

@dataclass(frozen=True, kw_only=True)
class Mine(CPS):
    paper = "none"
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """The toy with a row of the user's own method, which lies in the current folder."""
    (tmp_path / "loop_grpo.py").write_text(METHOD, encoding="utf-8")
    (tmp_path / "loop_helper.py").write_text("x = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("loop_grpo", "loop_helper"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    suite = toy_suite(tmp_path)
    rows = [suite.rows[0].model_copy(update=names) for names in ({"label": "cps"}, {"label": "mine"})]
    rows[1] = rows[1].model_copy(update={"method": "loop_grpo:Mine"})
    budget = suite.budget.__class__(**{**vars(suite.budget), "updates": 1})
    return suite.model_copy(update={"rows": rows, "budget": budget})


def started(suite: Suite, results: Path) -> list[Job]:
    """The jobs of the suite, whose folders are marked as begun."""
    jobs = suite_jobs(prepare(suite), results, "harness")
    for job in jobs:
        job.folder.mkdir(parents=True)
        store.start_run(job.folder, job.digest, job.inputs)
    return jobs


def sentence(suite: Suite, results: Path, harness: str = "harness") -> str:
    """Why the runs of the suite are refused."""
    with pytest.raises(BenchError) as caught:
        unfinished(suite_jobs(prepare(suite), results, harness))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_inputs_are_small_json_and_have_the_digest(suite: Suite, tmp_path: Path) -> None:
    for job in started(suite, tmp_path / "results"):
        path = job.folder / store.INPUTS
        assert jobs_module.digest(json.loads(path.read_text(encoding="utf-8"))) == job.digest
        assert path.stat().st_size < 10_000


def test_the_processes_of_a_run_get_its_inputs(suite: Suite, tmp_path: Path) -> None:
    for job in suite_jobs(prepare(suite), tmp_path / "results", "harness"):
        again, *_ = read_job(write_job(replace(job, overwrite=True)))
        assert again == replace(job, folder=job.folder.resolve())
        assert (again.inputs, again.overwrite, again.source_digest) == (job.inputs, True, job.source_digest)


def test_an_edited_method_is_named_and_only_its_runs_are_concerned(suite: Suite, tmp_path: Path) -> None:
    results = tmp_path / "results"
    started(suite, results)
    (tmp_path / "loop_grpo.py").write_text(METHOD + "\n# a comment\n", encoding="utf-8")
    assert len(unfinished(suite_jobs(prepare(suite), results, "harness"))) == 3
    (tmp_path / "loop_grpo.py").write_text(METHOD + "    eta: float = 0.5\n", encoding="utf-8")
    assert sentence(suite, results) == (
        f"{results}/toy/mine/seed-0 holds another run: methods file {tmp_path}/loop_grpo.py changed. Start anew with "
        "--overwrite, give this suite a name of its own with suite=NAME, or write elsewhere with --results."
    )


def test_an_edited_import_of_a_method_is_named(suite: Suite, tmp_path: Path) -> None:
    started(suite, tmp_path / "results")
    (tmp_path / "loop_helper.py").write_text("import loop_more\n", encoding="utf-8")
    (tmp_path / "loop_more.py").write_text("x = 1\n", encoding="utf-8")
    assert f"methods file {tmp_path}/loop_helper.py changed; methods file {tmp_path}/loop_more.py is new." in sentence(
        suite, tmp_path / "results"
    )


def test_another_version_of_a_package_and_other_sources_are_named(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "package_versions", lambda: {"av": "14.0", "peft": None, "torch": "2"})
    started(suite, tmp_path / "results")
    monkeypatch.setattr(inputs, "package_versions", lambda: {"av": "15.1", "peft": "0.1", "torch": "2"})
    text = sentence(suite, tmp_path / "results", "edited")
    assert f"{tmp_path}/results/toy/base and 2 more folder(s) hold other runs: the harness's sources changed; " in text
    assert "av 14.0 there, 15.1 here; peft not installed there, 0.1 here." in text


def test_a_checkpoint_a_prompt_list_and_settings_are_named(suite: Suite, tmp_path: Path) -> None:
    prompts = tmp_path / "train.txt"
    prompts.write_text("one\ntwo\nthree\n", encoding="utf-8")
    suite = suite.model_copy(update={"prompts": suite.prompts.model_copy(update={"train": str(prompts)})})
    started(suite, tmp_path / "results")
    prompts.write_text("one\ntwo\nfour\n", encoding="utf-8")
    (tmp_path / "weights" / "a.bin").write_bytes(b"1")
    text = sentence(suite.model_copy(update={"decode": "final_latent"}), tmp_path / "results")
    assert "decode is predicted_x0 there and final_latent here; " in text
    assert f"prompt list {prompts} changed; checkpoint {tmp_path / 'weights'}, file a.bin changed." in text


def test_the_same_files_elsewhere_are_the_same_run(suite: Suite, tmp_path: Path) -> None:
    first = started(suite, tmp_path / "results")
    (tmp_path / "moved").mkdir()
    moved = suite.model_copy(
        update={"backbone": suite.backbone.model_copy(update={"checkpoint": f"{tmp_path}/moved"})}
    )
    assert [job.digest for job in suite_jobs(prepare(moved), tmp_path / "results", "harness")] == [
        job.digest for job in first
    ]


def test_a_new_file_beside_the_methods_changes_no_run(suite: Suite, tmp_path: Path) -> None:
    first = started(suite, tmp_path / "results")
    (tmp_path / "other_grpo.py").write_text("x = 1\n", encoding="utf-8")
    assert unfinished(suite_jobs(prepare(suite), tmp_path / "results", "harness")) == first


def test_many_changes_are_counted(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "package_versions", lambda: {f"package{n}": "1" for n in range(6)})
    started(suite, tmp_path / "results")
    monkeypatch.setattr(inputs, "package_versions", lambda: {f"package{n}": "2" for n in range(6)})
    assert "; package3 1 there, 2 here; 2 more." in sentence(suite, tmp_path / "results")


def test_an_older_folder_without_inputs_gives_both_digests(suite: Suite, tmp_path: Path) -> None:
    jobs = started(suite, tmp_path / "results")
    (jobs[0].folder / store.INPUTS).unlink()
    text = sentence(suite, tmp_path / "results", "edited")
    assert f"its digest is {jobs[0].digest}, this run's is " in text
    assert "the weights or the sources changed). Start anew with --overwrite" in text


def run_here(jobs: Sequence[Job], costs: Any, launch: Any, outcome: Outcome, folder: Path) -> None:
    """In place of the launchers: all runs in this process."""
    for job in jobs:
        outcome.finished += run_alone(job, SINGLE_PROCESS) == "finished"


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "run_jobs", run_here)
    monkeypatch.setattr(jobs_module, "source_digest", lambda: "harness")


@pytest.mark.usefixtures("in_this_process")
def test_overwrite_starts_exactly_the_other_runs_anew(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    assert run_suites([prepare(suite)], results).finished == 3
    assert load_suite(results / "toy") == suite
    folder = results / "toy" / "mine" / "seed-0"
    (folder / "notes.txt").write_text("my own\n", encoding="utf-8")
    kept = {path: path.stat().st_mtime_ns for row in ("base", "cps") for path in (results / "toy" / row).rglob("*")}
    before = store.read_record(folder)

    (tmp_path / "loop_grpo.py").write_text(METHOD + "    eta: float = 0.5\n", encoding="utf-8")
    capsys.readouterr()
    with pytest.raises(BenchError, match=r"loop_grpo\.py changed"):
        run_suites([prepare(suite)], results)
    jobs = suite_jobs(prepare(suite), results, "harness")
    assert "mine seed 0                      anew" in describe(prepare(suite), jobs, overwrite=True)
    (pending,) = unfinished(jobs, overwrite=True)
    assert store.read_record(folder) == before, "nothing is removed before the run begins"

    assert run_suites([prepare(suite)], results, overwrite=True).finished == 1
    err = capsys.readouterr().err
    assert f"{folder} is done anew: it holds another run (methods file {tmp_path}/loop_grpo.py changed)" in err
    assert "2 of 3 runs are finished already" in err
    after = store.read_record(folder)
    assert after.digest == pending.digest != before.digest
    assert [line["update"] for line in store.read_lines(folder / store.TRAIN)] == [0]
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "my own\n"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert after.provenance["source_digest"] != before.provenance["source_digest"]
    assert not unfinished(suite_jobs(prepare(suite), results, "harness"))


@pytest.mark.usefixtures("in_this_process")
def test_overwrite_replaces_a_half_trained_run(suite: Suite, tmp_path: Path) -> None:
    results = tmp_path / "results"
    folder = results / "toy" / "mine" / "seed-0"
    folder.mkdir(parents=True)
    store.start_run(folder, "0123456789abcdef", {})
    for name in (store.CHECKPOINT, store.TRAIN):
        (folder / name).write_text("of a failed try\n", encoding="utf-8")
    with pytest.raises(BenchError, match="its digest is 0123456789abcdef"):
        run_suites([prepare(suite)], results)
    assert not (results / "toy" / "suite.yaml").exists(), "a suite that is refused is not stored"
    assert run_suites([prepare(suite)], results, overwrite=True).finished == 3
    assert [line["update"] for line in store.read_lines(folder / store.TRAIN)] == [0]


@pytest.mark.usefixtures("in_this_process")
def test_a_copy_from_another_suite_overwrites_too(suite: Suite, tmp_path: Path) -> None:
    results = tmp_path / "results"
    run_suites([prepare(suite)], results)
    other = suite.model_copy(update={"suite": "other"})
    folder = results / "other" / "mine" / "seed-0"
    folder.mkdir(parents=True)
    store.start_run(folder, "0123456789abcdef", {})
    (folder / store.CHECKPOINT).write_text("of a failed try\n", encoding="utf-8")
    assert copy_finished(unfinished(suite_jobs(prepare(other), results, "harness"), overwrite=True), results) == []
    assert not (folder / store.CHECKPOINT).exists()
    assert store.read_record(folder).extra["shared_from"] == "toy/mine/seed-0"
    assert store.read_inputs(folder) == store.read_inputs(results / "toy" / "mine" / "seed-0")


def of_another_run(job: Job) -> Path:
    """A checkpoint of another run in the folder of the job."""
    job.folder.mkdir(parents=True)
    store.start_run(job.folder, "0123456789abcdef", {})
    (job.folder / store.CHECKPOINT).write_text("of another run\n", encoding="utf-8")
    (job.suite_folder / ATTEMPTS).write_text('{"hash": "broken"}\n', encoding="utf-8")
    return job.folder / store.CHECKPOINT


@pytest.mark.usefixtures("in_this_process")
def test_a_broken_log_of_starts_is_refused_before_anything_is_removed(suite: Suite, tmp_path: Path) -> None:
    results = tmp_path / "results"
    job = suite_jobs(prepare(suite), results, "harness")[1]
    checkpoint = of_another_run(job)
    with pytest.raises(BenchError, match="breaks the chain of starts"):
        execute(replace(job, overwrite=True))
    assert checkpoint.is_file()
    (job.suite_folder / ATTEMPTS).unlink()
    run_suites([prepare(suite)], results, overwrite=True)
    copy = suite_jobs(prepare(suite.model_copy(update={"suite": "other"})), results, "harness")[1]
    checkpoint = of_another_run(copy)
    with pytest.raises(BenchError, match="breaks the chain of starts"):
        copy_finished([replace(copy, overwrite=True)], results)
    assert checkpoint.is_file()


def test_a_record_of_another_version_is_said_in_one_sentence(suite: Suite, tmp_path: Path) -> None:
    job = suite_jobs(prepare(suite), tmp_path / "results", "harness")[1]
    write_toy_run(job.folder.parent.parent, "cps", 0, digest="0123456789abcdef")
    assert sentence(suite, tmp_path / "results").count("toy/cps/seed-0 holds another run: ") == 1
    content = json.loads((job.folder / store.RUN).read_text(encoding="utf-8"))
    content["config"]["decode"] = "x0"
    (job.folder / store.RUN).write_text(json.dumps(content), encoding="utf-8")
    text = sentence(suite, tmp_path / "results")
    assert "seed-0 holds another run: its configuration is not one of this version. Start anew" in text


@pytest.mark.parametrize("link", [False, True])
def test_the_stored_reference_is_never_overwritten(suite: Suite, tmp_path: Path, link: bool) -> None:
    stored = tmp_path / "results" / "reference"
    jobs = started(suite, stored)
    results = stored
    if link:
        results = tmp_path / "elsewhere"
        results.symlink_to(stored)
    with pytest.raises(BenchError, match="holds a stored run, which is never overwritten"):
        unfinished(suite_jobs(prepare(suite), results, "edited"), overwrite=True)
    assert store.read_inputs(jobs[0].folder) == jobs[0].inputs


def test_a_run_without_overwrite_leaves_another_one_alone(suite: Suite, tmp_path: Path) -> None:
    """As a job of a cluster that starts after the folder was given to another run."""
    job = suite_jobs(prepare(suite), tmp_path / "results", "harness")[1]
    job.folder.mkdir(parents=True)
    store.start_run(job.folder, "0123456789abcdef", {})
    with pytest.raises(BenchError, match="its digest is 0123456789abcdef"):
        execute(job, lambda phase, done, total: None)


def test_wrong_names_are_reported_before_folders_are_compared(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(prepared: Any) -> None:
        raise BenchError("the evaluator gives no metric VQQ")

    started(suite, tmp_path / "results")
    monkeypatch.setattr(run_module, "check_suite", refuse)
    with pytest.raises(BenchError, match="no metric VQQ"):
        run_suites([prepare(suite.model_copy(update={"decode": "final_latent"}))], tmp_path / "results")
