"""The ledger: what a budget comes to, and that nothing else may be spent."""

from __future__ import annotations

import dataclasses

import pytest

from bench.core.budget import Budget
from bench.core.errors import BenchError
from bench.core.ledger import Ledger, planned_counts

BUDGET = Budget(
    updates=2,
    prompts=2,
    group_size=4,
    steps=5,
    train_steps=3,
    shift=5.0,
    guidance=1.0,
    minibatches=2,
    lr=1e-3,
    micro_batch=4,
)


def spent(updates: int = 1) -> Ledger:
    ledger = Ledger()
    for name, amount in planned_counts(BUDGET, 1, updates).items():
        if name == "reward_calls":
            ledger.call_reward("videoalign", amount)
        else:
            ledger.spend(name, amount)
    return ledger


def test_planned_numbers_of_a_budget() -> None:
    assert planned_counts(BUDGET, 2, 3) == {
        "nfe_rollout": 3 * 8 * 5,
        "nfe_train": 3 * 3 * 8 * 3,
        "reward_calls": 2 * 3 * 8,
        "decodes": 24,
        "videos": 24,
        "updates": 3,
        "optimizer_steps": 6,
        "prompts": 6,
    }


def test_guidance_doubles_the_network_calls() -> None:
    guided = Budget(updates=1, prompts=1, group_size=2, steps=4, train_steps=2, shift=5.0, guidance=6.0, lr=1e-3)
    assert planned_counts(guided, 1, 1)["nfe_rollout"] == 2 * 4 * 2
    assert planned_counts(guided, 1, 1)["nfe_train"] == 3 * 2 * 2 * 2


def test_what_the_budget_says_settles() -> None:
    spent(2).settle(BUDGET, 1, 2)


@pytest.mark.parametrize(
    "name", ["nfe_rollout", "nfe_train", "decodes", "videos", "updates", "optimizer_steps", "prompts"]
)
@pytest.mark.parametrize("amount", [1, -1])
def test_any_surplus_or_shortfall_is_refused(name: str, amount: int) -> None:
    ledger = spent()
    ledger.spend(name, amount)
    with pytest.raises(BenchError, match=f"{name} is {planned_counts(BUDGET, 1, 1)[name] + amount} after 1 updates"):
        ledger.settle(BUDGET, 1, 1)


def test_an_extra_reward_call_is_refused() -> None:
    ledger = spent()
    ledger.call_reward("another", 1)
    with pytest.raises(BenchError, match="reward_calls is 9"):
        ledger.settle(BUDGET, 1, 1)


def test_the_state_round_trips() -> None:
    ledger = spent()
    with ledger.phase("rollout"):
        pass
    assert Ledger.from_state(ledger.state()) == ledger


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 1}, "group needs at least 2"),
        ({"train_steps": 6}, "train at most all steps"),
        ({"minibatches": 3}, "do not split"),
        ({"lr": 0.0}, "budget.lr"),
        ({"guidance": 0.5}, "1 means no guidance"),
        ({"updates": 0}, "at least 1"),
    ],
)
def test_a_wrong_budget_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        dataclasses.replace(BUDGET, **change)
