"""Shuffled rewards are permuted within each group, all metrics of a video together; diversity within a group."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.algorithm.rollout import Samples
from bench.algorithm.sampling import RolloutConfig
from bench.api import Budget, Conditioning
from bench.train.rewards import diversity, shuffle_rewards

VALUES = {"a": torch.arange(24.0).reshape(3, 8), "b": torch.arange(24.0).reshape(3, 8) * 10}


def test_each_group_keeps_its_rewards_and_each_video_its_metrics() -> None:
    values = shuffle_rewards(VALUES, seed=0, update=0)
    assert torch.equal(values["a"].sort(1).values, VALUES["a"])
    assert torch.equal(values["b"], values["a"] * 10)
    assert not torch.equal(values["a"], VALUES["a"])


def test_the_permutation_is_a_function_of_seed_and_update() -> None:
    first = shuffle_rewards(VALUES, seed=0, update=0)["a"]
    assert torch.equal(first, shuffle_rewards(VALUES, seed=0, update=0)["a"])
    assert not torch.equal(first, shuffle_rewards(VALUES, seed=0, update=1)["a"])
    assert not torch.equal(first, shuffle_rewards(VALUES, seed=1, update=0)["a"])


def test_a_shuffled_reward_does_not_correlate_with_the_true_one() -> None:
    """Correlation of true and shuffled rewards over 2000 groups of 8: within 5 standard errors of 0."""
    true = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    permuted = shuffle_rewards({"a": true}, seed=0, update=0)["a"]
    centred = [x - x.mean(1, keepdim=True) for x in (true, permuted)]
    correlation = (centred[0] * centred[1]).sum() / (centred[0].norm() * centred[1].norm())
    assert correlation.abs() < 5 / (2000 * 7) ** 0.5


def diversity_of(x0: Tensor, micro_batch: int = 64) -> float:
    """Diversity of 2 prompts of 4 samples with these latents."""
    budget = Budget(
        **{"updates": 1, "prompts": 2, "group_size": 4, "steps": 2, "train_steps": 1, "shift": 5.0, "guidance": 1.0},
        **{"lr": 1e-3, "micro_batch": micro_batch},
    )
    rollout = Samples(x0=x0, cond=Conditioning([]), samples=torch.arange(8))
    return diversity(rollout, RolloutConfig(budget, "predicted_x0", "distinct", 0))


def test_diversity_is_the_deviation_of_coarse_latents_within_the_group() -> None:
    prompts = torch.tensor([-3.0, 5.0]).repeat_interleave(4).reshape(8, 1, 1, 1, 1).expand(8, 2, 3, 8, 8)
    assert diversity_of(prompts) == 0
    members = torch.tensor([1.0, -1.0]).repeat(4).reshape(8, 1, 1, 1, 1)
    assert diversity_of(prompts + 0.25 * members) == pytest.approx(0.25)
    collapsed = members.clone()
    collapsed[4:] = 0
    assert diversity_of(prompts + 0.25 * collapsed) == pytest.approx(0.25 / 2**0.5)
    assert diversity_of(prompts + 0.25 * members, micro_batch=2) == diversity_of(prompts + 0.25 * members)
