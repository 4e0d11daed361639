"""The presets have the settings of each origin's training loop, and tests of the options that they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from bench.algorithm.advantages import Advantages
from bench.algorithm.kl import DualKL, FixedKL, has_kl_terms
from bench.algorithm.steps import noisy_steps, trained_steps
from bench.api import AdvantageRule, BenchError, Method, Rewards, StandardizedAdvantages
from bench.audit.sde.study import STUDIED
from bench.checks.steps import check_steps
from bench.core.budget import AdvantageSettings
from bench.flow import sigma_schedule
from bench.plugins import available, kl_policy
from bench.suite.load import load_suite
from bench.suite.methods import make_method, rollout_config
from methods.cps import CPS
from methods.dance_grpo import DanceGRPO
from methods.flow_grpo import FlowGRPO
from methods.sage_grpo import SAGEGRPO
from tests.helpers.nano_suite import NANO

FOLDER = NANO.parent / "as_published"
SDE_ROLLOUT = {"group_size": 24, "steps": 10, "shift": 3.0, "train_steps": 9, "minibatches": 2, "lr": 3e-4}
GLOBAL = AdvantageSettings(std="global", ddof=0, eps=1e-4, clip=5.0)
PUBLISHED: dict[
    str, tuple[dict[str, float], str, str | None, str, AdvantageSettings, dict[str, float], dict[str, Any]]
] = {
    "flow_grpo": (
        {**SDE_ROLLOUT, "weight_decay": 1e-4},
        *("final_latent", "untrained", "distinct", GLOBAL, {"VQ": 0.5, "MQ": 0.5, "TA": 1.0}),
        {"drop_zero_advantages": True},
    ),
    "dance_grpo": (
        {"group_size": 24, "steps": 16, "shift": 5.0, "train_steps": int(0.6 * 15), "minibatches": 2, "lr": 1e-5},
        *("predicted_x0", None, "shared", AdvantageSettings(std="each", ddof=1, eps=1e-8, clip=5.0), {"VQ": 1.0}),
        {"extremes": 4},
    ),
    "cps": (
        {**SDE_ROLLOUT, "weight_decay": 1e-4},
        *("predicted_x0", None, "distinct", GLOBAL, {"VQ": 0.5, "MQ": 0.5, "TA": 1.0}),
        {"drop_zero_advantages": True},
    ),
    "sage_grpo": (
        {"group_size": 4, "steps": 20, "shift": 5.0, "train_steps": 20, "minibatches": 1, "lr": 1e-5},
        *("final_latent", "trained", "distinct", AdvantageSettings(eps=0.0, floor=1e-6, clip=5.0)),
        *({"VQ": 0.5, "MQ": 0.5, "TA": 1.0}, {"equalizer": "released"}),
    ),
}
"""Method to budget, decode, last step, group noise, advantage, reward weights, and the parameters that differ."""
ETA = {"flow_grpo": 0.7, "dance_grpo": 0.25, "cps": 0.7, "sage_grpo": 0.5}
WEIGHT_DECAY = {"flow_grpo": 1e-4, "dance_grpo": 1e-4, "cps": 1e-4, "sage_grpo": 0.01}
TRAINED = {
    **{"flow_grpo": range(9), "cps": range(9), "sage_grpo": range(20)},
    **{"precise": range(19), "grpo_guard": range(9), "mix_grpo": range(4)},
}
REWARD = {"VQ": 0.5, "MQ": 0.5, "TA": 1.0}
"""nano's own, where the origin's rewards are none of nano's."""
NO_KL: dict[str, float] = {}


class Newer(NamedTuple):
    """The settings of a method that the paper does not compare, as its origin has them."""

    budget: dict[str, float]
    params: dict[str, Any]
    advantage: AdvantageSettings = GLOBAL
    group_noise: str = "distinct"
    reward: dict[str, float] = REWARD
    kl: dict[str, float] = NO_KL
    """Weights of the KL terms at the start."""


NEWER = {
    "precise": Newer(
        {"group_size": 8, "steps": 20, "train_steps": 19, "minibatches": 2, "lr": 8e-5, "weight_decay": 1e-4},
        {"eta": 1.5, "clip_range": 4e-6, "weighting": "equal"},
        AdvantageSettings(),
    ),
    "longcat_grpo": Newer(
        {"group_size": 4, "steps": 16, "train_steps": 1, "minibatches": 1, "lr": 1e-4, "weight_decay": 1e-4},
        {"eta": 1.0, "ceiling": 0.45, "clip_range": 1e-3, "weighting": "longcat", "largest_std": True},
        AdvantageSettings(),
        "shared",
        {"MQ": 1.0, "TA": 1.0},
        {"anchor": 0.004},
    ),
    "mix_grpo": Newer(
        {"group_size": 12, "steps": 25, "shift": 3.0, "train_steps": 4, "minibatches": 4, "lr": 1e-5},
        {"eta": 0.7, "clip_range": 1e-4, "window": 4, "stride": 1, "pace": "progressive", "quota": 25},
        AdvantageSettings(std="each", ddof=1, eps=1e-8),
        "shared",
    ),
    "flow_grpo_fast": Newer(
        {"group_size": 24, "steps": 10, "shift": 3.0, "train_steps": 3, "minibatches": 2, "lr": 3e-4},
        {"eta": 0.8, "clip_range": 1e-5, "window": 3},
    ),
    "flash_grpo": Newer(
        {"group_size": 4, "steps": 20, "shift": 3.0, "train_steps": 1, "minibatches": 2, "lr": 1e-4},
        {"eta": 1.0, "clip_range": 1e-3, "weighting": "equal"},
    ),
    "grpo_guard": Newer(
        {"group_size": 24, "steps": 10, "shift": 3.0, "train_steps": 9, "minibatches": 2, "lr": 1e-4},
        {"eta": 0.7, "clip_range": 2e-6, "weighting": "guard"},
        AdvantageSettings(),
    ),
    "flow_dppo": Newer(
        {
            "group_size": 16,
            "steps": 10,
            "shift": 3.0,
            "train_steps": 3,
            "minibatches": 2,
            "lr": 3e-4,
            "weight_decay": 0,
        },
        {"eta": 0.7, "threshold": 1e-5},
    ),
    "diffusion_nft": Newer(
        {"group_size": 24, "steps": 10, "shift": 3.0, "train_steps": 9, "minibatches": 1, "lr": 3e-4},
        {"beta": 1.0, "base_weight": 1e-4, "decay": "early"},
    ),
    "awm": Newer(
        {"group_size": 24, "steps": 14, "shift": 3.0, "train_steps": 6, "minibatches": 1, "lr": 3e-4},
        {"likelihood": "ghuber", "power": 0.25, "clip_range": 1.0, "base_weight": 3e-3, "old_weight": 1.0},
    ),
    "rvm": Newer(
        {"group_size": 8, "train_steps": 1, "minibatches": 2, "lr": 5e-5, "weight_decay": 1e-4},
        {"scale": 0.1, "beta": 1e-3},
        reward={"MQ": 1.0, "TA": 1.5},
    ),
}
"""The ten methods that are not the paper's; what a file's comment calls not published is nano's, and not listed."""


def test_every_method_has_a_preset() -> None:
    assert set(PUBLISHED) == set(STUDIED)
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*PUBLISHED, *NEWER} == available("methods").keys()


@pytest.mark.parametrize("name", NEWER)
def test_a_newer_preset_has_its_origins_numbers(name: str) -> None:
    suite, want = load_suite(FOLDER / f"{name}.yaml"), NEWER[name]
    assert {key: getattr(suite.budget, key) for key in want.budget} == want.budget
    assert (suite.budget.optimizer, suite.budget.grad_clip) == ("adamw", 1.0)
    assert (suite.advantage, suite.group_noise, suite.weights) == (want.advantage, want.group_noise, want.reward)
    (row,) = suite.rows
    method = make_method(suite, row)
    assert (row.method, row.name) == (name, f"{name}-as_published")
    assert {key: getattr(method, key) for key in want.params} == want.params
    policy = kl_policy(row.kl_spec.name, **row.kl_spec.params)
    assert policy.weights(policy.init_state()) == want.kl
    check_steps(method, suite)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_its_origins_numbers(name: str) -> None:
    suite = load_suite(FOLDER / f"{name}.yaml")
    budget, decode, last_step, group_noise, rule, weights, changed = PUBLISHED[name]
    assert {key: getattr(suite.budget, key) for key in budget} == budget
    assert (suite.budget.optimizer, suite.budget.grad_clip, suite.budget.weight_decay) == (
        "adamw",
        1.0,
        WEIGHT_DECAY[name],
    )
    assert (suite.decode, suite.last_step, suite.group_noise) == (decode, last_step, group_noise)
    assert suite.advantage == rule
    assert suite.weights == weights
    (row,) = suite.rows
    method = make_method(suite, row)
    assert isinstance(method, Method)
    assert row.method == name
    assert method.clip_range == 1e-4
    assert getattr(method, "eta", None) == ETA[name]
    assert {key: getattr(method, key) for key in changed} == changed


@pytest.mark.parametrize("name", TRAINED)
def test_a_preset_trains_its_origins_steps(name: str) -> None:
    suite = load_suite(FOLDER / f"{name}.yaml")
    method = make_method(suite, suite.rows[0])
    assert isinstance(method, Method)
    sigmas, config = sigma_schedule(suite.budget.steps, suite.budget.shift), rollout_config(suite, 0)
    noisy = noisy_steps(method, sigmas, config, 0)
    assert trained_steps(method, sigmas, noisy, config, 0).tolist() == list(TRAINED[name])
    assert bool(noisy[-1]) == (name in ("flow_grpo", "grpo_guard", "sage_grpo"))  # two do not train it


def test_the_kl_terms_are_those_of_the_origins() -> None:
    rows = {name: load_suite(FOLDER / f"{name}.yaml").rows[0].kl_spec for name in PUBLISHED}
    policies = {name: kl_policy(spec.name, **spec.params) for name, spec in rows.items()}
    assert policies["flow_grpo"] == policies["cps"] == FixedKL(weight=0.04, controller="constant")
    assert policies["flow_grpo"].weights(policies["flow_grpo"].init_state()) == {"anchor": 0.04}
    assert not has_kl_terms(policies["dance_grpo"])
    assert policies["sage_grpo"] == DualKL()


def rewards(rule: AdvantageRule, scale: float = 1.0) -> Rewards:
    values = scale * torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0))
    return Rewards({"VQ": values[0], "MQ": values[1]}, {"VQ": 1.0, "MQ": 0.25}, rule)


def test_the_floor_is_the_smallest_std_that_divides() -> None:
    assert torch.equal(
        SAGEGRPO().advantages(rewards(StandardizedAdvantages(floor=1e-6))),
        SAGEGRPO().advantages(rewards(StandardizedAdvantages())),
    )
    near = rewards(StandardizedAdvantages(eps=0.0, floor=1e-6), scale=1e-9)
    total = near.total()
    assert torch.allclose(SAGEGRPO().advantages(near)[0], (total - total.mean(1, keepdim=True)) / 1e-6)
    with pytest.raises(BenchError, match=r"advantage\.floor is 0"):
        StandardizedAdvantages(floor=0.0)


def test_each_reward_has_its_own_advantage_and_weight() -> None:
    group_rewards = rewards(StandardizedAdvantages(std="each", ddof=1, eps=1e-8))
    credit = Advantages.compute(DanceGRPO(), group_rewards)
    assert credit.weights == [1.0, 0.25]
    for adv, values in zip(credit.adv, group_rewards.values(), strict=True):
        want = (values - values.mean(1, keepdim=True)) / (values.std(1, keepdim=True) + 1e-8)
        assert torch.allclose(adv, want.clamp(-5, 5).flatten())


def test_the_extremes_of_each_group_train() -> None:
    group_rewards = rewards(StandardizedAdvantages())
    keep = Advantages.compute(DanceGRPO(extremes=4), group_rewards).keep.reshape(3, 24)
    order = group_rewards.total().argsort(1)
    for row, indices in zip(keep, order, strict=True):
        assert set(row.nonzero()[:, 0].tolist()) == {*indices[:4].tolist(), *indices[-4:].tolist()}
    assert Advantages.compute(DanceGRPO(), group_rewards).keep.all()
    tied = Rewards({"VQ": torch.zeros(2, 24)}, {"VQ": 1.0})
    assert (Advantages.compute(DanceGRPO(extremes=4), tied).keep.reshape(2, 24).sum(1) == 8).all()
    assert Advantages.compute(DanceGRPO(extremes=20), group_rewards).keep.all()
    with pytest.raises(BenchError, match="extremes is -1"):
        DanceGRPO(extremes=-1)


@pytest.mark.parametrize("cls", [FlowGRPO, CPS])
def test_samples_without_an_advantage_can_be_dropped(cls: type[Method]) -> None:
    group_rewards = rewards(StandardizedAdvantages())
    for values in group_rewards.values():
        values[1] = 0.3
    drop: dict[str, Any] = {"drop_zero_advantages": True}
    keep = Advantages.compute(cls(**drop), group_rewards).keep.reshape(3, 24)
    assert keep.all(1).tolist() == [True, False, True]
    assert not keep[1].any()
    assert Advantages.compute(cls(), group_rewards).keep.all()


def test_the_options_are_off_in_the_closed_division() -> None:
    suite = load_suite(NANO)
    assert (suite.last_step, suite.advantage) == (None, AdvantageSettings())
    assert Path(NANO).read_text().count("floor") == 0
    assert (FlowGRPO().drop_zero_advantages, CPS().drop_zero_advantages, DanceGRPO().extremes) == (False, False, 0)
