"""A stored run against its method's class: parameters, schedule, division, trained steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from bench import store
from bench.algorithm.forward import FORWARD, noise_levels
from bench.algorithm.steps import noisy_steps, schedule_properties, step_weights, trainable_steps, trained_steps
from bench.api import AnyMethod, ForwardMethod, Method
from bench.audit.findings import Note, Result, StoredRun, missing
from bench.core.errors import BenchError
from bench.flow import sigma_schedule
from bench.suite.difference import differences, shortened
from bench.suite.division import open_reasons
from bench.suite.methods import make_method, recorded_params, rollout_config
from bench.suite.schema import PluginSpec, RowSpec, Suite

ROUNDING = 1e-5
"""Relative difference of two schedules that other hardware may cause: they are computed in float32 and float64."""


def check_method(run: StoredRun) -> Iterator[Result]:
    """Problems of a trained run that its method's class shows; nothing of the folder's own code is imported."""
    row = run.row
    if row is None:
        yield f"its configuration has no row {run.record.row!r}"
        return
    own = {"method": row.method, "kl": row.kl_spec.name}
    for name, (stored, configured) in differences(run.record.model_dump(include={"method", "kl"}), own).items():
        yield f"its {name} is {stored}, but row {row.name!r} of its configuration has {configured}"
    if foreign := foreign_code(run.suite, row):
        yield Note(f"not compared with its class: {foreign} is code of its own; `bench verify --replay` runs it")
        return
    try:
        method = make_method(run.suite, row)
    except BenchError as error:
        yield Note(f"not compared with its class, which cannot be made here ({str(error).rstrip('.')})")
        return
    yield from _parameters(run, method)
    yield from _division(run, method, row)
    if is_forward(run) != isinstance(method, ForwardMethod):
        family = run.record.extra.get("family")
        yield f"its record has the family {family!r}, which is not that of {type(method).__name__}"
        return
    yield from _schedule(run, method)
    if isinstance(method, ForwardMethod):
        yield from _noise_levels(run, method)
    elif isinstance(method, Method):
        yield from _step_weights(run, method)
        yield from _trained_steps(run, method)


def is_forward(run: StoredRun) -> bool:
    """Whether the record is that of a forward method, which has no ratio and no schedule of noise."""
    return run.record.extra.get("family") == FORWARD


def _noise_levels(run: StoredRun, method: ForwardMethod) -> Iterator[Result]:
    """Every update trained at the noise levels of the stream that is named after seed and update."""
    if run.record.seed is None:
        return
    config = rollout_config(run.suite, run.record.seed)
    for line in run.lines:
        own = noise_levels(method, config, line["update"]).double().mean(1).tolist()
        if not _close(line.get("noise_levels"), own):
            stored = shortened(line.get("noise_levels"))
            yield (
                f"update {line['update']} of {store.TRAIN} has the mean noise levels {stored}, but its seed draws "
                f"{shortened(own)}"
            )
            return


def foreign_code(suite: Suite, row: RowSpec) -> str | None:
    """The first "module:Class" from which the row's schedule is made; verification imports no such code."""
    names = [row.method, suite.noise_policy.kind if isinstance(suite.noise_policy, PluginSpec) else ""]
    return next((name for name in names if ":" in name), None)


def _parameters(run: StoredRun, method: AnyMethod) -> Iterator[str]:
    """The parameters are those of the row; the clip range is scaled by the size of the latent."""
    stored, own = dict(run.record.method_params), recorded_params(method)
    clip, own_clip = stored.pop("clip_range", None), own.pop("clip_range", None)
    for name, (there, here) in differences(stored, own, absent="absent").items():
        if isinstance(here, float) and _close([there], [here]):
            continue  # an eta that a noise policy computes, on other hardware
        yield f"its method's {name} is {shortened(there)}, but its configuration gives {shortened(here)}"
    if clip == own_clip and not isinstance(method, Method):
        return  # the ratio of a forward method, if it has one, is not one of noise
    if not (isinstance(clip, float) and isinstance(own_clip, float) and clip > 0):
        yield f"its clip range is {shortened(clip)}, but its configuration gives {own_clip}"
        return
    reference = run.suite.clip_reference_size
    elements = None if reference is None else reference * (own_clip / clip) ** 2
    if clip != own_clip if elements is None else not math.isclose(elements, round(elements), rel_tol=1e-9):
        size = "" if elements is None else f", scaled from {reference} latent elements to a whole number of them"
        yield f"its clip range is {clip:.6g}, but its configuration gives {own_clip:.6g}{size}"


def _division(run: StoredRun, method: AnyMethod, row: RowSpec) -> Iterator[Result]:
    stored = run.record.open_reasons
    if stored is None:
        yield missing(run.record, "open_reasons")
    elif stored != (own := open_reasons(method, row)):
        division = f"open ({'; '.join(own)})" if own else "closed"
        yield f"its open_reasons are {stored}, but its class and its row make it {division}"


def expected_schedule(method: AnyMethod, suite: Suite, rules: int) -> dict[str, list[float]]:
    """What a run of this method under this version of the rules records as its schedule."""
    sigmas = sigma_schedule(suite.budget.steps, suite.budget.shift)
    schedule = schedule_properties(method, sigmas, rollout_config(suite, 0))
    return (
        schedule
        if rules > 1 or not isinstance(method, Method)
        else {**schedule, "step_weight": method.step_weights(sigmas).tolist()}
    )


def _schedule(run: StoredRun, method: AnyMethod) -> Iterator[Result]:
    """The recorded schedule is that of the class."""
    stored = run.record.extra.get("schedule")
    if not isinstance(stored, Mapping):
        yield missing(run.record, "extra.schedule")
        return
    expected = expected_schedule(method, run.suite, run.record.rules)
    for name, values in expected.items():
        if not _close(stored.get(name), values):
            shown = [float(f"{value:.4g}") for value in values]
            yield (
                f"its schedule has {name} {shortened(stored.get(name))}, but {type(method).__name__} with its "
                f"settings gives {shortened(shown)}"
            )


def _step_weights(run: StoredRun, method: Method) -> Iterator[Result]:
    """Each update used the weights of the steps that it trained."""
    if not run.lines or "step_weights" not in run.lines[0]:
        yield missing(run.record, f"step_weights of {store.TRAIN}")
        return
    for line in run.lines:
        weights = _weights_of(run, method, line["update"])
        if not _close(_flat(line.get("step_weights")), _flat(weights)):
            stored_weights = shortened(line.get("step_weights"))
            yield (
                f"update {line['update']} of {store.TRAIN} has the step weights {stored_weights}, but its schedule "
                f"gives {shortened(weights)}"
            )
            return


def _weights_of(run: StoredRun, method: Method, update: int) -> list[Any]:
    """The weights of the trained steps in this update: the scale is that of the steps that may train in it."""
    budget, config = run.suite.budget, rollout_config(run.suite, run.record.seed or 0)
    sigmas = sigma_schedule(budget.steps, budget.shift)
    noisy = noisy_steps(method, sigmas, config, update)
    if run.record.rules == 1:
        weights = method.step_weights(sigmas)
    else:
        weights = step_weights(method, sigmas, trainable_steps(noisy, config))
    return weights[trained_steps(method, sigmas, noisy, config, update)].tolist()


def _flat(values: Any) -> Any:
    """A list of lists as one list: the steps of each prompt, where prompts have their own. Other values unchanged."""
    if isinstance(values, list) and values and all(isinstance(part, list) for part in values):
        return [value for part in values for value in part]
    return values


def _close(stored: Any, expected: list[float]) -> bool:
    """Whether a list of the record has the expected numbers, up to `ROUNDING`."""
    return (
        isinstance(stored, list)
        and len(stored) == len(expected)
        and all(
            isinstance(a, (int, float)) and math.isclose(a, b, rel_tol=ROUNDING, abs_tol=ROUNDING * 1e-2)
            for a, b in zip(stored, expected, strict=True)
        )
    )


def _trained_steps(run: StoredRun, method: Method) -> Iterator[Result]:
    """Every update trained the steps of the stream that is named after seed and update."""
    budget, seed = run.suite.budget, run.record.seed
    if seed is None or not run.lines:
        return
    if "trained_steps" not in run.lines[0]:
        yield missing(run.record, f"trained_steps of {store.TRAIN}")
        return
    config, sigmas = rollout_config(run.suite, seed), sigma_schedule(budget.steps, budget.shift)
    for line in run.lines:
        update = line["update"]
        steps = trained_steps(method, sigmas, noisy_steps(method, sigmas, config, update), config, update).tolist()
        if line.get("trained_steps") != steps:
            stored = shortened(line.get("trained_steps"))
            yield f"update {update} of {store.TRAIN} trained the steps {stored}, but its seed draws {steps}"
            return
