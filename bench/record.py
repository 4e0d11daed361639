"""What the record of a run says: settings, spending, fingerprints, provenance, gates."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from bench import store
from bench.api import Backbone, Evaluator
from bench.build import Job, gpu, recorded
from bench.evaluate import Evaluation
from bench.processes import World
from bench.provenance import digest, peak_kib, provenance

if TYPE_CHECKING:
    from bench.train import Trainer


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
    found: Evaluation | None,
    error: str | None,
    seconds: dict[str, float],
    gates: dict[str, Any],
    world: World,
) -> store.RunRecord:
    """All that is known of a run once it has ended; `seconds` and `gates` are those of loading and judging."""
    exp, row = job.exp, job.row
    budget = dataclasses.asdict(exp.budget)
    params = {} if trainer is None else recorded(trainer.method)
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
        provenance=provenance(processes=world.size, shard=world.shard, **gpu()),
        updates_done=0 if trainer is None else trainer.updates_done,
        gates=gates if trainer is None or trainer.audit is None else {**gates, "ratio_audit": trainer.audit},
        extra={
            "scale": exp.scale,
            **_gpu_peak(world),
            **({} if trainer is None else trainer.noted()),
            **({} if found is None else found.lengths()),
        },
    )
