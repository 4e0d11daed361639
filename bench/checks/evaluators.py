"""The promises of an evaluator, one check for each, on the golden clips.

`check_evaluator` raises at the first broken promise, `evaluator_violations` finds all of them. A run checks its
evaluators before it trains (`evaluator_gate`).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.api import Evaluator, Metric
from bench.checks.golden import formula_clips, tolerance
from bench.checks.violations import (
    CheckSequence,
    Violation,
    raise_first,
    require,
    require_fingerprint,
    require_finite,
    require_shape,
)
from bench.core.errors import BenchError

GATE = "evaluator_checks"
"""Name of the gate in records."""
WEIGHTS = "weights count"
"""Name of the check that other weights give other scores."""
Scores = dict[str, Tensor]
"""Metric to one value per video, [b]."""


class ScoredBatch(NamedTuple):
    """A batch of golden clips of one size, and the evaluator's scores for it."""

    videos: Tensor
    """[b, 3, f, h, w] in [0, 1]; b is at least 3."""
    prompts: list[str]
    """All different, of different lengths where the evaluator takes any text."""
    fps: float
    scores: Scores
    tolerance: float
    """Largest difference between two ways to one score, relative to max(1, |score|)."""

    def score(self, evaluator: Evaluator, rows: Sequence[int], prompts: Sequence[str] | None = None) -> Scores:
        """Scores of some of the clips, in this order, with their own or with other prompts."""
        return _score(evaluator, self.videos[list(rows)], prompts or [self.prompts[i] for i in rows], self.fps)

    def difference(self, scores: Scores, metric: str, rows: Sequence[int]) -> float:
        """Largest difference of a metric to the scores of the whole batch, relative to max(1, |score|)."""
        expected = self.scores[metric][list(rows)]
        return float(((scores[metric] - expected).abs() / expected.abs().clamp(min=1)).max())


def _score(evaluator: Evaluator, videos: Tensor, prompts: Sequence[str], fps: float) -> Scores:
    """Scores on copies, so that an evaluator which changes its input does not affect other checks."""
    return {
        name: values.detach().cpu() for name, values in evaluator.score(videos.clone(), list(prompts), fps).items()
    }


def _first_scores(evaluator: Evaluator) -> ScoredBatch:
    clips = formula_clips(evaluator)
    require(bool(clips), f"only_size is {evaluator.only_size}, which no golden clip has: no check can be made")
    size = max((clip.size for clip in clips), key=lambda one: (sum(c.size == one for c in clips), one))
    batch = [clip for clip in clips if clip.size == size]
    videos, prompts = torch.stack([clip.pixels() for clip in batch]), [clip.prompt for clip in batch]
    scores = _score(evaluator, videos, prompts, batch[0].fps)
    return ScoredBatch(videos, prompts, batch[0].fps, scores, tolerance(evaluator)[0])


def _declaration(evaluator: Evaluator) -> None:
    metrics = getattr(evaluator, "metrics", None)
    require(isinstance(metrics, Mapping) and bool(metrics), "metrics is not a mapping from names to bench.api.Metric")
    for name, metric in evaluator.metrics.items():
        require(isinstance(metric, Metric), f"metrics[{name!r}] is not a bench.api.Metric")
        require(bool(str(metric.unit).strip()), f"{name} has no unit")
    unknown = sorted(evaluator.prompt_free - evaluator.metrics.keys())
    require(not unknown, f"prompt_free names {unknown}, which metrics does not declare")


def _fingerprint(evaluator: Evaluator) -> None:
    require_fingerprint(evaluator.fingerprint)


def _metrics(evaluator: Evaluator, batch: ScoredBatch) -> None:
    declared, scored = sorted(evaluator.metrics), sorted(batch.scores)
    require(scored == declared, f"score gives {scored}, metrics declares {declared}")
    for name, values in batch.scores.items():
        require_shape(values, (len(batch.videos),), name)
        require(values.is_floating_point(), f"{name} is of type {values.dtype}, expected a float")


def _finite(evaluator: Evaluator, batch: ScoredBatch) -> None:
    for name, values in batch.scores.items():
        require_finite(values, name)


def _repeatable(evaluator: Evaluator, batch: ScoredBatch) -> None:
    again = batch.score(evaluator, range(len(batch.videos)))
    for name, values in batch.scores.items():
        require(torch.equal(again[name], values), f"two calls with the same videos give different {name}")


def _independent(evaluator: Evaluator, batch: ScoredBatch) -> None:
    rows = range(len(batch.videos))
    orders = [("alone", [i]) for i in rows] + [("in another order", list(reversed(rows)))]
    for label, order in orders:
        scores = batch.score(evaluator, order)
        for name in batch.scores:
            gap = batch.difference(scores, name, order)
            require(
                gap <= batch.tolerance, f"{name} of a video {label} differs by {gap:.3g} from its score in a batch"
            )


def _prompts(evaluator: Evaluator, batch: ScoredBatch) -> None:
    rows = range(len(batch.videos))
    scores = batch.score(evaluator, rows, [*batch.prompts[1:], batch.prompts[0]])
    for name in batch.scores:
        gap = batch.difference(scores, name, rows)
        if name in evaluator.prompt_free:
            require(
                gap <= batch.tolerance, f"{name} is declared prompt_free, but another prompt changes it by {gap:.3g}"
            )
        else:
            require(gap > 0, f"{name} is the same with other prompts: name it in prompt_free if it should be")


def _pure(evaluator: Evaluator, batch: ScoredBatch) -> None:
    videos, prompts = batch.videos.clone(), list(batch.prompts)
    evaluator.score(videos, prompts, batch.fps)
    require(torch.equal(videos, batch.videos), "score changes the videos in place")
    require(prompts == batch.prompts, "score changes the list of prompts")


def _refuses_nan(evaluator: Evaluator, batch: ScoredBatch) -> None:
    videos = batch.videos.clone()
    videos[1, 0, 0, 0, 0] = float("nan")
    try:
        evaluator.score(videos, list(batch.prompts), batch.fps)
    except BenchError:
        return
    require(False, "a video with a NaN pixel is scored: raise BenchError")


def _details(evaluator: Evaluator, batch: ScoredBatch) -> None:
    import pandas as pd

    batch.score(evaluator, [0])
    details = evaluator.details()
    require(isinstance(details, pd.DataFrame), f"details gives {type(details).__name__}, expected a pandas.DataFrame")


def modules(evaluator: Evaluator) -> list[nn.Module]:
    """Every network of the evaluator, as an attribute of it or of one of its plain objects, each once."""
    attributes = list(vars(evaluator).values())
    nested = [value for part in attributes if _is_plain(part) for value in vars(part).values()]
    networks = [part for part in (*attributes, *nested) if isinstance(part, nn.Module)]
    return list({id(network): network for network in networks}.values())


def _is_plain(part: object) -> bool:
    """Whether this is an object with attributes that is not a module, a tensor or a class."""
    return hasattr(part, "__dict__") and not isinstance(part, nn.Module | torch.Tensor | type)


def weight_groups(module: nn.Module, idle: frozenset[str]) -> dict[str, list[nn.Parameter]]:
    """Parameters by the first three parts of their names, without the last part (weight, bias) and without `idle`."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if name not in idle:
            groups.setdefault(".".join(name.split(".")[:-1][:3]) or name, []).append(parameter)
    return groups


def _weights(evaluator: Evaluator, batch: ScoredBatch) -> None:
    weights = {name for module in modules(evaluator) for name, _ in module.named_parameters()}
    unknown = sorted(evaluator.idle_weights - weights)
    require(not weights or not unknown, f"idle_weights names {unknown}, which are not weights")
    rows = range(len(batch.videos))
    for module in modules(evaluator):
        for group, parameters in weight_groups(module, evaluator.idle_weights).items():
            originals = [parameter.detach().clone() for parameter in parameters]
            try:
                with torch.no_grad():
                    for parameter in parameters:
                        ramp = torch.linspace(0.5, 1.5, parameter.numel(), device=parameter.device)
                        parameter.copy_(parameter * ramp.view_as(parameter).to(parameter.dtype) + 0.01)
                scores = batch.score(evaluator, rows)
            finally:
                with torch.no_grad():
                    for parameter, value in zip(parameters, originals, strict=True):
                        parameter.copy_(value)
            same = all(torch.equal(scores[name], values) for name, values in batch.scores.items())
            require(not same, f"other weights in {group} change no score: are they the weights that score uses?")


_SEQUENCE: CheckSequence[Evaluator, ScoredBatch] = CheckSequence(
    before={"declaration": _declaration, "fingerprint": _fingerprint},
    call_name="score",
    call=_first_scores,
    after={
        "metrics": _metrics,
        "finite scores": _finite,
        "repeatable": _repeatable,
        "independent videos": _independent,
        "prompts": _prompts,
        "input unchanged": _pure,
        "NaN refused": _refuses_nan,
        "details": _details,
        WEIGHTS: _weights,
    },
    essential=2,
    randomness="score changes torch's or numpy's global random state: use a generator of its own.",
)
CHECKS = _SEQUENCE.names
HOOK_OF_CHECK: Mapping[str, str | None] = {"declaration": None, "fingerprint": "fingerprint", "details": "details"}
"""Method of the class that breaks the promise of a check, if it is not `score`; None: the class itself."""


def evaluator_violations(evaluator: Evaluator) -> Iterator[Violation]:
    """Every broken promise of an evaluator, in the order of `CHECKS`, at most one per check."""
    return _SEQUENCE.violations(evaluator)


def check_evaluator(evaluator: Evaluator) -> tuple[str, ...]:
    """The names of the checks, all passed by `evaluator`; the first that fails raises `BenchError`."""
    raise_first("evaluator", evaluator, evaluator_violations(evaluator))
    return CHECKS


def evaluator_gate(evaluators: Mapping[str, Evaluator]) -> dict[str, Any]:
    """The gate of a run that its evaluators pass the checks of `bench check`; the first failure is a `BenchError`.

    "weights count" is left to `bench check`, since it changes the weights, group by group. An evaluator that accepts
    no golden clip cannot be checked; then `passed` is None.
    """
    entries: dict[str, Any] = {}
    for name, evaluator in evaluators.items():
        if formula_clips(evaluator):
            raise_first("evaluator", evaluator, _SEQUENCE.violations(evaluator, (WEIGHTS,)))
            entries[name] = {"passed": True, "checks": len(CHECKS) - 1}
        else:
            entries[name] = {"passed": None, "not_available": f"no golden clip has the size {evaluator.only_size}"}
    return {"passed": True if all(entry["passed"] for entry in entries.values()) else None, "evaluators": entries}


def check_reward_metrics(reward: Mapping[str, Collection[str]], metrics: Mapping[str, Collection[str]]) -> None:
    """Raise a `BenchError` for a reward metric that its evaluator does not give, with the nearest one that it gives.

    `reward`: evaluator to the metrics of the suite. `metrics`: evaluator to the metrics that it gives, where known.
    """
    for name in [name for name in reward if name in metrics]:
        for metric in reward[name]:
            if metric not in metrics[name]:
                near = difflib.get_close_matches(metric, metrics[name], 1)
                hint = f"did you mean {near[0]!r}? Fix" if near else "fix"
                raise BenchError(
                    f"reward {name}.{metric}: the evaluator gives {', '.join(metrics[name])}; {hint} 'reward:' in the "
                    "YAML."
                )
