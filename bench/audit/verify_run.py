"""What `bench verify` checks of one run's folder: its record, scores, curve and ledger, and what else lies there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pydantic import ValidationError

from bench import store
from bench.core.budget import Budget
from bench.core.errors import BenchError
from bench.core.hashing import canonical_json, digest
from bench.core.ledger import Ledger
from bench.report.data.records import failed_gates
from bench.store.record import RunRecord
from bench.store.replay import REPLAY, read_replay
from bench.suite.schema import Experiment

RERUN = "delete the folder and run `bench run` again, or restore all its files together"
#: Files of a run that has ended; a failed one may have saved the sample that stopped it.
KEPT = {store.RUN, store.SCORES, store.TRAIN, store.STARTED, store.POLICY, store.LOCK, REPLAY}
LEFT = {
    store.CHECKPOINT: "a checkpoint beside a finished record: delete it, the record is complete without it",
    store.JOB: "what a launcher told processes that are gone: delete it",
}


class Finding(NamedTuple):
    """One line of the report."""

    where: Path
    what: str
    """What is found, and how to mend it."""
    wrong: bool = True
    """Whether it makes the results unfit; a note does not."""
    blocks: bool = False
    """Whether the run cannot be read, so that its suite and its tables cannot be checked."""

    @property
    def line(self) -> str:
        here = Path.cwd()
        where = self.where.relative_to(here) if self.where.is_relative_to(here) else self.where
        return f"{'WRONG' if self.wrong else 'note '} {where}: {self.what}."


def check_run(folder: Path) -> Iterator[Finding]:
    """All findings of one folder that holds a file of a run."""
    files = {path.name for path in folder.iterdir() if path.is_file()}
    if store.RUN not in files:
        yield Finding(
            folder,
            f"no {store.RUN}, but {', '.join(sorted(files))}: an unfinished run; the same `bench run` goes on with "
            "it, or delete the folder",
        )
        return
    try:
        record, scores = store.read_run(folder)
    except BenchError as error:
        yield Finding(folder, _sentence(error), blocks=True)
        return
    yield from _leftovers(folder, files, record)
    try:
        exp = Experiment.model_validate(record.config)
    except (ValidationError, BenchError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else _text(error)
        yield Finding(folder, f"the configuration is not one of this version ({first}): {RERUN}", blocks=True)
        return
    for mistake in (*_place(folder, record), *_status(record), *_budget(record), *_curve(folder, record)):
        yield Finding(folder, f"{mistake}: {RERUN}")
    if record.scores_digest is not None:
        yield from _scores(folder, record, exp, scores)


def _sentence(error: BenchError) -> str:
    return str(error).rstrip(".")


def _leftovers(folder: Path, files: set[str], record: RunRecord) -> Iterator[Finding]:
    allowed = KEPT | ({store.OFFENDING} if record.status == "failed" else set())
    for name in sorted(files - allowed):
        why = LEFT.get(name, "no file of a run: move it away, or delete it (a half-written file of a killed process)")
        yield Finding(folder / name, why)
    try:
        read_replay(folder, record)
    except BenchError as error:
        yield Finding(folder / REPLAY, _sentence(error))


# the record ---------------------------------------------------------------------------------------------------
def _place(folder: Path, record: RunRecord) -> Iterator[str]:
    """The record names the row and the seed of its folder, and the digest that the run was started with."""
    place = store.run_folder("", record.row, record.seed)
    if folder.resolve().parts[-len(place.parts) :] != place.parts:
        yield f"the record is of {place.as_posix()}"
    started = folder / store.STARTED
    if started.is_file():
        named = started.read_text(encoding="utf-8").strip()
        if named != record.digest:
            yield f"the run was started with digest {named}, but its record has {record.digest}"


def _status(record: RunRecord) -> Iterator[str]:
    if record.status == "failed":
        yield f"the run failed ({(record.error or 'no reason recorded').rstrip('.')})"
    for gate in failed_gates(record):
        yield f"the run fails the validity gate {gate}"
    for key in _not_finite(record.model_dump()):
        yield f"{store.RUN} holds a number at {key} that is not finite"


def _not_finite(value: Any, key: str = "") -> Iterator[str]:
    """Dotted keys of NaN and infinities."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _not_finite(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _not_finite(item, f"{key}.{place}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield key


def _budget(record: RunRecord) -> Iterator[str]:
    """The budget is a valid one, its digest is its own, and a finished run has spent it, no more and no less."""
    try:
        budget = Budget(**record.budget)
    except (TypeError, BenchError) as error:
        yield f"the budget is not one of this version ({_text(error)})"
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
        yield _text(error)


def _text(error: Exception) -> str:
    """The sentence without its remedy, which is the finding's own."""
    return str(error).rstrip(".").partition(": a method or an")[0]


def _curve(folder: Path, record: RunRecord) -> Iterator[str]:
    """`train.jsonl` has every update once, finite numbers only, and ends with the record's ledger."""
    if record.seed is None:
        return
    try:
        lines = store.read_lines(folder / store.TRAIN)
    except BenchError as error:
        yield _text(error)
        return
    if [line.get("update") if isinstance(line, dict) else None for line in lines] != list(range(record.updates_done)):
        yield f"{store.TRAIN} does not hold the {record.updates_done} updates of the record, each once and in order"
        return
    for number, line in enumerate(lines, 1):
        for key in _not_finite(line):
            yield f"{store.TRAIN}, line {number}, holds a number at {key} that is not finite"
    if lines and record.status == "finished":
        last = lines[-1].get("ledger")
        last = last if isinstance(last, dict) else {}
        # a run that is resumed after its last update restarts once more
        if canonical_json({**last, "restarts": 0}) != canonical_json({**record.ledger, "restarts": 0}):
            yield f"the last line of {store.TRAIN} has another ledger than {store.RUN}"


# the scores ---------------------------------------------------------------------------------------------------
def _scores(folder: Path, record: RunRecord, exp: Experiment, scores: pd.DataFrame) -> Iterator[Finding]:
    """Every held-out prompt has its videos, and every video the metrics of every evaluator."""
    named = set(scores["evaluator"])
    if named != set(exp.evaluation.evaluators):
        yield Finding(folder, f"scores are by {sorted(named)}, not by {sorted(exp.evaluation.evaluators)}: {RERUN}")
    heldout, known = _prompts_now(exp)
    if record.prompts_digest != known:
        what = (
            f"its prompts have the digest {record.prompts_digest}, {exp.prompts.train} and {exp.prompts.heldout} now"
        )
        mend = "they are checked for gaps only; for more, restore the prompt files of its commit"
        yield Finding(folder, f"{what}: {known}: {mend}", wrong=False)
        heldout = []
    for mistake in _videos(scores, heldout, exp.evaluation.videos_per_prompt):
        yield Finding(folder, f"{mistake}: {RERUN}")


def _prompts_now(exp: Experiment) -> tuple[list[str], str]:
    """The held-out prompts as they are now, and the digest of both lists; if a file cannot be read, why."""
    try:
        lists = [exp.prompt_list("train"), exp.prompt_list("heldout")]
    except BenchError as error:
        return [], _text(error)
    return lists[1], digest(lists)


def _videos(scores: pd.DataFrame, heldout: list[str], each: int) -> Iterator[str]:
    """Rows are prompts x videos x metrics; `sorted_scores` has seen that every video has every metric."""
    prompts = dict(zip(scores["prompt_index"], scores["prompt"], strict=True))
    expected = dict(enumerate(heldout)) or dict.fromkeys(range(len(prompts)))
    metrics = len(scores[["evaluator", "metric"]].drop_duplicates())
    rows = len(expected) * each * metrics
    videos = scores[["prompt_index", "video"]].drop_duplicates().groupby("prompt_index")["video"].agg(list)
    if len(scores) != rows or set(prompts) != set(expected) or any(own != list(range(each)) for own in videos):
        yield (
            f"{store.SCORES} has {len(scores)} rows for {len(prompts)} prompts, expected {rows} = {len(expected)} "
            f"prompts x {each} videos x {metrics} metrics, numbered from 0"
        )
    elif heldout and prompts != expected:
        odd = next(p for p in expected if prompts[p] != expected[p])
        yield f"{store.SCORES} calls prompt {odd} {prompts[odd]!r}, the held-out list {expected[odd]!r}"
