"""`train.jsonl` against the budget, the streams of the seed, the KL policy and itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench import plugins, store
from bench.algorithm.kl import RAMP, ControlledKL
from bench.algorithm.optimizers import BETAS
from bench.api import KLPolicy
from bench.audit.findings import Note, Result, StoredRun, missing
from bench.core.errors import BenchError
from bench.suite.difference import shortened
from bench.train.rewards import prompt_indices
from bench.train.trainer import RATIO_TOLERANCE

FLOAT32 = 2.0**-23
"""Distance of the float32 numbers next to 1."""
MEAN_ROUNDING = 1e-4
"""Relative difference of sums and means that are taken in other orders, of numbers in float32."""
Line = Mapping[str, Any]


def check_log(run: StoredRun) -> Iterator[Result]:
    """Problems of the log of a trained run, one per kind: that of the first update that has it."""
    for check in (_rewards, _ratio_errors, _gradients, _prompts, _learning_rates, _weights):
        yield from check(run)
    yield from _kl(run)


def numbers(value: Any) -> list[float] | None:
    """A list of numbers; None for anything else."""
    ok = isinstance(value, list) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
    return value if ok else None


def _at(line: Line) -> str:
    return f"update {line['update']} of {store.TRAIN}"


def _rewards(run: StoredRun) -> Iterator[str]:
    """The reward is the weighted sum of its metrics."""
    weights = run.suite.weights
    for line in run.lines:
        means = line.get("rewards")
        values = numbers([means.get(name) for name in weights] if isinstance(means, Mapping) else None)
        total = numbers([line.get("reward")])
        if values is None or total is None:
            yield f"{_at(line)} has no reward, or not that of each metric"
            return
        parts = [weight * value for weight, value in zip(weights.values(), values, strict=True)]
        if abs(total[0] - sum(parts)) > MEAN_ROUNDING * sum(map(abs, parts)) + FLOAT32:
            yield f"{_at(line)} has the reward {total[0]:.6g}, but its metrics add up to {sum(parts):.6g}"
            return


def _ratio_errors(run: StoredRun) -> Iterator[Result]:
    """The gate of update 0 has the harness's form and the logged error; a larger error of a later update is a note."""
    gates = run.record.gates
    if "ratio_audit" not in gates or not run.lines:
        return  # a finding of its own
    if "ratio_error" not in run.lines[0]:
        yield missing(run.record, f"ratio_error of {store.TRAIN}")
        return
    errors = numbers([line.get("ratio_error") for line in run.lines])
    if errors is None or min(errors) < 0:
        yield f"{store.TRAIN} does not have a ratio error of at least 0 for each update"
        return
    expected = {"passed": errors[0] <= RATIO_TOLERANCE, "largest": errors[0], "tolerance": RATIO_TOLERANCE}
    if gates["ratio_audit"] != expected:
        stored = shortened(gates["ratio_audit"], 120)
        yield f"its ratio audit is {stored}, but the ratio error of update 0 makes it {expected}"
    later = [n for n, error in enumerate(errors) if n > 0 and error > RATIO_TOLERANCE]
    if later:
        yield Note(
            f"update {later[0]} of {store.TRAIN} has the ratio error {errors[later[0]]:.3g}, above "
            f"{RATIO_TOLERANCE:g}, which the harness asks of update 0 only ({len(later)} such updates)"
        )


def _gradients(run: StoredRun) -> Iterator[Result]:
    """A gradient is no longer than its parts together, and the clipped ones are counted."""
    budget = run.suite.budget
    if not run.lines or "grad_norm" not in run.lines[0]:
        if run.lines:
            yield missing(run.record, f"grad_norm of {store.TRAIN}")
        return
    counted = "grad_clipped" in run.lines[0]
    if not counted:
        yield missing(run.record, f"grad_clipped of {store.TRAIN}")
    for line in run.lines:
        norms, parts = numbers(line.get("grad_norm")), line.get("grad_norm_of_step")
        shares = numbers(list(parts.values()) if isinstance(parts, Mapping) else None)
        if norms is None or len(norms) != budget.minibatches or shares is None:
            yield f"{_at(line)} does not have {budget.minibatches} gradient norms and those of the trained steps"
            return
        steps = numbers(line.get("trained_steps")) or []  # lists where each prompt has its own
        if steps and norms[0] > (1 + MEAN_ROUNDING) * sum(shares):
            yield f"{_at(line)} has the gradient norm {norms[0]:.4g}, above {sum(shares):.4g}, the sum of its steps"
            return
        if isinstance(parts, Mapping) and set(parts) != set(map(str, steps)):
            yield f"{_at(line)} has gradient norms of the steps {', '.join(parts)}, which are not the trained ones"
            return
        clipped = sum(norm > budget.grad_clip for norm in norms)
        if counted and line.get("grad_clipped") != clipped:
            yield f"{_at(line)} counts {line.get('grad_clipped')} clipped gradients, but its norms give {clipped}"
            return


def _prompts(run: StoredRun) -> Iterator[Result]:
    """Every update has the training prompts of the stream that is named after the seed."""
    if not run.lines or run.record.seed is None:
        return
    if "prompts" not in run.lines[0]:
        yield missing(run.record, f"prompts of {store.TRAIN}")
        return
    try:
        lists = run.suite.read_prompts()
    except BenchError:
        return  # a finding of its own
    if lists.digest(run.suite.evaluation.prompts) != run.record.prompts_digest:
        return  # a finding of its own
    for line in run.lines:
        drawn = prompt_indices(len(lists.train), run.suite.budget.prompts, run.record.seed, line["update"])
        if line.get("prompts") != drawn:
            yield f"{_at(line)} has the prompts {shortened(line.get('prompts'))}, but its seed draws {drawn}"
            return


def largest_step(t: int) -> float:
    """Largest |m| / sqrt(v) of AdamW's bias-corrected moments after t steps, for any gradients.

    With weights w_i of the gradients in m and u_i of their squares in v, Cauchy and Schwarz give
    |sum w_i g_i| <= sqrt(sum w_i^2 / u_i) sqrt(sum u_i g_i^2). The sum is geometric: 1 at t = 1, 1.76 at t = 60.
    """
    b1, b2 = BETAS
    q = b1 * b1 / b2
    scale = (1 - b1) ** 2 / (1 - b2) * (1 - b2**t) / (1 - b1**t) ** 2
    return math.sqrt(scale * (1 - q**t) / (1 - q))


def _learning_rates(run: StoredRun) -> Iterator[Result]:
    """Every optimizer step has the learning rate of the row, and changes the weights by no more than AdamW can.

    Weight decay adds its factor times the rms of the weights, which is taken as at most 1; float32 rounds the weights.
    """
    if not run.lines or run.row is None:
        return
    if not {"lr", "step_rms"} <= run.lines[0].keys():
        yield missing(run.record, f"lr and step_rms of {store.TRAIN}")
        return
    budget = run.suite.budget
    lr = budget.lr if run.row.lr is None else run.row.lr
    slack = budget.weight_decay + FLOAT32 / lr
    for n, line in enumerate(run.lines):
        rates, sizes = numbers(line.get("lr")), numbers(line.get("step_rms"))
        if rates is None or sizes is None or not len(rates) == len(sizes) == budget.minibatches:
            yield f"{_at(line)} does not have the learning rate and the size of {budget.minibatches} optimizer steps"
            return
        if set(rates) != {lr}:
            yield f"{_at(line)} was trained with the learning rate {rates[0]:g}, but its row has {lr:g}"
            return
        for k, size in enumerate(sizes):
            bound = largest_step(n * budget.minibatches + k + 1) + slack
            if budget.optimizer == "adamw" and not 0 <= size <= bound:
                yield (
                    f"{_at(line)} changed the weights by {size:.4g} learning rates (rms), but AdamW changes them by "
                    f"at most {bound:.4g}: something else changed weights or learning rate"
                )
                return


def _weights(run: StoredRun) -> Iterator[Result]:
    """Every update begins with the weights with which the one before ended."""
    if not run.lines:
        return
    if not {"weights_before", "weights_after"} <= run.lines[0].keys():
        yield missing(run.record, f"weights_before and weights_after of {store.TRAIN}")
        return
    for before, line in zip(run.lines, run.lines[1:], strict=False):
        if line.get("weights_before") != before.get("weights_after"):
            yield (
                f"{_at(line)} begins with the weights {shortened(line.get('weights_before'))}, but update "
                f"{before['update']} ended with {shortened(before.get('weights_after'))}"
            )
            return


def _kl(run: StoredRun) -> Iterator[Result]:
    """The weights of the KL terms are those of the row's controller for the logged means of the terms."""
    if run.row is None or not run.lines:
        return
    spec = run.row.kl_spec
    if ":" in spec.name:
        yield Note(f"its KL weights are not compared: {spec.name} is code of its own; `bench verify --replay` runs it")
        return
    try:
        policy = plugins.kl_policy(spec.name, **spec.params)
    except BenchError as error:
        yield Note(f"its KL weights are not compared: the KL policy cannot be made here ({str(error).rstrip('.')})")
        return
    if "kl_weight" not in run.lines[0]:
        yield missing(run.record, f"kl_weight of {store.TRAIN}")
    else:
        yield from _controller(run, policy)


def _controller(run: StoredRun, policy: KLPolicy) -> Iterator[Result]:
    state: Mapping[str, Any] = policy.init_state()
    terms, ticks = list(policy.weights(state)), run.suite.budget.minibatches * run.suite.budget.train_steps
    for line in run.lines:
        logged = line.get("kl_ticks")
        if logged is None:
            done = (line["update"] + 1) * ticks
            if terms and not (isinstance(policy, ControlledKL) and (policy.controller == "constant" or done < RAMP)):
                yield missing(run.record, f"kl_ticks of {store.TRAIN}")
                return
            logged = [dict.fromkeys(terms, 0.0)] * ticks  # no KL decides anything on the ramp
        elif problem := _ticks_problem(line, logged, terms, ticks):
            yield f"{_at(line)} {problem}"
            return
        try:
            for tick in logged:
                state = policy.next_state(state, tick)
        except BenchError as error:
            yield f"{_at(line)} has KL values that its policy refuses ({str(error).rstrip('.')})"
            return
        if not _equal_weights(line.get("kl_weight"), policy.weights(state)):
            own = {name: float(f"{weight:.6g}") for name, weight in policy.weights(state).items()}
            yield f"{_at(line)} has the KL weights {shortened(line.get('kl_weight'))}, but its controller gives {own}"
            return


def _ticks_problem(line: Line, logged: Any, terms: Sequence[str], ticks: int) -> str | None:
    """What is wrong with the logged KL values of one update: their form, or their mean."""
    if not isinstance(logged, list) or len(logged) != ticks:
        return f"does not have the KL values of {ticks} ticks"
    for tick in logged:
        if not isinstance(tick, Mapping) or set(tick) != set(terms) or numbers(list(tick.values())) is None:
            return f"has a tick without the KL values {', '.join(terms)}"
    for term in terms:
        values, mean = [tick[term] for tick in logged], numbers([line.get(f"kl_{term}")])
        largest = max(map(abs, values), default=0.0)
        if mean is None or abs(mean[0] - sum(values) / ticks) > MEAN_ROUNDING * largest:
            return f"has the mean kl_{term} {line.get(f'kl_{term}')}, which is not that of its ticks"
    return None


def _equal_weights(stored: Any, own: Mapping[str, float]) -> bool:
    """Whether two mappings of KL weights are equal up to the last digits of their text."""
    if not isinstance(stored, Mapping) or set(stored) != set(own) or numbers(list(stored.values())) is None:
        return False
    return all(math.isclose(stored[name], weight, rel_tol=1e-12) for name, weight in own.items())
