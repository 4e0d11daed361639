"""`bench audit`: whether the ratio is 1 before the first update, and which errors other practices would cause.

The rollout of update 0 is made as in training. Every stored transition is then scored again by the forward pass of
training, with gradients enabled and weights unchanged: the remaining |ratio - 1| is the error of the harness. Then the
scoring is repeated with practices found in other codebases, one at a time, on the same rollout. A practice changes the
stored latents or wraps the backbone's velocity; the backbone itself stays as it is.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench import store
from bench.algorithm.ratio import Predictor, Rescorer, ratio_error
from bench.algorithm.rollout import Rollout, Sampler
from bench.algorithm.update import minibatches, split_micro_batches
from bench.api import Backbone, Conditioning, Method, NamesUncondPrompt
from bench.core.errors import BenchError
from bench.core.ledger import Ledger
from bench.core.progress import inform, track, working
from bench.core.provenance import provenance
from bench.core.rng import stream
from bench.flow import TIMESTEPS
from bench.store.policy import load_policy
from bench.suite.devices import refuse_context_parallel
from bench.suite.prepared import PreparedRow, PreparedSuite, make_backbone
from bench.train.preflight import check_suite
from bench.train.rewards import collect_rollout, update_prompts
from bench.train.trainer import RATIO_TOLERANCE

RECORD = "audit.json"
"""File of the audit below the folder of the suite's records."""
Rows = Int[Tensor, "k"]
"""Indices of the samples of one call of the backbone."""


@dataclass(frozen=True)
class AuditCase:
    """A rollout, and how its transitions are scored again."""

    backbone: Backbone
    predictor: Predictor
    """Source of the velocities of the second scoring: the backbone, or a wrapper of it."""
    method: Method
    rollout: Rollout
    calls: list[Rows]
    """Samples of each call of the second scoring."""
    guidance: float
    uncond_grad: bool
    """Whether gradients flow through the unconditional branch of guidance."""

    def log_ratio(self) -> Float[Tensor, "n b"]:
        """New minus stored log-probability of each trained step and sample."""
        rescorer = Rescorer(self.predictor, self.method, self.guidance, self.uncond_grad)
        log_ratio = torch.empty_like(self.rollout.logp_old)
        for n in range(len(log_ratio)):
            for rows in self.calls:
                log_ratio[n, rows] = rescorer(self.rollout, n, rows).log_ratio
        return log_ratio

    def velocity(self, x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        """The backbone's own velocity."""
        return self.backbone.velocity(x, sigma, cond, guidance, self.uncond_grad)


Practice = Callable[[AuditCase], AuditCase | str]
"""The case with one practice applied, or why it cannot be applied."""


@dataclass(frozen=True)
class WrappedPredictor:
    """A predictor whose velocity is a function of (x, sigma, cond, guidance)."""

    function: Callable[[Tensor, Tensor, Conditioning, float], Tensor]

    def velocity(
        self,
        x: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        cond: Conditioning,
        guidance: float,
        uncond_grad: bool = True,
    ) -> Float[Tensor, "b ..."]:
        return self.function(x, sigma, cond, guidance)


def _one_sample_per_call(case: AuditCase) -> AuditCase | str:
    if all(len(rows) == 1 for rows in case.calls):
        return "the suite's own batch shape"
    return dataclasses.replace(case, calls=[rows[None] for rows in torch.cat(case.calls).sort().values])


def _one_call(case: AuditCase) -> AuditCase | str:
    if len(case.calls) == 1:
        return "the suite's own batch shape"
    return dataclasses.replace(case, calls=[torch.cat(case.calls).sort().values])


def _round_latents(case: AuditCase, *names: str) -> AuditCase | str:
    """Round latents of the rollout after they were scored."""
    stored = {name: getattr(case.rollout, name) for name in names}
    rounded: dict[str, Any] = {name: _bfloat16(x) for name, x in stored.items()}
    if all(torch.equal(rounded[name], x) for name, x in stored.items()):
        return "the backbone keeps its latents in bfloat16 already, and scores what it keeps"
    return dataclasses.replace(case, rollout=dataclasses.replace(case.rollout, **rounded))


def _bfloat16_latents(case: AuditCase) -> AuditCase | str:
    return _round_latents(case, "x", "x_next")


def _unrounded_next_latent(case: AuditCase) -> AuditCase | str:
    return _round_latents(case, "x_next")


def _bfloat16_timestep(case: AuditCase) -> AuditCase | str:
    def velocity(x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        return case.velocity(x, _bfloat16(TIMESTEPS * sigma) / TIMESTEPS, cond, guidance)

    return dataclasses.replace(case, predictor=WrappedPredictor(velocity))


def _bfloat16_autocast(case: AuditCase) -> AuditCase | str:
    trained = next(iter(case.backbone.parameters()), None)
    device = "cpu" if trained is None else trained.device.type

    def velocity(x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            v = case.velocity(x, sigma, cond, guidance)
        return v.to(x.dtype)

    return dataclasses.replace(case, predictor=WrappedPredictor(velocity))


def _bfloat16_guidance(case: AuditCase) -> AuditCase | str:
    if case.guidance == 1:
        return "guidance is 1, so there is no unconditional branch"
    prompt = case.backbone.uncond_prompt if isinstance(case.backbone, NamesUncondPrompt) else ""
    uncond = case.backbone.encode([prompt])

    def guided(x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float, dtype: torch.dtype) -> Tensor:
        """base + guidance * (v - base) in `dtype`; the base is the unconditional prompt's velocity."""
        v = case.velocity(x, sigma, cond, 1.0).to(dtype)
        with nullcontext() if case.uncond_grad else torch.no_grad():
            base = case.velocity(x, sigma, uncond.take([0] * len(x)), 1.0).to(dtype)
        return (base + guidance * (v - base)).to(x.dtype)

    def velocity(x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        return guided(x, sigma, cond, guidance, torch.bfloat16)

    rollout, rows = case.rollout, case.calls[0]
    first_call = (rollout.x[0][rows], rollout.levels(0, rows)[0], rollout.cond.take(rows.tolist()))
    with torch.no_grad():
        own, rebuilt = case.velocity(*first_call, case.guidance), guided(*first_call, case.guidance, torch.float32)
    if not torch.equal(own, rebuilt):
        return "the backbone's guidance is not base + guidance * (v - base) with its unconditional prompt as base"
    return dataclasses.replace(case, predictor=WrappedPredictor(velocity))


def _bfloat16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


PRACTICES: dict[str, Practice] = {
    "one sample per call": _one_sample_per_call,
    "all samples in one call": _one_call,
    "stored latents in bfloat16": _bfloat16_latents,
    "unrounded next latent scored": _unrounded_next_latent,
    "timestep in bfloat16": _bfloat16_timestep,
    "bfloat16 autocast": _bfloat16_autocast,
    "guidance in bfloat16": _bfloat16_guidance,
}
"""Practices of the second scoring; the rollout and its log-probabilities are those of training."""


def measure_ratio(log_ratio: Float[Tensor, "..."], clip_range: float) -> dict[str, float | None]:
    """Largest |ratio - 1|, mean |log-ratio| and share beyond the clip range, in [0, 1]; None if not finite."""
    error = ratio_error(log_ratio)
    numbers = {
        "largest": float(error.max()),
        "mean_log_ratio": float(log_ratio.abs().mean()),
        "beyond_clip": float((~(error <= clip_range)).double().mean()),
    }
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def _try_practice(case: AuditCase, practice: Practice, clip_range: float) -> dict[str, Any]:
    try:
        changed = practice(case)
        if isinstance(changed, str):
            return {"left_out": changed}
        return measure_ratio(changed.log_ratio(), clip_range)
    except (RuntimeError, BenchError) as cause:  # out of memory, a dtype that the backbone does not take
        return {"left_out": f"the backbone refuses it: {' '.join(str(cause).split())[:160]}"}


def make_case(prepared: PreparedSuite, row: PreparedRow, backbone: Backbone, seed: int) -> AuditCase:
    """The rollout of update 0, to be scored in the micro-batches of training."""
    suite, budget = prepared.suite, prepared.suite.budget
    method = prepared.method(row, math.prod(backbone.latent_shape))
    if not isinstance(method, Method):
        raise BenchError(f"row {row.name!r}: {row.spec.method} is a forward method, which has no ratio to audit.")
    prompts = update_prompts(prepared.prompts.train, budget.prompts, seed, 0)
    sampler = Sampler(backbone, method, prepared.rollout_config(seed), Ledger())
    rollout = collect_rollout(sampler, row.kl_policy, prompts, 0)
    assert isinstance(rollout, Rollout)
    calls = [rows for minibatch in minibatches(budget, seed, 0) for rows in split_micro_batches(minibatch, budget)]
    return AuditCase(backbone, backbone, method, rollout, calls, budget.guidance, suite.trains_uncond)


def audit_row(prepared: PreparedSuite, row: PreparedRow, backbone: Backbone, seed: int) -> dict[str, Any]:
    """The audit of one row: each trained step, whether it passes, and each practice."""
    case = make_case(prepared, row, backbone, seed)
    clip_range = case.method.clip_range
    log_ratio = case.log_ratio()
    total = measure_ratio(log_ratio, clip_range)
    steps = ((case.rollout.step_name(n), values) for n, values in enumerate(log_ratio))
    return {
        "row": row.name,
        "passed": total["largest"] is not None and total["largest"] <= RATIO_TOLERANCE,
        **total,
        "clip_range": clip_range,
        "steps": [{"step": step, **measure_ratio(values, clip_range)} for step, values in steps],
        "practices": {name: _try_practice(case, practice, clip_range) for name, practice in PRACTICES.items()},
    }


def audit_suite(prepared: PreparedSuite, labels: Sequence[str] = (), policy: Path | None = None) -> dict[str, Any]:
    """The audit of the suite's rows, or of those with these labels.

    The policy is fresh, or the one that the finished run in the folder `policy` stored. The result is JSON data.
    """
    suite = prepared.suite
    unknown = [label for label in labels if label not in [row.name for row in suite.rows]]
    if unknown:
        raise BenchError(
            f"suite {suite.name} has no row {unknown[0]!r}: --row takes {', '.join(row.name for row in suite.rows)}."
        )
    refuse_context_parallel(suite, "bench audit")
    check_suite(prepared)
    seed, rows = suite.seeds[0], []
    with working(f"loading {suite.backbone.name}"):
        backbone = make_backbone(prepared, prompts=prepared.all_prompts)  # as a run does, for its cache of texts
        backbone.encode(prepared.prompts.train)
    for row in track([row for row in prepared.rows if not labels or row.name in labels], "auditing rows"):
        backbone.reset(stream(seed, "initial_policy"))
        if policy is not None:
            load_policy(backbone, policy)
        rows.append(audit_row(prepared, row, backbone, seed))
        inform(f"{suite.name}: {row.name} {'passes' if rows[-1]['passed'] else 'fails'}")
    return {
        "schema": 1,
        "suite": suite.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "policy": "fresh" if policy is None else policy.as_posix(),
        "samples": suite.budget.prompts * suite.budget.group_size,
        "tolerance": RATIO_TOLERANCE,
        "passed": all(row["passed"] for row in rows),
        "backbone": dict(backbone.fingerprint()),
        "provenance": provenance(),
        "rows": rows,
    }


def write_audit(audit: dict[str, Any], results: Path) -> Path:
    """Write `results/<suite>/audit.json`, atomically."""
    path = results / str(audit["suite"]) / RECORD
    store.write_text(path, json.dumps(audit, indent=1, allow_nan=False) + "\n")
    return path
