"""`bench audit`: is the ratio 1 before the first update, and what would practices of other codebases make of it.

One rollout of round 0 as training does it; then every stored transition is scored again by the training forward, with
gradients on and weights frozen. What is left of |ratio - 1| is the harness's own error. The practices are then tried
one at a time on the same rollout; they change what is stored or asked, from outside of the backbone.
"""

from __future__ import annotations

import dataclasses
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
from bench.algorithm.kl import kl_policy
from bench.algorithm.rollout import Rollout
from bench.algorithm.update import Predictor, minibatches, pieces, ratio_error, rescore
from bench.api import Backbone, BenchError, Conditioning, Method
from bench.core.ledger import Ledger
from bench.core.progress import say
from bench.core.provenance import provenance
from bench.core.rng import stream
from bench.store.policy import load_policy
from bench.suite.build import make_backbone
from bench.suite.devices import refuse_context_parallel
from bench.suite.methods import make_method, rollout_config
from bench.suite.schema import Experiment, RowSpec
from bench.train.preflight import check_suite
from bench.train.rewards import collect_rollout, update_prompts
from bench.train.trainer import RATIO_TOLERANCE

RECORD = "audit.json"
TIMESTEPS = 1000.0
"""Timesteps of the flow-matching samplers of diffusers and of the released trainers: 1000 * sigma."""
Rows = list[Int[Tensor, "k"]]
"""Samples of each call of the backbone."""


@dataclass(frozen=True)
class Case:
    """A rollout, and how its transitions are scored again."""

    backbone: Backbone
    predictor: Predictor
    """Whose velocities the second scoring takes: the backbone's, or it asked differently."""
    method: Method
    rollout: Rollout
    calls: Rows
    guidance: float
    uncond_grad: bool

    def log_ratio(self) -> Float[Tensor, "n b"]:
        """log p now - log p stored of each trained step and sample."""
        found = torch.empty_like(self.rollout.logp_old)
        for n in range(len(found)):
            for rows in self.calls:
                again = rescore(self.predictor, self.method, self.rollout, n, rows, self.guidance, self.uncond_grad)
                found[n, rows] = again.log_ratio
        return found

    def plain(self, x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        """The backbone's own velocity."""
        return self.backbone.velocity(x, sigma, cond, guidance, self.uncond_grad)


Practice = Callable[[Case], Case | str]
"""The case with one practice in it, or why it cannot be applied."""


@dataclass(frozen=True)
class WrappedPredictor:
    """A backbone asked for its velocity in another way."""

    ask: Callable[[Tensor, Tensor, Conditioning, float], Tensor]

    def velocity(
        self,
        x: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        cond: Conditioning,
        guidance: float,
        uncond_grad: bool = True,
    ) -> Float[Tensor, "b ..."]:
        return self.ask(x, sigma, cond, guidance)


# practices ----------------------------------------------------------------------------------------------------
def _alone(case: Case) -> Case | str:
    if all(len(rows) == 1 for rows in case.calls):
        return "the suite's own batch shape"
    return dataclasses.replace(case, calls=[rows[None] for rows in torch.cat(case.calls).sort().values])


def _together(case: Case) -> Case | str:
    if len(case.calls) == 1:
        return "the suite's own batch shape"
    return dataclasses.replace(case, calls=[torch.cat(case.calls).sort().values])


def _rounded(case: Case, *names: str) -> Case | str:
    """Stored latents rounded after they were scored."""
    stored = {name: getattr(case.rollout, name) for name in names}
    kept: dict[str, Any] = {name: _bfloat16(x) for name, x in stored.items()}
    if all(torch.equal(kept[name], x) for name, x in stored.items()):
        return "the backbone keeps its latents in bfloat16 already, and scores what it keeps"
    return dataclasses.replace(case, rollout=dataclasses.replace(case.rollout, **kept))


def _stored(case: Case) -> Case | str:
    return _rounded(case, "x", "x_next")


def _unrounded(case: Case) -> Case | str:
    return _rounded(case, "x_next")


def _timestep(case: Case) -> Case | str:
    def ask(x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        return case.plain(x, _bfloat16(TIMESTEPS * sigma) / TIMESTEPS, cond, guidance)

    return dataclasses.replace(case, predictor=WrappedPredictor(ask))


def _autocast(case: Case) -> Case | str:
    trained = next(iter(case.backbone.parameters()), None)
    device = "cpu" if trained is None else trained.device.type

    def ask(x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            v = case.plain(x, sigma, cond, guidance)
        return v.to(x.dtype)

    return dataclasses.replace(case, predictor=WrappedPredictor(ask))


def _guidance(case: Case) -> Case | str:
    if case.guidance == 1:
        return "guidance is 1, so there is no unconditional branch"
    empty = case.backbone.encode([""])

    def guided(x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float, dtype: torch.dtype) -> Tensor:
        """base + guidance * (v - base) in `dtype`; the base is the empty prompt's velocity."""
        v = case.plain(x, sigma, cond, 1.0).to(dtype)
        with nullcontext() if case.uncond_grad else torch.no_grad():
            base = case.plain(x, sigma, empty.take([0] * len(x)), 1.0).to(dtype)
        return (base + guidance * (v - base)).to(x.dtype)

    def ask(x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        return guided(x, sigma, cond, guidance, torch.bfloat16)

    rows, i = case.calls[0], int(case.rollout.view.steps[0])
    one = (case.rollout.x[0][rows], case.rollout.sigmas[i].expand(len(rows)), case.rollout.cond.take(rows.tolist()))
    with torch.no_grad():
        own, rebuilt = case.plain(*one, case.guidance), guided(*one, case.guidance, torch.float32)
    if not torch.equal(own, rebuilt):
        return "the backbone's guidance is not base + guidance * (v - base) with the empty prompt as base"
    return dataclasses.replace(case, predictor=WrappedPredictor(ask))


def _bfloat16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


PRACTICES: dict[str, Practice] = {
    "one sample per call": _alone,
    "all samples in one call": _together,
    "stored latents in bfloat16": _stored,
    "unrounded next latent scored": _unrounded,
    "timestep in bfloat16": _timestep,
    "bfloat16 autocast": _autocast,
    "guidance in bfloat16": _guidance,
}
"""Each acts on the second scoring only: the rollout and its log-probabilities stay as training makes them."""


# numbers ------------------------------------------------------------------------------------------------------
def measure_ratio(log_ratio: Float[Tensor, "..."], clip_range: float) -> dict[str, float | None]:
    """Largest |ratio - 1|, mean |log-ratio|, share beyond the clip range in [0, 1]; None where one is not finite."""
    error = ratio_error(log_ratio)
    found = {
        "largest": float(error.max()),
        "mean_log_ratio": float(log_ratio.abs().mean()),
        "beyond_clip": float((~(error <= clip_range)).double().mean()),
    }
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _try_practice(case: Case, practice: Practice, clip_range: float) -> dict[str, Any]:
    try:
        changed = practice(case)
        if isinstance(changed, str):
            return {"left_out": changed}
        return measure_ratio(changed.log_ratio(), clip_range)
    except (RuntimeError, BenchError) as cause:  # out of memory, a dtype that the backbone does not take
        return {"left_out": f"the backbone refuses it: {' '.join(str(cause).split())[:160]}"}


def _case(exp: Experiment, row: RowSpec, backbone: Backbone, seed: int) -> Case:
    """The rollout of round 0, and its scoring as `bench.algorithm.update` does it."""
    method = make_method(exp, row, math.prod(backbone.latent_shape))
    policy, settings = kl_policy(row.kl_spec.name, **row.kl_spec.params), rollout_config(exp, seed)
    prompts = update_prompts(exp, exp.prompt_list("train"), seed, 0)
    rollout = collect_rollout(backbone, method, policy, prompts, settings, 0, Ledger())
    calls = [piece for rows in minibatches(exp.budget, seed, 0) for piece in pieces(rows, exp.budget)]
    return Case(backbone, backbone, method, rollout, calls, exp.budget.guidance, exp.trains_uncond)


def audit_row(exp: Experiment, row: RowSpec, backbone: Backbone, seed: int) -> dict[str, Any]:
    """One row: each trained step, the verdict, and each practice."""
    case = _case(exp, row, backbone, seed)
    clip_range = case.method.clip_range
    log_ratio = case.log_ratio()
    total = measure_ratio(log_ratio, clip_range)
    steps = zip(case.rollout.view.steps.tolist(), log_ratio, strict=True)
    return {
        "row": row.name,
        "passed": total["largest"] is not None and total["largest"] <= RATIO_TOLERANCE,
        **total,
        "clip_range": clip_range,
        "steps": [{"step": step, **measure_ratio(values, clip_range)} for step, values in steps],
        "practices": {name: _try_practice(case, practice, clip_range) for name, practice in PRACTICES.items()},
    }


def audit_suite(exp: Experiment, labels: Sequence[str] = (), policy: Path | None = None) -> dict[str, Any]:
    """The suite's rows, or those called so, with fresh policies or the one that a finished run stored."""
    unknown = [label for label in labels if label not in [row.name for row in exp.rows]]
    if unknown:
        raise BenchError(
            f"suite {exp.suite} has no row {unknown[0]!r}: --row takes {', '.join(row.name for row in exp.rows)}."
        )
    refuse_context_parallel(exp, "bench audit")
    check_suite(exp)
    seed, rows = exp.seeds[0], []
    backbone = make_backbone(exp)
    backbone.encode(exp.prompt_list("train"))
    for row in exp.rows:
        if labels and row.name not in labels:
            continue
        backbone.reset(stream(seed, "initial_policy"))
        if policy is not None:
            load_policy(backbone, policy)
        rows.append(audit_row(exp, row, backbone, seed))
        say(f"{exp.suite}: {row.name} {'passes' if rows[-1]['passed'] else 'fails'}")
    return {
        "schema": 1,
        "suite": exp.suite,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "policy": "fresh" if policy is None else policy.as_posix(),
        "samples": exp.budget.prompts * exp.budget.group_size,
        "tolerance": RATIO_TOLERANCE,
        "passed": all(row["passed"] for row in rows),
        "backbone": dict(backbone.fingerprint()),
        "provenance": provenance(),
        "rows": rows,
    }


def write_audit(found: dict[str, Any], results: Path) -> Path:
    """`results/<suite>/audit.json`, atomically."""
    import json

    path = results / str(found["suite"]) / RECORD
    store.write_text(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
    return path
