"""The checks of KL policies, noise policies and advantage rules: ours pass, and each broken promise is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import plugins
from bench.algorithm.kl import FixedKL
from bench.api import AdvantageRule, KLStep, NoisePolicy, RefreshRule, Rewards, StandardizedAdvantages
from bench.checks.rules import CHECKS, check_names, rule_violations
from bench.cli import main
from bench.suite.noise import CommonEta

PARAMS: dict[str, dict[str, Any]] = {"common_eta": {"eta": 0.5}, "matched_rss": {"rss": 0.3}}
OURS = [(group, name) for group in CHECKS for name in plugins.available(group)]


@pytest.mark.parametrize(("group", "name"), OURS)
def test_every_packaged_rule_passes(group: str, name: str) -> None:
    assert list(rule_violations(group, plugins.MAKERS[group](name, **PARAMS.get(name, {})))) == []


@dataclass(frozen=True, kw_only=True)
class RefreshesTheBase(FixedKL):
    def anchors(self) -> dict[str, RefreshRule]:
        return {"fixed": RefreshRule(every=2)}


@dataclass(frozen=True, kw_only=True)
class NegativeWeight(FixedKL):
    def weights(self, state: Mapping[str, Any]) -> dict[str, float]:
        return {"anchor": -0.1}


@dataclass(frozen=True, kw_only=True)
class TakenName(FixedKL):
    def term_weights(self) -> dict[str, float]:
        return {"weight": 1.0}


@dataclass(frozen=True, kw_only=True)
class OtherName(FixedKL):
    def terms(self, step: KLStep) -> dict[str, Tensor]:
        return {"other": step.divergences["fixed"]}


@dataclass(frozen=True, kw_only=True)
class BatchMean(FixedKL):
    def terms(self, step: KLStep) -> dict[str, Tensor]:
        values = step.divergences["fixed"]
        return {"anchor": values - values.mean() * torch.arange(len(values))}


@dataclass(frozen=True, kw_only=True)
class NoGradient(FixedKL):
    def terms(self, step: KLStep) -> dict[str, Tensor]:
        return {"anchor": step.divergences["fixed"].detach()}


@dataclass(frozen=True, kw_only=True)
class Noisy(FixedKL):
    def terms(self, step: KLStep) -> dict[str, Tensor]:
        return {"anchor": step.divergences["fixed"] * torch.rand(())}


@dataclass(frozen=True, kw_only=True)
class InPlace(FixedKL):
    def terms(self, step: KLStep) -> dict[str, Tensor]:
        step.logp_old.add_(1.0)
        return {"anchor": step.divergences["fixed"]}


@dataclass(frozen=True, kw_only=True)
class StateInPlace(FixedKL):
    def next_state(self, state: Mapping[str, Any], logs: Mapping[str, float]) -> dict[str, Any]:
        state["recent"].append(1.0)
        return dict(state)


@dataclass(frozen=True, kw_only=True)
class TupleInState(FixedKL):
    def init_state(self) -> dict[str, Any]:
        return {**super().init_state(), "pair": (1, 2)}


class Undecorated(FixedKL):
    pass


@dataclass(frozen=True, kw_only=True)
class Unsure(NoisePolicy):
    def choose_eta(self, own: float | None, variance: Any) -> float:
        return float(torch.rand(()))


@dataclass(frozen=True, kw_only=True)
class NoEta(CommonEta):
    def choose_eta(self, own: float | None, variance: Any) -> float:
        return float("nan")


@dataclass(frozen=True)
class Raw(AdvantageRule):
    def advantages(self, rewards: Rewards) -> Tensor:
        return rewards.total()[None]


@dataclass(frozen=True)
class WhitensTied(StandardizedAdvantages):
    """0 where all groups are tied, and not for a tied group beside others."""

    def advantages(self, rewards: Rewards) -> Tensor:
        adv = super().advantages(rewards)
        return adv - adv[:, 1:].amax()


@dataclass(frozen=True)
class Flat(AdvantageRule):
    def advantages(self, rewards: Rewards) -> Tensor:
        return rewards.total()


@dataclass(frozen=True)
class ByPosition(StandardizedAdvantages):
    def advantages(self, rewards: Rewards) -> Tensor:
        adv = super().advantages(rewards)
        return adv * torch.arange(1, adv.shape[2] + 1)


@dataclass(frozen=True)
class Rescales(StandardizedAdvantages):
    def advantages(self, rewards: Rewards) -> Tensor:
        for values in rewards.values():
            values.mul_(2.0)
        return super().advantages(rewards)


BROKEN = [
    ("kl_policies", RefreshesTheBase(), "anchors", "'fixed' is refreshed"),
    ("kl_policies", NegativeWeight(), "weights", "-0.1"),
    ("kl_policies", TakenName(), "weights", "another field of train.jsonl"),
    ("kl_policies", OtherName(), "terms", "other"),
    ("kl_policies", BatchMean(), "independent samples", "depends on the other samples"),
    ("kl_policies", NoGradient(), "gradient", "no gradient"),
    ("kl_policies", Noisy(), "purity", "differ"),
    ("kl_policies", Noisy(), "no global randomness", "random state"),
    ("kl_policies", InPlace(), "purity", "in place"),
    ("kl_policies", StateInPlace(), "state", "changes the state"),
    ("kl_policies", TupleInState(), "state", "JSON types"),
    ("kl_policies", Undecorated(), "frozen dataclass", "decorator"),
    ("noise_policies", Unsure(), "eta", "differ"),
    ("noise_policies", NoEta(eta=0.5), "eta", "nan"),
    ("advantage_rules", Raw(), "tied groups", "expected 0"),
    ("advantage_rules", WhitensTied(), "tied groups", "beside another one has an advantage of"),
    ("advantage_rules", Flat(), "advantages", "expected [k, 2, 4]"),
    ("advantage_rules", ByPosition(), "order of samples", "position"),
    ("advantage_rules", Rescales(), "purity", "in place"),
]


@pytest.mark.parametrize(("group", "plugin", "check", "message"), BROKEN, ids=lambda value: type(value).__name__)
def test_a_broken_promise_is_found(group: str, plugin: object, check: str, message: str) -> None:
    found = {violation.check: violation.message for violation in rule_violations(group, plugin)}
    assert message in found[check]


def test_the_command_names_the_checks_and_the_line_of_a_broken_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "dual", "common_eta", "standardized", "--params", "eta=0.5"]) == 2
    assert "has no parameter 'eta'" in capsys.readouterr().err
    assert main(["check", "dual", "native", "standardized"]) == 0
    printed = capsys.readouterr().out
    for name, group in (("dual", "kl_policies"), ("native", "noise_policies"), ("standardized", "advantage_rules")):
        assert f"{name}: {len(check_names(group))} checks passed" in printed
    assert main(["check", f"{__name__}:NoGradient"]) == 1
    assert "test_rules.py:" in (printed := capsys.readouterr().out)
    assert ": gradient: term anchor carries no gradient" in printed
