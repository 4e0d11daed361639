"""One run from its models to its record."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from bench import store
from bench.api import Backbone, Evaluator
from bench.core.hashing import digest
from bench.core.provenance import peak_kib, provenance
from bench.core.world import World
from bench.suite.devices import gpu_name
from bench.suite.job import Job
from bench.suite.methods import recorded_params
from bench.train import checkpoint
from bench.train.evaluate import HeldOutScores

if TYPE_CHECKING:
    from bench.train.trainer import Trainer


from contextlib import nullcontext

from bench.api import DivergedError
from bench.checks.golden import GATE, golden_gate
from bench.core.ledger import Ledger
from bench.core.rng import stream
from bench.core.world import SINGLE_PROCESS, check_divisible
from bench.store.policy import save_policy
from bench.store.record import STARTED
from bench.suite.build import make_backbone, make_evaluator
from bench.train.evaluate import evaluate
from bench.train.trainer import ProgressCallback, Trainer


def _gpu_peak(world: World) -> dict[str, float]:
    """Largest memory of tensors on one process's GPU, in MB of 10^6 bytes; nothing where no GPU was used."""
    import torch

    used = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    peak = max(world.everyone(used))
    return {"gpu_peak_memory_mb": peak / 1e6} if peak else {}


def run_record(
    job: Job,
    backbone: Backbone,
    evaluators: dict[str, Evaluator],
    trainer: Trainer | None,
    found: HeldOutScores | None,
    error: str | None,
    seconds: dict[str, float],
    gates: dict[str, Any],
    world: World,
) -> store.RunRecord:
    """All that is known of a run once it has ended; `seconds` and `gates` are those of loading and judging."""
    exp, row = job.exp, job.row
    budget = dataclasses.asdict(exp.budget)
    params = {} if trainer is None else recorded_params(trainer.method)
    return store.RunRecord(
        suite=exp.suite,
        row="base" if row is None else row.name,
        method=None if row is None else row.method,
        method_params=params,
        kl=None if row is None else row.kl_spec.name,
        seed=job.seed,
        status="finished" if error is None else "failed",
        error=error,
        digest=job.digest,
        budget=budget,
        budget_digest=digest(budget),
        prompts_digest=exp.check_prompts(),
        config=exp.model_dump(mode="json"),
        evaluators={name: dict(e.fingerprint()) for name, e in evaluators.items()} if world.writes else {},
        backbone=dict(backbone.fingerprint()) if world.writes else {},  # hashes gigabytes
        ledger={} if trainer is None else trainer.ledger.totals(),
        seconds={**({} if trainer is None else trainer.ledger.seconds), **seconds},
        peak_memory_mb=max(world.everyone(peak_kib())) * 1024 / 1e6,
        provenance=provenance(processes=world.size, shard=world.shard, **gpu_name()),
        updates_done=0 if trainer is None else trainer.updates_done,
        gates=gates if trainer is None or trainer.audit is None else {**gates, "ratio_audit": trainer.audit},
        extra={
            "scale": exp.scale,
            **_gpu_peak(world),
            **({} if trainer is None else trainer.noted()),
            **({} if found is None else found.lengths()),
        },
    )


def load_models(job: Job, world: World = SINGLE_PROCESS) -> tuple[Backbone, dict[str, Evaluator], dict[str, Any]]:
    """The suite's backbone with all prompts encoded, the run's evaluators, and the gate of their golden scores."""
    exp = job.exp
    backbone = make_backbone(exp, world)
    # all at once: a backbone that frees its text encoders in between loads them once
    backbone.encode([*exp.prompt_list("train"), *exp.prompt_list("heldout")])
    names = exp.judges if job.row else exp.evaluation.evaluators
    evaluators = {name: make_evaluator(exp, name) for name in names}
    return backbone, evaluators, {GATE: golden_gate(exp, evaluators)}


def execute(job: Job, report: ProgressCallback, world: World = SINGLE_PROCESS) -> store.RunRecord:
    """Do one run to its record, which one process of the world writes.

    A divergence is recorded as a failed run; any other error leaves it unfinished, to be resumed.
    """
    if job.row is not None:
        check_divisible(job.exp.budget, world.shares)
    job.folder.mkdir(parents=True, exist_ok=True)
    with checkpoint.run_lock(job.folder) if world.writes else nullcontext():
        return _execute(job, report, world)


def _execute(job: Job, report: ProgressCallback, world: World) -> store.RunRecord:
    if world.writes:
        store.write_text(job.folder / STARTED, job.digest + "\n")
    exp, clock = job.exp, Ledger()
    report("load", 0, 1)
    with clock.phase("load"):
        backbone, evaluators, gates = load_models(job, world)
    trainer, error, found = None, None, None
    try:
        if job.row is not None:
            trainer = Trainer.new(job, backbone, evaluators, world)
            trainer.train(report)
        else:
            backbone.reset(stream(0, "initial_policy"))
        with clock.phase("evaluate"):
            prompts = exp.prompt_list("heldout")

            def heard(done: int, total: int) -> None:
                report("evaluate", done, total)

            found = evaluate(backbone, evaluators, exp, prompts, heard, world)
    except DivergedError as cause:
        error = str(cause)
    report("store", 1, 1)
    record = run_record(job, backbone, evaluators, trainer, found, error, clock.seconds, gates, world)
    trained = trainer is not None and error is None
    policy = backbone.state_dict() if trained else {}  # of all processes at once, where the weights are sharded
    if not world.writes:
        return record
    if trained:
        save_policy(job.folder, policy)
    record = store.write_run(job.folder, record, None if found is None else found.scores)
    (job.folder / store.CHECKPOINT).unlink(missing_ok=True)
    return record
