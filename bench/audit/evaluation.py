"""`bench evaluate`: held-out scores of policies that the suite has not trained, beside those of its base.

Models, prompts, noise and evaluators are those of the suite, and sampling and scoring are the code of a run
(`bench.train`). The result is a file of its own, `evaluation.json`, which no table of a suite reads: how such a policy
was trained, on which prompts and at what cost, is not known here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench import store
from bench.audit.candidates import Candidate, candidate
from bench.core.errors import BenchError
from bench.core.hashing import digest, plain
from bench.core.ledger import Ledger
from bench.core.process_state import process_state, unchanged_process
from bench.core.progress import ProgressCallback
from bench.core.provenance import provenance
from bench.core.strict_json import read_json
from bench.launch.config import LaunchConfig
from bench.launch.jobs import suite_jobs
from bench.launch.progress import RunsProgress, Workload
from bench.launch.run import check_launch
from bench.plan.fit import runs_at_once
from bench.plan.workload import held_out_videos
from bench.store.lock import run_lock
from bench.suite.devices import gpu_name, refuse_context_parallel
from bench.suite.job import BaseRun
from bench.suite.prepared import PreparedSuite
from bench.train.evaluate import evaluate
from bench.train.run import LoadedModels, declared_metrics, load_models

if TYPE_CHECKING:
    import pandas as pd

FOLDER, RESULT, SCORES = "evaluated", "evaluation.json", "evaluation.parquet"
"""Folder below that of the suite's records, and the files of one policy in its folder there. None of the names is one
of a run's, so that tables, reports and `bench verify` pass them over."""
BASE = "base"


class Evaluation(BaseModel):
    """The result of one policy, without its scores."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str
    """Name of the folder; "base" for the base model."""
    what: str
    """What the policy is, in words."""
    suite: str
    digest: str
    """Digest of everything that the scores depend on: that of the suite's base, and the policy's files."""
    policy: dict[str, Any] = {}
    """Path, sha256 and facts of the policy; {} for the base."""
    config: dict[str, Any]
    """All settings of the suite, with defaults."""
    prompts_digest: str
    evaluators: dict[str, dict[str, Any]]
    """Fingerprints of the evaluators by name."""
    metrics: dict[str, store.MetricEntry]
    backbone: dict[str, Any]
    """Fingerprint of the video generator, with its own policy."""
    gates: dict[str, Any]
    seconds: dict[str, float]
    provenance: dict[str, Any]
    scores_digest: str
    extra: dict[str, Any] = {}
    """Shares of prompts that evaluators truncate."""


@dataclass(frozen=True)
class Scored:
    """One policy with its scores."""

    evaluation: Evaluation
    scores: pd.DataFrame
    folder: Path


def evaluate_policies(
    prepared: PreparedSuite, results: Path, policies: Sequence[Path], overwrite: bool = False
) -> list[Scored]:
    """The base and each policy with their held-out scores; what is stored already is read.

    `policies`: folders of runs of this project, and files or folders of LoRAs. `overwrite`: where a folder holds the
    scores of another policy or of another state of the suite, score anew. Raises `BenchError` before a model is loaded
    for a policy that does not fit.
    """
    refuse_context_parallel(prepared.suite, "bench evaluate")
    check_launch(prepared, LaunchConfig())
    runs_at_once([prepared], 1, None)  # for its error about the host's memory
    (base, *_) = suite_jobs(prepared, results)
    candidates = [candidate(path, base) for path in policies]
    names = [each.name for each in candidates]
    twice = next((name for name in names if names.count(name) > 1 or name == BASE), None)
    if twice is not None:
        raise BenchError(f"the name {twice!r} is taken twice: rename the folder or the file of one of the policies.")
    known = _scored_base(base)
    wanted = [*([] if known else [Candidate(BASE, "the base model")]), *candidates]
    folder = base.suite_folder / FOLDER
    stored = {each.name: _read(folder / each.name, _digest(base, each), overwrite) for each in wanted}
    missing = [each for each in wanted if stored[each.name] is None]
    if missing:
        stored |= _score(base, missing, folder)
    return [*([known] if known else []), *(scored for each in wanted if (scored := stored[each.name]))]


def _digest(base: BaseRun, policy: Candidate) -> str:
    return digest({**base.inputs, "policy": policy.facts}) if policy.path is not None else base.digest


def _scored_base(base: BaseRun) -> Scored | None:
    """The suite's own base run, if it has finished in this state of the suite."""
    if not (base.folder / store.RUN).is_file() or store.other_digest(base.folder, base.digest) is not None:
        return None
    record, scores = store.read_run(base.folder)
    if record.status != "finished":
        return None
    return Scored(
        Evaluation(
            **{key: getattr(record, key) for key in ("suite", "digest", "config", "prompts_digest", "evaluators")},
            **{key: getattr(record, key) for key in ("metrics", "backbone", "gates", "seconds", "provenance")},
            name=BASE,
            what="the base model",
            scores_digest=str(record.scores_digest),
        ),
        scores,
        base.folder,
    )


def _read(folder: Path, expected: str, overwrite: bool) -> Scored | None:
    """The stored result; None if there is none, or if another one is to be replaced."""
    import pandas as pd

    path, fix = folder / RESULT, "delete its folder and evaluate again"
    if not path.is_file():
        return None
    try:
        evaluation = Evaluation.model_validate(read_json(path, "evaluation", fix))
    except ValidationError as error:
        raise BenchError(f"evaluation {path} is not valid ({' '.join(str(error).split())[:160]}): {fix}.") from error
    if evaluation.digest != expected:
        if overwrite:
            return None
        raise BenchError(
            f"{folder} holds the scores of another policy, or of another state of the suite or of the code (digest "
            f"{evaluation.digest}, this one is {expected}): score it anew with --overwrite, or rename the policy."
        )
    try:
        scores = store.sorted_scores(pd.read_parquet(folder / SCORES))
    except (OSError, ValueError) as error:
        raise BenchError(f"scores {folder / SCORES} cannot be read ({error}): {fix}.") from error
    if store.content_digest(scores) != evaluation.scores_digest:
        raise BenchError(f"scores {folder / SCORES} are not those of {RESULT} beside them: {fix}.")
    return Scored(evaluation, scores, folder)


def _score(base: BaseRun, policies: Sequence[Candidate], folder: Path) -> dict[str, Scored | None]:
    """Load the models once, and score the policies one after another, each stored as soon as it is done."""
    scored: dict[str, Scored | None] = {}
    store.make_folder(folder)
    with run_lock(folder), _progress([each.name for each in policies], base) as reports:
        culprit = f"a plug-in of {base.suite.name} (its backbone or an evaluator)"
        with unchanged_process(culprit):
            clock = Ledger()
            with clock.phase("load"):
                models = load_models(base, reports[policies[0].name])
            for policy in policies:
                scored[policy.name] = _score_one(base, policy, models, reports[policy.name], clock, folder)
    return scored


def _score_one(
    base: BaseRun, policy: Candidate, models: LoadedModels, report: ProgressCallback, clock: Ledger, folder: Path
) -> Scored:
    start = time.monotonic()
    with policy.installed(models.backbone):
        held_out = evaluate(models.backbone, models.evaluators, base.prepared, report)
    scores = store.sorted_scores(held_out.scores)
    evaluation = Evaluation(
        name=policy.name,
        what=policy.what,
        suite=base.suite.name,
        digest=_digest(base, policy),
        policy=plain({"path": str(policy.path), **policy.facts}) if policy.path is not None else {},
        config=base.suite.model_dump(mode="json"),
        prompts_digest=base.prepared.prompts.digest(base.suite.evaluation.prompts),
        evaluators={name: dict(each.fingerprint()) for name, each in models.evaluators.items()},
        metrics=declared_metrics(models.evaluators),
        backbone=dict(models.backbone.fingerprint()),
        gates=plain(models.gates),
        seconds={**clock.seconds, "evaluate": time.monotonic() - start},
        provenance=plain(
            provenance(processes=1, source_digest=base.source_digest, process_state=process_state(), **gpu_name())
        ),
        scores_digest=store.content_digest(scores),
        extra=plain(held_out.record_extras()),
    )
    own = store.make_folder(folder / policy.name)
    store.replace_atomically(own / SCORES, lambda path: store.write_parquet(scores, path))
    store.write_text(own / RESULT, evaluation.model_dump_json(by_alias=True, indent=1) + "\n")
    return Scored(evaluation, scores, own)


@contextmanager
def _progress(names: Sequence[str], base: BaseRun) -> Iterator[dict[str, ProgressCallback]]:
    """One line of progress per policy."""
    work = Workload(updates=0, videos=held_out_videos(base.prepared), video_cost=1.0)
    with RunsProgress(dict.fromkeys(names, work)) as progress:

        def report(name: str) -> ProgressCallback:
            return lambda step: progress.record(name, step, time.monotonic())

        yield {name: report(name) for name in names}
