"""A run that another suite has finished is copied under its new name, byte for byte, and never trained twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import store
from bench.launch.jobs import copy_finished, suite_jobs, unfinished, unique_by_digest
from bench.store.record import POLICY, STARTED
from bench.suite.job import Job
from bench.suite.prepared import prepare
from tests.helpers import nano_suite

ONE = ("suite=one", "rows=[{method: sage_grpo}]", "seeds=[0]", "noise_policy={kind: native}", "budget.updates=1")
OTHER = (
    *("suite=other", "rows=[{method: sage_grpo, label: mine, params: {eta: 0.9}}]", "seeds=[0, 1]"),
    *("noise_policy={kind: common_eta, eta: 0.5}", "budget.updates=1"),
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Suite `one` finished; `other` names the same row differently and gets the same eta from its noise policy."""
    results = tmp_path_factory.mktemp("results")
    _, job = suite_jobs(prepare(nano_suite.tiny(*ONE)), results)
    nano_suite.run(job.suite, job.folder, job.digest)
    return results


def other(results: Path, *more: str) -> list[Job]:
    return suite_jobs(prepare(nano_suite.tiny(*OTHER, *more)), results)


def test_equal_runs_have_equal_digests_whatever_they_are_called(results: Path) -> None:
    done = results / "one" / "sage_grpo-none" / "seed-0"
    jobs = {job.label: job.digest for job in other(results)}
    assert jobs["mine seed 0"] == store.read_record(done).digest
    assert jobs["mine seed 1"] != jobs["mine seed 0"]
    for change in ("budget.lr=1e-5", "decode=final_latent", "noise_policy={kind: common_eta, eta: 0.4}"):
        assert jobs["mine seed 0"] not in [job.digest for job in other(results, change)]


def test_a_finished_run_is_copied_and_the_others_are_left(results: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    jobs = other(tmp_path)
    left = copy_finished(jobs, tmp_path)
    assert [job.label for job in left] == ["base", "mine seed 1"]
    source, copy = tmp_path / "one" / "sage_grpo-none" / "seed-0", tmp_path / "other" / "mine" / "seed-0"
    for name in (store.TRAIN, store.SCORES, POLICY, STARTED):
        assert (copy / name).read_bytes() == (source / name).read_bytes(), name
    was, record = store.read_record(source), store.read_run(copy)[0]
    assert (record.suite, record.row, record.config["suite"]) == ("other", "mine", "other")
    assert record.extra["shared_from"] == "one/sage_grpo-none/seed-0"
    assert (record.method_params, record.provenance) == (was.method_params, was.provenance)
    assert record.method_params["eta"] == 0.5
    assert unfinished(jobs) == left, "a copied run counts as finished"


def test_stored_reference_runs_are_never_taken(results: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(results / "one", tmp_path / "reference" / "one")
    jobs = other(tmp_path)
    assert copy_finished(jobs, tmp_path) == jobs


def test_one_job_of_each_digest_is_done(results: Path) -> None:
    jobs = suite_jobs(prepare(nano_suite.tiny(*ONE)), results) + other(results)
    assert [job.label for job in unique_by_digest(jobs)] == ["base", "sage_grpo-none seed 0", "mine seed 1"]
