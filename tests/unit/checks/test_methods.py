"""`check_method` passes our four methods and names the fault of every deliberately broken one."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.api import BenchError, Gaussian, Method, Rewards, ScoredStep, latent_mean
from bench.checks.methods import CHECKS, check_method, method_violations
from bench.flow import euler, sde_step, sigma_schedule
from methods.cps import CPS
from methods.dance_grpo import DanceGRPO
from methods.flow_grpo import FlowGRPO
from methods.sage_grpo import SAGEGRPO

OURS = [FlowGRPO, DanceGRPO, CPS, SAGEGRPO]


@pytest.mark.parametrize("cls", OURS)
@pytest.mark.parametrize("equalizer", ["off", "derived", "released"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.3])
@pytest.mark.usefixtures("global_random_state_is_left_alone")
def test_our_methods_conform(cls: Any, equalizer: str, eta: float) -> None:
    passed = check_method(cls(eta=eta, equalizer=equalizer), sigma_schedule(16, 5.0))
    assert passed == CHECKS


@pytest.mark.parametrize("cls", OURS)
def test_check_takes_milliseconds(cls: Any) -> None:
    seconds = []
    for _ in range(5):  # the best of five: a collection of garbage falls into some of them
        start = time.process_time()
        check_method(cls())
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.2


def test_a_refused_schedule_is_reported_with_its_fix() -> None:
    with pytest.raises(BenchError, match=r"SAGEGRPO.*fewer steps or a smaller shift"):
        check_method(SAGEGRPO(), sigma_schedule(50, 9.0))


@dataclass(frozen=True, kw_only=True)
class Sound(Method):
    """A correct method; each faulty one below changes one hook."""

    paper: ClassVar[str] = "none"
    eta: float = 0.3

    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        return sde_step(x, v, sigma, sigma_next, self.eta**2 * (sigma.double() - sigma_next.double()))


class NotAffine(Sound):
    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        step = super().transition(x, v, sigma, sigma_next)
        return Gaussian(step.mean + 1e-3 * v**2, step.std)


class StdFromV(Sound):
    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        step = super().transition(x, v, sigma, sigma_next)
        return Gaussian(step.mean, step.std * (1 + latent_mean(v).abs()))


class InfiniteAtOne(Sound):
    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        std = (sigma / (1 - sigma)).sqrt().to(x)
        return Gaussian(euler(x, v, sigma, sigma_next), std)


class StdPerElement(Sound):
    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        step = super().transition(x, v, sigma, sigma_next)
        return Gaussian(step.mean, step.std.reshape(-1, 1, 1, 1, 1).expand_as(x))


class AlwaysDouble(Sound):
    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        return super().transition(x.double(), v.double(), sigma, sigma_next)


class WholeBatch(Sound):
    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        step = super().transition(x, v, sigma, sigma_next)
        return Gaussian(step.mean + x.mean(), step.std)


class FirstIsSpecial(Sound):
    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        step = super().transition(x, v, sigma, sigma_next)
        return Gaussian(step.mean, step.std * torch.arange(1, len(x) + 1))


class Detached(Sound):
    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        return super().transition(x, v.detach(), sigma, sigma_next)


class InPlace(Sound):
    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        step = super().transition(x, v, sigma, sigma_next)
        x.mul_(0.5)
        return step


class OwnNoise(Sound):
    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        step = super().transition(x, v, sigma, sigma_next)
        return Gaussian(step.mean + 0.1 * torch.randn_like(x), step.std)


class PythonNoise(Sound):
    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        step = super().transition(x, v, sigma, sigma_next)
        return Gaussian(step.mean + random.random(), step.std)


class SeedsTorch(Sound):
    def step_weights(self, sigmas: Tensor) -> Tensor:
        torch.manual_seed(1)
        torch.rand(1)
        return super().step_weights(sigmas)


class DrawsNumpy(Sound):
    def step_weights(self, sigmas: Tensor) -> Tensor:
        np.random.rand()  # noqa: NPY002
        return super().step_weights(sigmas)


class SchedulesInPlace(Sound):
    def step_weights(self, sigmas: Tensor) -> Tensor:
        return super().step_weights(sigmas.mul_(0.9))


class OneWeightTooMany(Sound):
    def step_weights(self, sigmas: Tensor) -> Tensor:
        return torch.ones(len(sigmas))


class NegativeWeight(Sound):
    def step_weights(self, sigmas: Tensor) -> Tensor:
        return torch.linspace(-1, 1, len(sigmas) - 1)


class LogProbPerElement(Sound):
    def log_prob(self, step: Gaussian, x_next: Tensor) -> Tensor:
        return -((x_next.detach() - step.mean) ** 2)


class LeakyLogProb(Sound):
    def log_prob(self, step: Gaussian, x_next: Tensor) -> Tensor:
        return latent_mean(-((x_next - step.mean) ** 2))


class CrashingLogProb(Sound):
    def log_prob(self, step: Gaussian, x_next: Tensor) -> Tensor:
        raise KeyError("temperature")


class FlatAdvantages(Sound):
    def advantages(self, rewards: Rewards) -> Tensor:
        return super().advantages(rewards)[0]


class WrongSign(Sound):
    def surrogate(self, logp_new: Tensor, logp_old: Tensor, adv: Tensor) -> Tensor:
        return adv * torch.exp(logp_new - logp_old)


class MeanSurrogate(Sound):
    def surrogate(self, logp_new: Tensor, logp_old: Tensor, adv: Tensor) -> Tensor:
        return super().surrogate(logp_new, logp_old, adv).mean()


class OffsetDivergence(Sound):
    def divergence(self, step: Gaussian, ref: Gaussian, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return super().divergence(step, ref, sigma, sigma_next) + 1


class ManyTrainSteps(Sound):
    def train_steps(self, sigmas: Tensor, n: int, rng: torch.Generator) -> Tensor:
        return torch.arange(len(sigmas) - 1)


class NoisyAtZero(Sound):
    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        return sde_step(x, v, sigma, sigma_next, 0.09 * (sigma.double() - sigma_next.double()))


class DriftsWithoutNoise(Sound):
    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        step = super().transition(x, v, sigma, sigma_next)
        return Gaussian(step.mean + 0.01 * x, step.std)


class QuietButBent(Sound):
    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        step = super().transition(x, v, sigma, sigma_next)
        return Gaussian(step.mean + 0.01 * x * self.eta, torch.where(sigma == 1, 0.0, step.std))


class SortsRewards(Sound):
    def advantages(self, rewards: Rewards) -> Tensor:
        rewards["a"].sub_(1.0)
        return super().advantages(rewards)


class LostWhenMoved(Sound):
    def surrogate(self, logp_new: Tensor, logp_old: Tensor, adv: Tensor) -> Tensor:
        loss = super().surrogate(logp_new, logp_old, adv)
        return loss if logp_new.equal(logp_old) else loss * float("nan")


class LossLostWhenMoved(Sound):
    def policy_loss(self, new: ScoredStep, old: ScoredStep, *rest: Tensor) -> Tensor:
        loss = self.surrogate(new.logp, old.logp, rest[1])
        return loss if new.logp.equal(old.logp) else loss * float("inf")


class LossAveragedWhenMoved(Sound):
    def policy_loss(self, new: ScoredStep, old: ScoredStep, *rest: Tensor) -> Tensor:
        loss = self.surrogate(new.logp, old.logp, rest[1])
        return loss if new.logp.equal(old.logp) else loss.mean()


class NoEpsilon(Sound):
    def advantages(self, rewards: Rewards) -> Tensor:
        total = rewards.total()
        return ((total - total.mean(1, keepdim=True)) / total.std(1, correction=0, keepdim=True))[None]


class Unnamed(Sound):
    paper: ClassVar[str] = " "


class SetsTheSeed(Sound):
    seed = 3


CALLS = iter(range(1000))


class CountsCalls(Sound):
    def step_weights(self, sigmas: Tensor) -> Tensor:
        return torch.full((len(sigmas) - 1,), float(next(CALLS)))


FAULTS = {
    NoisyAtZero: ("no-noise limit", "eta 0 leaves noise"),
    DriftsWithoutNoise: ("no-noise limit", "not the Euler step"),
    QuietButBent: ("no-noise limit", "a step with std 0 is not the Euler step"),
    SortsRewards: ("purity", "advantages changes its inputs"),
    NoEpsilon: ("credit", "a group with equal rewards is not finite"),
    Unnamed: ("paper", "add paper: ClassVar"),
    SetsTheSeed: ("no budget field", "sets seed"),
    CountsCalls: ("determinism", "two calls of step_weights"),
    NotAffine: ("affine in v", "not affine"),
    StdFromV: ("affine in v", "std depends on v"),
    InfiniteAtOne: ("transition", "std is not finite"),
    StdPerElement: ("transition", "std has shape"),
    AlwaysDouble: ("transition", "float32 in gives torch.float64"),
    WholeBatch: ("independent samples", "depends on the other samples"),
    FirstIsSpecial: ("independent samples", "position in the batch"),
    Detached: ("gradient reaches v", "no gradient"),
    InPlace: ("purity", "transition changes its inputs"),
    OwnNoise: ("determinism", "two calls of transition with the same inputs differ"),
    PythonNoise: ("determinism", "differ"),
    SeedsTorch: ("no global randomness", "global random state"),
    DrawsNumpy: ("no global randomness", "global random state"),
    SchedulesInPlace: ("purity", "step_weights changes its inputs"),
    OneWeightTooMany: ("step_weights", "shape"),
    NegativeWeight: ("step_weights", "negative"),
    LogProbPerElement: ("log_prob", "shape"),
    LeakyLogProb: ("log_prob", "detached"),
    CrashingLogProb: ("log_prob", "KeyError"),
    FlatAdvantages: ("credit", "shape"),
    WrongSign: ("surrogate", "does not raise"),
    MeanSurrogate: ("surrogate", "shape"),
    LostWhenMoved: ("surrogate", "surrogate of log-probabilities -10 clip ranges off is not finite"),
    LossLostWhenMoved: ("policy_loss", "policy_loss of means moved by -0.1 std is not finite"),
    LossAveragedWhenMoved: ("policy_loss", "policy_loss of means moved by -0.1 std has shape []"),
    OffsetDivergence: ("divergence", "not 0"),
    ManyTrainSteps: ("steps", "n indices"),
}


for faulty in FAULTS:
    dataclass(frozen=True, kw_only=True)(faulty)


def test_the_sound_method_conforms() -> None:
    check_method(Sound())


@pytest.mark.parametrize("cls", FAULTS, ids=lambda cls: cls.__name__)
def test_a_broken_method_is_named_with_its_fault(cls: type[Sound]) -> None:
    check, message = FAULTS[cls]
    with pytest.raises(BenchError) as error:
        check_method(cls())
    assert f"{cls.__name__} fails the check '{check}'" in str(error.value)
    assert message in str(error.value)


class Undecorated(Sound):
    width: int = 2


class NoPaper(Method):
    eta: float = 0.3

    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        return Gaussian(euler(x, v, sigma, sigma_next), torch.zeros(len(x)).to(x))


dataclass(frozen=True, kw_only=True)(NoPaper)


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [(Undecorated, "@dataclass\\(frozen=True, kw_only=True\\)"), (NoPaper, "class variable 'paper' is missing")],
)
def test_a_class_without_its_declarations_is_refused(cls: type[Method], sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence):
        check_method(cls())


def test_all_broken_promises_are_found_and_none_spoils_another() -> None:
    """A method that changes its inputs, and one whose transition raises, still get every other check."""
    sigmas = sigma_schedule(10, 5.0)
    assert [violation.check for violation in method_violations(InPlace(), sigmas)] == ["purity"]
    assert {violation.check for violation in method_violations(OwnNoise(), sigmas)} >= {
        "determinism",
        "no global randomness",
    }
    refused = list(method_violations(SAGEGRPO(), sigma_schedule(50, 9.0)))
    assert [violation.check for violation in refused] == ["transition", "steps"]
    assert isinstance(refused[0].cause, BenchError)


def test_a_field_of_the_budget_is_refused_at_class_creation() -> None:
    with pytest.raises(BenchError, match="group_size"):

        class Greedy(Sound):
            group_size: int = 99


@pytest.mark.parametrize("bad", [{"eta": -0.1}, {"eta": float("nan")}, {"clip_range": 0.0}, {"equalizer": "on"}])
def test_impossible_hyper_parameters_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(BenchError, match="Sound"):
        Sound(**bad)


@dataclass(frozen=True, kw_only=True)
class Untyped(Sound):
    clip_range = 1e-3  # a dataclass ignores this


@dataclass(frozen=True, kw_only=True)
class Misspelt(Sound):
    def step_weight(self, sigmas: Tensor) -> Tensor:
        return sigmas[:-1]


@dataclass(frozen=True, kw_only=True)
class WithHelpers(Sound):
    clip_range: float = 1e-3

    def width(self, sigmas: Tensor) -> Tensor:
        return sigmas[:-1] - sigmas[1:]


def test_what_a_class_sets_in_vain_is_named() -> None:
    with pytest.raises(
        BenchError,
        match=r"Untyped sets clip_range without a type, so its instances keep 0.0001: write clip_range: float = 0.001",
    ):
        check_method(Untyped())
    with pytest.raises(
        BenchError, match="step_weight is no hook, and nothing calls it: call it step_weights, or give"
    ):
        check_method(Misspelt())
    check_method(WithHelpers())


@dataclass(frozen=True, kw_only=True)
class GoodOnly(Sound):
    """Learns from samples that are better than others only, which the open division may do."""

    def surrogate(self, logp_new: Tensor, logp_old: Tensor, adv: Tensor) -> Tensor:
        return -adv.clamp_min(0) * torch.exp(logp_new - logp_old)


@dataclass(frozen=True, kw_only=True)
class BadToo(Sound):
    def surrogate(self, logp_new: Tensor, logp_old: Tensor, adv: Tensor) -> Tensor:
        return -adv.abs() * torch.exp(logp_new - logp_old)


def test_a_surrogate_may_leave_bad_samples_alone_and_not_raise_them() -> None:
    check_method(GoodOnly())
    with pytest.raises(BenchError, match="descending surrogate raises the log-probability of a bad sample"):
        check_method(BadToo())
