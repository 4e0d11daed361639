"""Which steps of a rollout are noisy, which of them train, and their weights: the method's choices, checked."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench.algorithm.sampling import RolloutConfig
from bench.api import AnyMethod, Method
from bench.core.errors import BenchError
from bench.core.rng import stream


def injected_variance(method: Method, sigmas: Float[Tensor, "t1"]) -> Float[Tensor, "t"]:
    """Variance that each step of the schedule injects per latent element."""
    sigma, sigma_next = sigmas[:-1].double(), sigmas[1:].double()
    zero = torch.zeros(len(sigma), 1, dtype=torch.float64)
    return method.transition(zero, zero, sigma, sigma_next).std.double() ** 2


def _generators(method: Method, settings: RolloutConfig, hook: str, update: int) -> list[torch.Generator]:
    """One generator for a hook that chooses steps, or one per prompt of the update."""
    if not method.per_prompt:
        return [stream(settings.seed, hook, update)]
    return [stream(settings.seed, hook, update, prompt) for prompt in range(settings.budget.prompts)]


def marked_steps(
    method: Method, sigmas: Float[Tensor, "t1"], settings: RolloutConfig, update: int
) -> Bool[Tensor, "*p t"]:
    """What `stochastic` marks: [t], or [p, t] where each prompt has its own steps."""
    steps, masks = len(sigmas) - 1, []
    for rng in _generators(method, settings, "stochastic", update):
        mask = method.stochastic(sigmas, update, rng)
        if mask.shape != (steps,) or mask.dtype != torch.bool:
            raise BenchError(
                f"{type(method).__name__}.stochastic returned {mask.dtype} {list(mask.shape)}: return bool [{steps}]."
            )
        masks.append(mask)
    return torch.stack(masks) if method.per_prompt else masks[0]


def noisy_steps(
    method: Method, sigmas: Float[Tensor, "t1"], settings: RolloutConfig, update: int
) -> Bool[Tensor, "*p t"]:
    """Marks the noisy steps: the method's choice without steps whose kernel adds no noise (the last one of CPS).

    With the decode rule `predicted_x0` the last step is not noisy either.
    """
    noisy = marked_steps(method, sigmas, settings, update) & (injected_variance(method, sigmas) > 0)
    if settings.decode == "predicted_x0":
        noisy[..., -1] = False
    return noisy


def step_weights(method: Method, sigmas: Float[Tensor, "t1"], trainable: Bool[Tensor, "*p t"]) -> Float[Tensor, "t"]:
    """The method's step weights, scaled to mean 1 over the steps that may train.

    The scale is a constant of the steps that may train in an update, whichever of them it draws: a method decides how
    its steps compare, not how large its update is. Raises `BenchError` for weights of which no step that may train has
    one above 0.
    """
    weights = method.step_weights(sigmas)
    mean = weights.expand_as(trainable)[trainable].double().mean()
    if not 0 < mean < math.inf:
        raise BenchError(
            f"{type(method).__name__}.step_weights has the mean {float(mean):g} over the steps that may train: return "
            "finite weights, at least one of them above 0."
        )
    return (weights.double() / mean).float()


def _step_counts(method: Method, sigmas: Tensor, settings: RolloutConfig, marked: Bool[Tensor, "t"]) -> str:
    """Why a method has no more steps to train, for a message: its choice, its kernel, the settings of the suite."""
    silent = marked & (injected_variance(method, sigmas) == 0)
    counts = f"the method marks {int(marked.sum())} of {len(marked)} steps noisy, "
    if silent.any():
        eta = f" with eta {method.eta:g}" if hasattr(method, "eta") else ""
        counts += f"its kernel adds no noise at {int(silent.sum())} of them{eta}, "
    if marked[-1] and not silent[-1]:
        if settings.decode == "predicted_x0":
            counts += "`decode: predicted_x0` silences the last, "
        elif not settings.train_last:
            counts += "`last_step: untrained` leaves out the last, "
    return counts


def trainable_steps(noisy: Bool[Tensor, "*p t"], settings: RolloutConfig) -> Bool[Tensor, "*p t"]:
    """Marks the steps that may train: the noisy ones, without the last if the suite says so."""
    trainable = noisy.clone()
    trainable[..., -1] &= settings.train_last
    return trainable


def trained_steps(
    method: Method, sigmas: Tensor, noisy: Tensor, settings: RolloutConfig, update: int
) -> Int[Tensor, "*p n"]:
    """Indices of the trained steps, ascending: from the method's own `train_steps`, else drawn from the noisy steps.

    The draw does not depend on the method, so methods with the same noisy steps train the same steps.
    """
    masks = trainable_steps(noisy, settings).reshape(-1, noisy.shape[-1])
    chosen = []
    for prompt, (mask, rng) in enumerate(
        zip(masks, _generators(method, settings, "train_steps", update), strict=True)
    ):
        candidates = mask.nonzero()[:, 0]
        if len(candidates) < settings.budget.train_steps:
            marked = marked_steps(method, sigmas, settings, update).reshape(masks.shape)[prompt]
            where = f"update {update}" + (f", prompt {prompt}" if method.per_prompt else "")
            raise BenchError(
                f"{type(method).__name__} has {len(candidates)} steps to train at {where}, but budget.train_steps is "
                f"{settings.budget.train_steps}: {_step_counts(method, sigmas, settings, marked)}{len(candidates)} "
                "remain. Widen its window, or lower budget.train_steps."
            )
        chosen.append(_choose(method, sigmas, candidates, settings.budget.train_steps, rng))
    return torch.stack(chosen) if method.per_prompt else chosen[0]


def _choose(
    method: Method, sigmas: Tensor, candidates: Int[Tensor, "m"], n: int, rng: torch.Generator
) -> Int[Tensor, "n"]:
    """n of the steps that may train, ascending."""
    if type(method).train_steps is Method.train_steps:
        return candidates[torch.randperm(len(candidates), generator=rng)[:n]].sort().values
    chosen = method.train_steps(sigmas, n, rng)
    is_integer = not chosen.is_floating_point() and chosen.dtype != torch.bool
    if (
        chosen.shape != (n,)
        or not is_integer
        or not set(chosen.tolist()) <= set(candidates.tolist())
        or len(chosen.unique()) != n
    ):
        raise BenchError(
            f"{type(method).__name__}.train_steps returned {chosen.tolist()}: "
            f"return {n} different noisy steps out of {candidates.tolist()}."
        )
    return chosen.sort().values


def schedule_properties(
    method: AnyMethod, sigmas: Float[Tensor, "t1"], settings: RolloutConfig
) -> dict[str, list[float]]:
    """Properties of each rollout step: sigma, std of the noise, predicted gradient norm and step weight.

    Noisy steps are those of the first update, of any of its prompts. A forward method has none, and no weights.
    """
    if not isinstance(method, Method):
        return {"sigma": sigmas.tolist(), "std": [0.0] * (len(sigmas) - 1)}
    noisy = noisy_steps(method, sigmas, settings, 0)
    predicted = Method.step_weights(replace(method, equalizer="derived", weighting="off"), sigmas)
    return {
        "sigma": sigmas.tolist(),
        "std": (injected_variance(method, sigmas).sqrt() * noisy.reshape(-1, len(sigmas) - 1).any(0)).tolist(),
        "predicted_grad_norm": (1 / predicted).tolist(),
        "step_weight": step_weights(method, sigmas, trainable_steps(noisy, settings)).tolist(),
    }
