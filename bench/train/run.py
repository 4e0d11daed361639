"""One run: load the models, train, evaluate, write the record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import store
from bench.api import Backbone, Evaluator
from bench.checks.evaluators import GATE as CHECKS_GATE
from bench.checks.evaluators import check_reward_metrics, evaluator_gate
from bench.checks.golden import GATE, golden_gate
from bench.core.errors import DivergedError
from bench.core.hashing import digest, sha256_file
from bench.core.ledger import Ledger
from bench.core.process_state import process_state, unchanged_process
from bench.core.progress import ProgressCallback, Step, silent
from bench.core.provenance import peak_kib, provenance
from bench.core.rng import stream
from bench.core.rules import RULES
from bench.core.world import SINGLE_PROCESS, World, check_divisible
from bench.store.attempts import read_attempts, record_attempt
from bench.store.curve import curve_digest
from bench.store.lock import run_lock
from bench.store.policy import save_policy
from bench.store.videos import remove_videos, videos_digest
from bench.suite.devices import gpu_name
from bench.suite.job import Job, TrainingRun
from bench.suite.methods import recorded_params
from bench.suite.prepared import make_backbone, make_evaluator
from bench.train.evaluate import HeldOutPart, HeldOutScores, evaluate
from bench.train.trainer import Trainer


def _gpu_peak(world: World) -> dict[str, float]:
    """Peak memory of tensors on the GPU of one process, in MB of 10^6 bytes; {} where no GPU was used."""
    import torch

    used = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    peak = max(world.all_gather(used))
    return {"gpu_peak_memory_mb": peak / 1e6} if peak else {}


@dataclass
class RunOutcome:
    """The result of a run."""

    models: LoadedModels
    trainer: Trainer | None = None
    """None for the base, and for a run whose training could not start."""
    scores: HeldOutScores | None = None
    """None for a run that diverged."""
    error: str | None = None
    """Why the run diverged; None for a finished run."""
    attempt: str | None = None
    """Hash of the line about this start in the log of attempts; None on other processes than the main one."""


def run_record(job: Job, outcome: RunOutcome, seconds: dict[str, float], world: World) -> store.RunRecord:
    """Collective call: the record of a run. `seconds`: wall-clock seconds of loading and evaluating."""
    suite, models, trainer = job.suite, outcome.models, outcome.trainer
    budget, main = dataclasses.asdict(suite.budget), world.is_main
    trained = {} if trainer is None else _trained_fields(trainer)
    extra = {"scale": suite.scale, **_gpu_peak(world), **trained.pop("extra", {})}
    if outcome.scores is not None:
        extra |= outcome.scores.record_extras()
    return store.RunRecord(
        **job.identity,
        rules=RULES,
        attempt=outcome.attempt,
        status="finished" if outcome.error is None else "failed",
        error=outcome.error,
        digest=job.digest,
        budget=budget,
        budget_digest=digest(budget),
        prompts_digest=job.prepared.prompts.digest(suite.evaluation.prompts),
        config=suite.model_dump(mode="json"),
        evaluators={name: dict(e.fingerprint()) for name, e in models.evaluators.items()} if main else {},
        metrics=declared_metrics(models.evaluators),
        backbone=dict(models.backbone.fingerprint()) if main else {},  # hashes gigabytes
        seconds={**trained.pop("seconds", {}), **seconds},
        peak_memory_mb=max(world.all_gather(peak_kib())) * 1024 / 1e6,
        provenance=provenance(
            processes=world.size,
            shard=world.shard,
            source_digest=job.source_digest,
            process_state=process_state(),
            **gpu_name(),
        ),
        gates={**models.gates, **trained.pop("gates", {})},
        videos_digest=videos_digest(job.folder),
        extra=extra,
        **trained,
    )


def train_digest(folder: Path) -> str | None:
    """sha256 of the training log; None where there is none, as on other processes than the main one."""
    path = folder / store.TRAIN
    return sha256_file(path) if path.is_file() else None


def declared_metrics(evaluators: Mapping[str, Evaluator]) -> dict[str, store.MetricEntry]:
    """Metrics by name, as the evaluators declare them."""
    return {
        name: store.MetricEntry(evaluator=evaluator, higher_is_better=metric.higher_is_better, unit=metric.unit)
        for evaluator, scorer in evaluators.items()
        for name, metric in scorer.metrics.items()
    }


def _trained_fields(trainer: Trainer) -> dict[str, Any]:
    """The fields of the record that only a trained run has."""
    return {
        "method_params": recorded_params(trainer.method),
        "ledger": trainer.ledger.totals(),
        "seconds": trainer.ledger.seconds,
        "updates_done": trainer.updates_done,
        "open_reasons": trainer.open_reasons,
        "train_digest": train_digest(trainer.job.folder),
        "curve_digest": curve_digest(trainer.job.folder),
        "gates": {} if trainer.audit is None else {"ratio_audit": trainer.audit},
        "extra": trainer.record_extras(),
    }


@dataclass(frozen=True)
class LoadedModels:
    """The models of a run, and the gates that its evaluators passed."""

    backbone: Backbone
    evaluators: dict[str, Evaluator]
    """By name."""
    gates: dict[str, Any]
    """Entries of the record's `gates`."""


def load_models(job: Job, report: ProgressCallback = silent, world: World = SINGLE_PROCESS) -> LoadedModels:
    """The backbone with all prompts encoded, the evaluators of the run, and the gates that they pass."""
    prepared, suite = job.prepared, job.suite
    report(Step("load", 0, 1, f"{suite.backbone.name} and the prompts' text states"))
    # all prompts in one call, so that a backbone that frees its text encoders afterwards loads them once
    backbone = make_backbone(prepared, world, prepared.all_prompts)
    backbone.encode(prepared.all_prompts)
    names = suite.all_evaluators if isinstance(job, TrainingRun) else suite.evaluation.evaluators
    evaluators = {}
    for name in names:
        report(Step("load", 0, 1, name))
        evaluators[name] = make_evaluator(prepared, name)
    report(Step("load", 0, 1, "checks of the evaluators"))
    checked = evaluator_gate(evaluators)
    check_reward_metrics(suite.reward, {name: evaluator.metrics for name, evaluator in evaluators.items()})
    report(Step("load", 0, 1, "the golden scores"))
    return LoadedModels(backbone, evaluators, {CHECKS_GATE: checked, GATE: golden_gate(prepared, evaluators)})


def execute(
    job: Job, report: ProgressCallback = silent, world: World = SINGLE_PROCESS, log_attempt: bool = True
) -> store.RunRecord:
    """Collective call: do one run and return its record, which the main process writes.

    `log_attempt`: whether the start is an attempt at a result, which `attempts.jsonl` lists; a replay is none.
    A run that diverges has a record with status "failed". After any other error the run is unfinished and can resume.
    """
    if isinstance(job, TrainingRun):
        check_divisible(job.suite.budget, world.dp_size)
    store.make_folder(job.folder)
    with run_lock(job.folder) if world.is_main else nullcontext():
        finished = world.is_main and store.is_finished(job.folder, job.digest)  # by another process, meanwhile
        if any(world.all_gather(finished)):
            return store.read_record(job.folder)
        return _execute(job, report, world, log_attempt)


def _watch_folder(job: Job, report: ProgressCallback) -> ProgressCallback:
    """The callback, which first raises a `BenchError` if the run's folder was removed while the run went on."""

    def checked(step: Step) -> None:
        store.check_started(job.folder, job.digest)
        report(step)

    return checked


def _train_and_evaluate(job: Job, outcome: RunOutcome, clock: Ledger, report: ProgressCallback, world: World) -> None:
    """Fill the outcome with the trainer and the scores; raises `DivergedError` at a number that is not finite."""
    backbone, evaluators = outcome.models.backbone, outcome.models.evaluators
    if isinstance(job, TrainingRun):
        outcome.trainer = Trainer.new(job, backbone, evaluators, world)
        outcome.trainer.train(report)
    else:
        backbone.reset(stream(0, "initial_policy"))
    spec = job.suite.evaluation
    part = HeldOutPart(spec.videos_per_prompt, keep=spec.keep_videos, folder=job.folder)
    with clock.phase("evaluate"):
        outcome.scores = evaluate(backbone, evaluators, job.prepared, report, world, part)


def _claim_folder(job: Job) -> None:
    """Mark the folder as that of this run; another run in it is removed if the job overwrites, else refused."""
    other = store.other_digest(job.folder, job.digest)
    if other is not None:
        if not job.overwrite:
            store.check_digest(job.folder, other, job.digest)
        store.remove_run(job.folder)
    store.start_run(job.folder, job.digest, job.inputs)


def _execute(job: Job, report: ProgressCallback, world: World, log_attempt: bool) -> store.RunRecord:
    attempt = None
    if world.is_main:
        if log_attempt:
            read_attempts(job.suite_folder)  # before anything is removed: a broken log refuses the start
        _claim_folder(job)
        if log_attempt:
            attempt = record_attempt(job.suite_folder, "start", job.identity["row"], job.identity["seed"], job.digest)
        report = _watch_folder(job, report)
    world.barrier()  # the files of another run are gone
    clock = Ledger()
    with unchanged_process(f"a plug-in of the run {job.label} (its backbone, its method or an evaluator)"):
        with clock.phase("load"):
            outcome = RunOutcome(load_models(job, report, world), attempt=attempt)
        try:
            _train_and_evaluate(job, outcome, clock, report, world)
        except DivergedError as cause:
            outcome.error = str(cause)
    backbone = outcome.models.backbone
    report(Step("store", 1, 1))
    if outcome.error is not None and world.is_main:
        remove_videos(job.folder)  # those that the evaluation had stored before it failed
    record = run_record(job, outcome, clock.seconds, world)
    trained = outcome.trainer is not None and outcome.error is None
    policy = backbone.state_dict() if trained else {}  # a collective call where the weights are sharded
    if not world.is_main:
        return record
    if trained:
        save_policy(job.folder, policy)
    record = store.write_run(job.folder, record, None if outcome.scores is None else outcome.scores.scores)
    (job.folder / store.CHECKPOINT).unlink(missing_ok=True)
    return record
