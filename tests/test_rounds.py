"""Shuffled rewards: the negative control deals each group's rewards out anew, and keeps a video's metrics together."""

from __future__ import annotations

import torch

from bench.rounds import shuffled

VALUES = {"a": torch.arange(24.0).reshape(3, 8), "b": torch.arange(24.0).reshape(3, 8) * 10}


def test_each_group_keeps_its_rewards_and_each_video_its_metrics() -> None:
    got = shuffled(VALUES, seed=0, index=0)
    assert torch.equal(got["a"].sort(1).values, VALUES["a"])
    assert torch.equal(got["b"], got["a"] * 10)
    assert not torch.equal(got["a"], VALUES["a"])


def test_the_deal_is_a_function_of_seed_and_update() -> None:
    first = shuffled(VALUES, seed=0, index=0)["a"]
    assert torch.equal(first, shuffled(VALUES, seed=0, index=0)["a"])
    assert not torch.equal(first, shuffled(VALUES, seed=0, index=1)["a"])
    assert not torch.equal(first, shuffled(VALUES, seed=1, index=0)["a"])


def test_a_shuffled_reward_says_nothing_of_its_video() -> None:
    """Correlation of true and dealt-out rewards over 2000 groups of 8: within 5 standard errors of 0."""
    true = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    dealt = shuffled({"a": true}, seed=0, index=0)["a"]
    centred = [x - x.mean(1, keepdim=True) for x in (true, dealt)]
    correlation = (centred[0] * centred[1]).sum() / (centred[0].norm() * centred[1].norm())
    assert correlation.abs() < 5 / (2000 * 7) ** 0.5
