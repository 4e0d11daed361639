"""Checks of `bench verify` on the folder of one run: record, scores, `train.jsonl`, ledger, and other files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from bench import store
from bench.audit.findings import RERUN, Finding, Gap, Note, StoredRun
from bench.audit.verify_files import check_curve, check_videos
from bench.audit.verify_log import check_log
from bench.audit.verify_method import check_method
from bench.audit.verify_origin import check_origin
from bench.audit.verify_scores import check_scores
from bench.core.budget import Budget
from bench.core.errors import BenchError
from bench.core.hashing import canonical_json, digest
from bench.core.ledger import Ledger
from bench.core.rules import RULES
from bench.report.data.records import failed_gates
from bench.store.files import TEMPORARY
from bench.store.record import REPLAY, RunRecord
from bench.store.replay import read_replay
from bench.suite.schema import Suite

#: Files of a run that has ended. A failed run may also have the sample that stopped it.
RUN_FILES = {
    *(store.RUN, store.SCORES, store.TRAIN, store.CURVE, store.STARTED, store.INPUTS, store.POLICY, store.LOCK),
    REPLAY,
}
#: File that a run removes when it ends, to the finding about it.
LEFTOVERS = {
    store.CHECKPOINT: "a checkpoint beside a finished record: delete it, the record is complete without it",
    store.JOB: "a job file for processes that have ended: delete it",
}


def check_run(folder: Path) -> Iterator[Finding | Gap | StoredRun]:
    """All findings on one folder that contains files of a run, and the run if it can be read."""
    files = {path.name for path in folder.iterdir() if path.is_file()}
    if store.RUN not in files:
        yield Finding(
            folder,
            f"no {store.RUN}, but {', '.join(sorted(files))}: an unfinished run. Run the same `bench run` to "
            "resume it, or delete the folder",
        )
        return
    try:
        record, scores = store.read_run(folder)
    except BenchError as error:
        yield Finding(folder, _message(error), blocks=True)
        return
    yield from _leftovers(folder, files, record)
    try:
        suite = Suite.model_validate(record.config)
    except (ValidationError, BenchError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else _problem(error)
        yield Finding(folder, f"the configuration is not one of this version ({first}): {RERUN}", blocks=True)
        return
    if record.rules not in (1, RULES):
        rules = f"made under rules {record.rules}, which this version, with rules {RULES}, does not know"
        yield Finding(folder, f"{rules}: check it with the version that made it")
    lines, log_problems = _train_log(folder, record)
    for problem in (*_folder(folder, record), *_status(record), *_budget(record), *log_problems):
        yield Finding(folder, f"{problem}: {RERUN}")
    if record.scores_digest is not None:
        yield from _scores(folder, record, suite, scores)
    run = StoredRun(folder, record, suite, scores, lines)
    yield run
    yield from check_curve(run)
    yield from check_videos(run)
    if record.status == "finished" and not log_problems:
        yield from _cross_checks(run)


def _cross_checks(run: StoredRun) -> Iterator[Finding | Gap]:
    """The parts of a readable run against each other, its settings and the classes that it names."""
    checks = [check_scores, check_origin, *([check_method, check_log] if run.record.seed is not None else [])]
    for result in (result for check in checks for result in check(run)):
        if isinstance(result, Gap):
            yield result
        elif isinstance(result, Note):
            yield Finding(run.folder, result.text, wrong=False)
        else:
            yield Finding(run.folder, f"{result}: {RERUN}")


def _message(error: BenchError) -> str:
    return str(error).rstrip(".")


def _leftovers(folder: Path, files: set[str], record: RunRecord) -> Iterator[Finding]:
    allowed = RUN_FILES | ({store.OFFENDING} if record.status == "failed" else set())
    for name in sorted(files - allowed):
        half_written = TEMPORARY.fullmatch(name)
        if half_written:
            text = f"a half-written {half_written['name']} of a killed process: delete it, the record is complete"
        else:
            text = LEFTOVERS.get(name, "not a file of a run: move it away, or delete it")
        yield Finding(folder / name, text, wrong=half_written is None)
    try:
        read_replay(folder, record)
    except BenchError as error:
        yield Finding(folder / REPLAY, _message(error))


def _folder(folder: Path, record: RunRecord) -> Iterator[str]:
    """The record names the row and the seed of its folder, and the digest that the run was started with."""
    expected = store.run_folder("", record.row, record.seed)
    if folder.resolve().parts[-len(expected.parts) :] != expected.parts:
        yield f"the record is of {expected.as_posix()}"
    started = folder / store.STARTED
    if started.is_file():
        try:
            start_digest = store.read_digest(folder)
        except BenchError as error:
            yield str(error)
            return
        if start_digest != record.digest:
            yield f"the run was started with digest {start_digest}, but its record has {record.digest}"
    try:
        inputs = store.read_inputs(folder)
    except BenchError as error:
        yield str(error).rstrip(".")
        return
    if inputs and digest(inputs) != record.digest:
        yield f"{store.INPUTS} has the digest {digest(inputs)}, but the record has {record.digest}"


def _status(record: RunRecord) -> Iterator[str]:
    if record.status == "failed":
        yield f"the run failed ({(record.error or 'no reason recorded').rstrip('.')})"
    for gate in failed_gates(record):
        yield f"the run fails the validity gate {gate}"


def _budget(record: RunRecord) -> Iterator[str]:
    """The budget is valid and has its own digest, and a finished run has spent exactly this budget."""
    try:
        budget = Budget(**record.budget)
    except (TypeError, BenchError) as error:
        yield f"the budget is not one of this version ({_problem(error)})"
        return
    if record.budget_digest not in (digest(record.budget), digest(dataclasses.asdict(budget))):
        yield f"budget_digest is {record.budget_digest}, the budget's own is {digest(record.budget)}"
    if any(record.budget.get(name) != value for name, value in record.config.get("budget", {}).items()):
        yield "the budget is not that of the record's own configuration"
    if record.status != "finished" or record.seed is None:
        return
    if record.updates_done != budget.updates:
        yield f"{record.updates_done} updates are done, the budget has {budget.updates}"
    counts = {name: count for name, count in record.ledger.items() if isinstance(count, int)}
    calls = record.ledger.get("reward_calls")
    ledger = Ledger(counts, dict(calls) if isinstance(calls, Mapping) else {})
    try:
        ledger.settle(budget, len(record.config.get("reward", {})), budget.updates)
    except BenchError as error:
        yield _problem(error)


def _problem(error: Exception) -> str:
    """The error message without its fix, which is not that of the finding."""
    return str(error).rstrip(".").partition(": a method or an")[0].partition(": delete the folder of the run")[0]


def _train_log(folder: Path, record: RunRecord) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of `train.jsonl` and what is wrong with them.

    The file can be read, has every update once, and ends with the record's ledger.
    """
    if record.seed is None:
        return [], []
    try:
        lines = store.read_lines(folder / store.TRAIN)
    except BenchError as error:
        return [], [_problem(error)]
    if [line.get("update") for line in lines] != list(range(record.updates_done)):
        return [], [
            f"{store.TRAIN} does not hold the {record.updates_done} updates of the record, each once and in order"
        ]
    if lines and record.status == "finished":
        last = lines[-1].get("ledger")
        last = last if isinstance(last, dict) else {}
        # a run that is resumed after its last update restarts once more
        if canonical_json({**last, "restarts": 0}) != canonical_json({**record.ledger, "restarts": 0}):
            return lines, [f"the last line of {store.TRAIN} has another ledger than {store.RUN}"]
    return lines, []


def _scores(folder: Path, record: RunRecord, suite: Suite, scores: pd.DataFrame) -> Iterator[Finding]:
    """Every held-out prompt has its videos, and every video the metrics of every evaluator."""
    evaluators = set(scores["evaluator"])
    if evaluators != set(suite.evaluation.evaluators):
        yield Finding(
            folder, f"scores are by {sorted(evaluators)}, not by {sorted(suite.evaluation.evaluators)}: {RERUN}"
        )
    heldout, known = _current_prompts(suite)
    if record.prompts_digest != known:
        files = f"{suite.prompts.train} and {suite.prompts.heldout}"
        problem = f"its prompts have the digest {record.prompts_digest}, {files} now have {known}"
        fix = (
            "only the numbers of prompts and videos are checked; to check more, restore the prompt files of its commit"
        )
        yield Finding(folder, f"{problem}: {fix}", wrong=False)
        heldout = []
    for problem in _videos(scores, heldout, suite.evaluation.videos_per_prompt):
        yield Finding(folder, f"{problem}: {RERUN}")


def _current_prompts(suite: Suite) -> tuple[list[str], str]:
    """The held-out prompts of the current files and the digest of both lists; [] and the reason if that fails."""
    try:
        lists, scored = suite.read_prompts(), suite.evaluation.prompts
    except BenchError as error:
        return [], _problem(error)
    return lists.scored(scored), lists.digest(scored)


def _videos(scores: pd.DataFrame, heldout: list[str], videos_per_prompt: int) -> Iterator[str]:
    """The scores have all prompts x videos x metrics; every video has every metric (`sorted_scores`)."""
    prompts = dict(zip(scores["prompt_index"], scores["prompt"], strict=True))
    expected = dict(enumerate(heldout)) or dict.fromkeys(range(len(prompts)))
    metrics = len(scores[["evaluator", "metric"]].drop_duplicates())
    rows = len(expected) * videos_per_prompt * metrics
    videos = scores[["prompt_index", "video"]].drop_duplicates().groupby("prompt_index")["video"].agg(list)
    if (
        len(scores) != rows
        or set(prompts) != set(expected)
        or any(own != list(range(videos_per_prompt)) for own in videos)
    ):
        yield (
            f"{store.SCORES} has {len(scores)} rows for {len(prompts)} prompts, expected {rows} = {len(expected)} "
            f"prompts x {videos_per_prompt} videos x {metrics} metrics, numbered from 0"
        )
    elif heldout and prompts != expected:
        index = next(p for p in expected if prompts[p] != expected[p])
        yield f"prompt {index} is {prompts[index]!r} in {store.SCORES}, but {expected[index]!r} in the held-out list"
