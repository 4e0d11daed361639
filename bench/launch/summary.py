"""Results of the runs of one call, and runs to be done, as JSON data for `bench run --json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench import store
from bench.core.ledger import planned_counts
from bench.launch.jobs import unfinished
from bench.launch.launchers import Outcome
from bench.plan.workload import curve_nfe, evaluation_nfe
from bench.suite.job import Job
from bench.suite.prepared import PreparedSuite


def run_results(outcome: Outcome) -> list[dict[str, Any]]:
    """Label, digest, folder, status, reason and seconds of every run of the suite or study.

    The status is "finished", "failed" (a number was not finite) or "error" (the run stopped without a record).
    """
    return [_result(job, outcome.reasons.get(job.label)) for job in outcome.jobs]


def _result(job: Job, reason: str | None) -> dict[str, Any]:
    status, seconds = "error", None
    if store.is_finished(job.folder, job.digest):
        record = store.read_record(job.folder)
        status, reason, seconds = record.status, record.error, sum(record.seconds.values())
    return {**_names(job), "status": status, "reason": reason, "seconds": seconds}


def planned_runs(prepared: PreparedSuite, jobs: Sequence[Job], overwrite: bool = False) -> dict[str, Any]:
    """The runs of a suite with their status, and what each row and each evaluation spends.

    The status is "finished", "to do", or "anew" for a run that replaces another one in its folder.
    """
    suite = prepared.suite
    states = {job.folder: "anew" if job.overwrite else "to do" for job in unfinished(jobs, overwrite)}
    return {
        "suite": suite.name,
        "runs": [{**_names(job), "status": states.get(job.folder, "finished")} for job in jobs],
        "each_row_spends": planned_counts(suite.budget, len(suite.reward), suite.budget.updates),
        "nfe_of_each_curve": curve_nfe(prepared),
        "nfe_of_each_evaluation": evaluation_nfe(prepared),
    }


def _names(job: Job) -> dict[str, Any]:
    return {"label": job.label, "digest": job.digest, "folder": job.folder}
