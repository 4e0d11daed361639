"""Two `bench run` on one suite: a run that the other has finished is not done again, one that it works on waits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import store
from bench.core.errors import RunLockedError
from bench.core.world import SINGLE_PROCESS
from bench.launch.jobs import copy_finished
from bench.store.lock import run_lock
from bench.suite.assets import known
from bench.suite.job import Job
from bench.train.run import execute
from tests.helpers.toy_suite import run_alone, toy_suite, training_job


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("other")
    job = training_job(toy_suite(folder), folder / "results")
    assert run_alone(job, SINGLE_PROCESS) == "finished"
    return job


def test_a_run_that_another_process_has_finished_meanwhile_is_kept(finished: Job) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in finished.folder.iterdir() if path.name != store.LOCK}
    assert execute(finished).digest == finished.digest
    after = {path.name: path.stat().st_mtime_ns for path in finished.folder.iterdir() if path.name != store.LOCK}
    assert after == before


def test_a_run_that_another_process_works_on_is_not_copied_over(finished: Job, tmp_path: Path) -> None:
    suite = finished.suite.model_copy(update={"suite": "again"})
    results = finished.folder.parents[2]
    job = training_job(suite, results)
    job.folder.mkdir(parents=True)
    with run_lock(job.folder):
        assert copy_finished([job], results) == [job]
        with pytest.raises(RunLockedError):
            execute(job)
    assert not (job.folder / store.STARTED).exists()
    assert copy_finished([job], results) == []
    assert store.is_finished(job.folder, job.digest)


def test_assets_of_a_backbone_are_found_without_running_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "theirs_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    (package / "part.py").write_text("")
    facts = {"theirs": {"what": "weights", "for": ["backbone.checkpoint"], "files": [{"path": "a.bin"}]}}
    (package / "assets.yaml").write_text(json.dumps(facts))
    monkeypatch.chdir(tmp_path)
    assert "theirs" in known(["theirs_package.part:Backbone"])
