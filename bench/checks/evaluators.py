"""The promises of an evaluator, each checked on the golden clips: `check_evaluator` raises at the first broken one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.api import BenchError, Evaluator, Metric
from bench.checks import golden
from bench.checks.batch import finite, require, shape
from bench.checks.golden import formula_clips
from bench.checks.violations import CheckSequence, Violation, raise_first

Given = dict[str, Tensor]


class CheckTarget(NamedTuple):
    """A batch of golden clips of one size, and what the evaluator gave for it."""

    videos: Tensor
    """[b, 3, f, h, w] in [0, 1]; b is at least 3."""
    prompts: list[str]
    """All different, of different lengths where the evaluator takes any text."""
    fps: float
    given: Given
    tolerance: float
    """Largest difference between two ways to one score, relative to max(1, |score|)."""

    def again(self, e: Evaluator, rows: Sequence[int], prompts: Sequence[str] | None = None) -> Given:
        """Scores of some of the clips, in this order, with their own or with other prompts."""
        return _scored(e, self.videos[list(rows)], prompts or [self.prompts[i] for i in rows], self.fps)

    def gap(self, got: Given, metric: str, rows: Sequence[int]) -> float:
        """Largest difference of a metric to the scores of the whole batch, relative to max(1, |score|)."""
        expected = self.given[metric][list(rows)]
        return float(((got[metric] - expected).abs() / expected.abs().clamp(min=1)).max())


def _scored(e: Evaluator, videos: Tensor, prompts: Sequence[str], fps: float) -> Given:
    """Scores on copies, so that an evaluator which changes its input spoils no other check."""
    return {name: values.detach().cpu() for name, values in e.score(videos.clone(), list(prompts), fps).items()}


def _call(e: Evaluator) -> CheckTarget:
    clips = formula_clips(e)
    require(bool(clips), f"only_size is {e.only_size}, which no golden clip has: no check can be made")
    size = max((clip.size for clip in clips), key=lambda one: (sum(c.size == one for c in clips), one))
    batch = [clip for clip in clips if clip.size == size]
    videos, prompts = torch.stack([clip.pixels() for clip in batch]), [clip.prompt for clip in batch]
    given = _scored(e, videos, prompts, batch[0].fps)
    return CheckTarget(videos, prompts, batch[0].fps, given, golden.tolerance(e)[0])


# the promises -------------------------------------------------------------------------------------------------
def _declaration(e: Evaluator) -> None:
    metrics = getattr(e, "metrics", None)
    require(isinstance(metrics, Mapping) and bool(metrics), "metrics is no mapping from names to bench.api.Metric")
    for name, metric in e.metrics.items():
        require(isinstance(metric, Metric), f"metrics[{name!r}] is no bench.api.Metric")
        require(bool(str(metric.unit).strip()), f"{name} names no unit")
    unknown = sorted(e.prompt_free - e.metrics.keys())
    require(not unknown, f"prompt_free names {unknown}, which metrics does not declare")


def _fingerprint(e: Evaluator) -> None:
    found = dict(e.fingerprint())
    require(bool(found), "fingerprint is empty: nothing says what made a score")
    odd = [key for key, value in found.items() if not (isinstance(key, str) and isinstance(value, str))]
    require(not odd, f"fingerprint holds {odd[:1]}, which is no text")
    json.dumps(found)
    require(dict(e.fingerprint()) == found, "two calls of fingerprint differ")


def _metrics(e: Evaluator, asked: CheckTarget) -> None:
    declared, given = sorted(e.metrics), sorted(asked.given)
    require(given == declared, f"score gives {given}, metrics declares {declared}")
    for name, values in asked.given.items():
        shape(values, (len(asked.videos),), name)
        require(values.is_floating_point(), f"{name} is of type {values.dtype}, expected a float")


def _finite(e: Evaluator, asked: CheckTarget) -> None:
    for name, values in asked.given.items():
        finite(values, name)


def _repeatable(e: Evaluator, asked: CheckTarget) -> None:
    again = asked.again(e, range(len(asked.videos)))
    for name, values in asked.given.items():
        require(torch.equal(again[name], values), f"two calls with the same videos give different {name}")


def _independent(e: Evaluator, asked: CheckTarget) -> None:
    rows = range(len(asked.videos))
    orders = [("alone", [i]) for i in rows] + [("in another order", list(reversed(rows)))]
    for how, order in orders:
        got = asked.again(e, order)
        for name in asked.given:
            gap = asked.gap(got, name, order)
            require(gap <= asked.tolerance, f"{name} of a video {how} differs by {gap:.3g} from its score in a batch")


def _prompts(e: Evaluator, asked: CheckTarget) -> None:
    rows = range(len(asked.videos))
    got = asked.again(e, rows, [*asked.prompts[1:], asked.prompts[0]])
    for name in asked.given:
        gap = asked.gap(got, name, rows)
        if name in e.prompt_free:
            require(
                gap <= asked.tolerance, f"{name} is declared prompt_free, and another prompt moves it by {gap:.3g}"
            )
        else:
            require(gap > 0, f"{name} is the same with other prompts: name it in prompt_free if it should be")


def _pure(e: Evaluator, asked: CheckTarget) -> None:
    videos, prompts = asked.videos.clone(), list(asked.prompts)
    e.score(videos, prompts, asked.fps)
    require(torch.equal(videos, asked.videos), "score changes the videos in place")
    require(prompts == asked.prompts, "score changes the list of prompts")


def _refuses_nan(e: Evaluator, asked: CheckTarget) -> None:
    videos = asked.videos.clone()
    videos[1, 0, 0, 0, 0] = float("nan")
    try:
        e.score(videos, list(asked.prompts), asked.fps)
    except BenchError:
        return
    require(False, "a video with a NaN pixel is scored: raise BenchError")


def _details(e: Evaluator, asked: CheckTarget) -> None:
    import pandas as pd

    asked.again(e, [0])
    found = e.details()
    require(isinstance(found, pd.DataFrame), f"details gives {type(found).__name__}, expected a pandas.DataFrame")


def modules(e: Evaluator) -> list[nn.Module]:
    """Every network that the evaluator holds, itself or through an object of its own, each once."""
    held = list(vars(e).values())
    ours = [vars(part).values() for part in held if _is_plain(part)]
    found = [part for part in [*held, *(value for values in ours for value in values)] if isinstance(part, nn.Module)]
    return list({id(module): module for module in found}.values())


def _is_plain(part: object) -> bool:
    """Whether a part is an object with attributes of its own, neither a module nor a tensor nor a class."""
    return hasattr(part, "__dict__") and not isinstance(part, nn.Module | torch.Tensor | type)


def weight_groups(module: nn.Module, idle: frozenset[str]) -> dict[str, list[nn.Parameter]]:
    """Parameters by the first three parts of their names, the last part (weight, bias) left out."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if name not in idle:
            groups.setdefault(".".join(name.split(".")[:-1][:3]) or name, []).append(parameter)
    return groups


def _weights(e: Evaluator, asked: CheckTarget) -> None:
    known = {name for module in modules(e) for name, _ in module.named_parameters()}
    require(
        not known or e.idle_weights <= known, f"idle_weights names {sorted(e.idle_weights - known)}, which are none"
    )
    rows = range(len(asked.videos))
    for module in modules(e):
        for group, parameters in weight_groups(module, e.idle_weights).items():
            kept = [parameter.detach().clone() for parameter in parameters]
            try:
                with torch.no_grad():
                    for parameter in parameters:
                        ramp = torch.linspace(0.5, 1.5, parameter.numel(), device=parameter.device)
                        parameter.copy_(parameter * ramp.view_as(parameter).to(parameter.dtype) + 0.01)
                got = asked.again(e, rows)
            finally:
                with torch.no_grad():
                    for parameter, value in zip(parameters, kept, strict=True):
                        parameter.copy_(value)
            same = all(torch.equal(got[name], values) for name, values in asked.given.items())
            require(not same, f"other weights in {group} change no score: are they the weights that score uses?")


BEFORE: dict[str, Callable[[Evaluator], None]] = {"declaration": _declaration, "fingerprint": _fingerprint}
#: Checks that need scores.
AFTER: dict[str, Callable[[Evaluator, CheckTarget], None]] = {
    "metrics": _metrics,
    "finite scores": _finite,
    "repeatable": _repeatable,
    "independent videos": _independent,
    "prompts": _prompts,
    "input unchanged": _pure,
    "NaN refused": _refuses_nan,
    "details": _details,
    "weights count": _weights,
}
SEQUENCE: CheckSequence[Evaluator, CheckTarget] = CheckSequence(
    before=BEFORE,
    call_name="score",
    call=_call,
    after=AFTER,
    essential=2,
    randomness="score moves torch's or numpy's global random state: use a generator of your own.",
)
CHECKS = SEQUENCE.names
#: Where the promise of a check is kept, if not in `score`.
HOOKS = {"declaration": None, "fingerprint": "fingerprint", "details": "details"}


def evaluator_violations(e: Evaluator) -> Iterator[Violation]:
    """Every broken promise of an evaluator, in the order of `CHECKS`, at most one per check."""
    return SEQUENCE.violations(e)


def check_evaluator(e: Evaluator) -> tuple[str, ...]:
    """The names of the checks that `e` passed, all of them; the first that fails raises `BenchError`."""
    raise_first("evaluator", e, evaluator_violations(e))
    return CHECKS
