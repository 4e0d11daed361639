"""The promises of KL policies, noise policies and advantage rules, one check for each; all take a few milliseconds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from bench.api import AdvantageRule, Gaussian, KLPolicy, KLStep, NoisePolicy, RefreshRule, Rewards
from bench.checks.batch import GROUP, PROMPTS, equal_bits, synthetic_rewards
from bench.checks.violations import (
    CHANGES,
    RANDOMNESS,
    GlobalState,
    Violation,
    raise_first,
    require,
    require_finite,
    require_frozen,
    require_shape,
    run_check,
)
from bench.plugins import KINDS

SAMPLES = 3
TICKS = 25
"""Ticks of a KL policy's state that are checked."""
TAKEN = ("weight", "gradient")
"""Names that no term may have: `train.jsonl` has fields kl_weight and kl_gradient."""
ETAS = (0.25, 1.0)
"""Noise scales of the synthetic methods of a noise policy."""


# KL policies


def kl_step(policy: KLPolicy) -> KLStep:
    """A synthetic trained step of `SAMPLES` samples with the policy's anchors; the same numbers on every call."""
    rng = torch.Generator().manual_seed(0)
    mean, new, old = (torch.randn(SAMPLES, *rest, generator=rng) for rest in ((2, 1, 2, 2), (), ()))
    step = Gaussian(mean.requires_grad_(True), torch.tensor([0.1, 0.3, 0.2]))
    names = [name for name, rule in policy.anchors().items() if rule.network]
    references = {name: Gaussian(torch.randn(mean.shape, generator=rng), step.std) for name in names}
    divergences = {
        name: (step.mean - reference.mean).square().flatten(1).mean(1) / (2 * step.std**2)
        for name, reference in references.items()
    }
    sigma = torch.tensor([0.9, 0.6, 0.3])
    return KLStep(new.requires_grad_(True), old, step, references, divergences, sigma, sigma - 0.1)


def _rows(step: KLStep, order: list[int]) -> KLStep:
    """The same samples in another order."""

    def gaussian(value: Gaussian) -> Gaussian:
        return Gaussian(value.mean[order], value.std[order])

    return KLStep(
        step.logp_new[order],
        step.logp_old[order],
        gaussian(step.step),
        {name: gaussian(value) for name, value in step.references.items()},
        {name: value[order] for name, value in step.divergences.items()},
        step.sigma[order],
        step.sigma_next[order],
    )


def _anchors(policy: KLPolicy) -> None:
    anchors = policy.anchors()
    for name, rule in anchors.items():
        valid = isinstance(name, str) and isinstance(rule, RefreshRule)
        require(valid, f"anchors gives {name!r}: {rule!r}, expected a name and a RefreshRule")
    fixed = anchors.get("fixed", RefreshRule())
    require(
        fixed.every is None, "the anchor 'fixed' is refreshed, but it is the base model: give the copy another name"
    )
    require(dict(policy.anchors()) == dict(anchors), "two calls of anchors differ")


def _weights(policy: KLPolicy) -> None:
    for name, weight in policy.weights(policy.init_state()).items():
        valid = isinstance(name, str) and 0 <= weight < math.inf
        require(valid, f"weights gives {name!r}: {weight}, expected a finite factor of at least 0")
        require(
            name not in TAKEN, f"a term is called {name!r}, and kl_{name} is another field of train.jsonl: rename it"
        )


def _terms(policy: KLPolicy) -> None:
    names = set(policy.weights(policy.init_state()))
    terms = policy.terms(kl_step(policy))
    require(set(terms) == names, f"terms has the names {sorted(terms)}, but weights has {sorted(names)}")
    for name, values in terms.items():
        require_shape(values, (SAMPLES,), f"term {name}")
        require_finite(values, f"term {name}")


def _pure(policy: KLPolicy) -> None:
    step, untouched = kl_step(policy), kl_step(policy)
    first, again = dict(policy.terms(step)), dict(policy.terms(step))
    require(equal_bits(first, again), "two calls of terms with the same inputs differ")
    require(equal_bits(tuple(step), tuple(untouched)), "terms changes its inputs in place")


def _independent(policy: KLPolicy) -> None:
    step, order = kl_step(policy), list(reversed(range(SAMPLES)))
    flipped = policy.terms(_rows(step, order))
    for name, values in policy.terms(step).items():
        same = torch.allclose(flipped[name][order], values, rtol=1e-5, atol=1e-7)
        require(same, f"a sample's term {name} depends on the other samples of the batch")


def _gradient(policy: KLPolicy) -> None:
    step = kl_step(policy)
    for name, values in policy.terms(step).items():
        require(values.requires_grad, f"term {name} carries no gradient, so it cannot change the policy")
        inputs = [step.step.mean, step.logp_new]
        grads = torch.autograd.grad(values.sum(), inputs, retain_graph=True, allow_unused=True)
        for grad in grads:
            if grad is not None:
                require_finite(grad, f"the gradient of term {name}")
        require(any(grad is not None and bool(grad.any()) for grad in grads), f"term {name} has the gradient 0")


def _state(policy: KLPolicy) -> None:
    state = policy.init_state()
    names = list(policy.weights(state))
    for tick in range(TICKS):
        logs = {name: 1e-5 * (1 + tick % 3) for name in names}
        stored = json.dumps(state)
        after = policy.next_state(state, logs)
        require(json.dumps(state) == stored, "next_state changes the state that it is given")
        restored = json.loads(stored)
        require(
            restored == state, "the state does not survive a checkpoint: use JSON types (no tuples, keys are texts)"
        )
        require(policy.next_state(restored, logs) == after, "a resumed run would have another state at the next tick")
        weights = policy.weights(after)
        require(list(weights) == names, f"weights has the names {list(weights)} after a tick, and {names} before")
        require(all(0 <= weight < math.inf for weight in weights.values()), f"weights is {dict(weights)} after a tick")
        state = after


# Noise policies


def _choose(policy: NoisePolicy, scale: float) -> float | None:
    """The eta for a synthetic method with five noisy steps, the variance of which is scale * eta^2 in all."""
    shares = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    return policy.choose_eta(0.5, lambda eta: scale * eta**2 * shares)


def _eta(policy: NoisePolicy) -> None:
    for scale in ETAS:
        eta = _choose(policy, scale)
        require(
            eta is None or 0 <= eta < math.inf, f"choose_eta gives {eta}, expected None or a finite eta of at least 0"
        )
        require(
            eta is None or isinstance(eta, float | int), f"choose_eta gives {type(eta).__name__}, expected a number"
        )
        require(_choose(policy, scale) == eta, "two calls of choose_eta with the same inputs differ")


# Advantage rules


def _shape(rule: AdvantageRule) -> None:
    rewards = synthetic_rewards()
    adv = rule.advantages(rewards)
    require(
        adv.ndim == 3 and adv.shape[1:] == (PROMPTS, GROUP),
        f"advantages has shape {list(adv.shape)}, expected [k, {PROMPTS}, {GROUP}]",
    )
    require(
        len(adv) in (1, len(rewards.weights)), f"advantages gives {len(adv)} per sample, expected 1 or one per reward"
    )
    require_finite(adv, "advantages")
    require(bool(adv.any()), "all advantages are 0 although the rewards differ")


def _tied(rule: AdvantageRule) -> None:
    for value in (0.1, -3.0):
        tied = torch.full((PROMPTS, GROUP), value)
        adv = rule.advantages(Rewards({"a": tied, "b": tied.clone()}, {"a": 0.5, "b": 1.0}))
        require_finite(adv, "the advantage of a group with equal rewards")
        require(
            not adv.any(), f"a group with equal rewards has an advantage of {adv.abs().max().item():.3g}, expected 0"
        )
    mixed = {name: values.clone() for name, values in synthetic_rewards().items()}
    for values in mixed.values():
        values[0] = 0.1
    adv = rule.advantages(Rewards(mixed, {"a": 0.5, "b": 1.0}))
    require_finite(adv, "the advantage beside a group with equal rewards")
    require(
        not adv[:, 0].any(),
        f"a group with equal rewards beside another one has an advantage of {adv[:, 0].abs().max().item():.3g}, "
        "expected 0",
    )


def _rule_pure(rule: AdvantageRule) -> None:
    rewards = synthetic_rewards()
    first = rule.advantages(rewards)
    require(equal_bits(dict(rewards), dict(synthetic_rewards())), "advantages changes the rewards in place")
    require(equal_bits(rule.advantages(rewards), first), "two calls of advantages with the same rewards differ")


def _order(rule: AdvantageRule) -> None:
    rewards = synthetic_rewards()
    flipped = Rewards({name: values.flip(1) for name, values in rewards.items()}, rewards.weights)
    same = torch.allclose(rule.advantages(flipped).flip(2), rule.advantages(rewards), rtol=1e-5, atol=1e-6)
    require(same, "an advantage depends on the sample's position in its group")


CHECKS: Mapping[str, Mapping[str, Callable[[Any], None]]] = {
    "kl_policies": {
        "frozen dataclass": require_frozen,
        "anchors": _anchors,
        "weights": _weights,
        "terms": _terms,
        "purity": _pure,
        "independent samples": _independent,
        "gradient": _gradient,
        "state": _state,
    },
    "noise_policies": {"frozen dataclass": require_frozen, "eta": _eta},
    "advantage_rules": {
        "frozen dataclass": require_frozen,
        "advantages": _shape,
        "tied groups": _tied,
        "purity": _rule_pure,
        "order of samples": _order,
    },
}
"""Group of plug-ins to its checks by name; each also has `RANDOMNESS` at the end."""
HOOK_OF_CHECK: Mapping[str, Mapping[str, str]] = {
    "kl_policies": {
        **{"anchors": "anchors", "weights": "weights", "state": "next_state"},
        **dict.fromkeys(("terms", "purity", "independent samples", "gradient"), "terms"),
    },
    "noise_policies": {"eta": "choose_eta"},
    "advantage_rules": dict.fromkeys(("advantages", "tied groups", "purity", "order of samples"), "advantages"),
}
"""Hook that breaks the promise of a check; for the other checks it is the class as a whole."""


def check_names(group: str) -> tuple[str, ...]:
    """The names of a group's checks, in order."""
    return (*CHECKS[group], RANDOMNESS, CHANGES)


def rule_violations(group: str, plugin: object) -> Iterator[Violation]:
    """Every broken promise of a KL policy, a noise policy or an advantage rule, at most one per check."""
    state = GlobalState.take()
    for name, check in CHECKS[group].items():
        yield from run_check(name, check, plugin)
    yield from state.violations("a hook changes torch's or numpy's global random state: rules draw no numbers.")


def check_rule(group: str, plugin: object) -> None:
    """Raise a `BenchError` at the first broken promise."""
    raise_first(KINDS[group], plugin, rule_violations(group, plugin))
