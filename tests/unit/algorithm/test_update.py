"""One update on a closed-form backbone: its loss by hand, its gradient in parts, its KL terms, its refusals."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

from bench.algorithm.advantages import Advantages
from bench.algorithm.rollout import Rollout, Sampler
from bench.algorithm.sampling import RolloutConfig
from bench.algorithm.update import PROBE_EVERY, StepUpdater, UpdateConfig, minibatches
from bench.algorithm.update_stats import UpdateStats
from bench.api import (
    AdvantageRule,
    BenchError,
    Budget,
    DivergedError,
    KLPolicy,
    Method,
    Rewards,
    ScoredStep,
    StandardizedAdvantages,
    latent_mean,
)
from bench.checks.methods import check_method
from bench.core.ledger import Ledger, planned_counts
from bench.core.rewards import WhitenedAdvantages
from bench.plugins import kl_policy
from methods.cps import CPS
from methods.dance_grpo import DanceGRPO
from methods.flow_grpo import FlowGRPO
from methods.longcat_grpo import LongCatGRPO
from methods.sage_grpo import SAGEGRPO
from tests.helpers.toy import ToyBackbone

OURS = [FlowGRPO, DanceGRPO, CPS, SAGEGRPO]
BUDGET = Budget(
    **{"updates": 1, "prompts": 2, "group_size": 4, "steps": 4, "train_steps": 2, "shift": 5.0, "guidance": 1.0},
    **{"lr": 1.0, "micro_batch": 8, "grad_clip": 1e9},
)
LOOSE = 1e6  # a clip range that never acts


@dataclasses.dataclass
class Outcome:
    """One rollout and the results of its update."""

    backbone: ToyBackbone
    rollout: Rollout
    ledger: Ledger
    state: dict[str, Any]
    log: UpdateStats

    def gradient(self) -> Tensor:
        """Gradient of the last optimizer step, clipped."""
        return torch.cat([p.grad.flatten() for p in self.backbone.parameters() if p.grad is not None])


def make_rewards(p: int, g: int, weights: dict[str, float] | None = None) -> Rewards:
    values = torch.randn(2, p, g, generator=torch.Generator().manual_seed(3))
    return Rewards({"a": values[0], "b": values[1]}, weights or {"a": 0.5, "b": 2.0})


def run_update(
    method: Method,
    policy: KLPolicy | None = None,
    rewards: Rewards | None = None,
    state: dict[str, Any] | None = None,
    start: float = 0.0,
    index: int = 0,
    **changes: Any,
) -> Outcome:
    """A rollout of the base (shifted by `start`), then one update by plain gradient descent at rate 1."""
    backbone, ledger, policy = ToyBackbone(), Ledger(), policy or kl_policy("none")
    with torch.no_grad():
        backbone.gain.add_(start)
    budget = dataclasses.replace(BUDGET, **changes)
    anchors = [name for name, rule in policy.anchors().items() if rule.network]
    settings = RolloutConfig(budget, "predicted_x0", "distinct", 0)
    cond = backbone.encode(["one", "three", "a third"][: budget.prompts])
    rollout = Sampler(backbone, method, settings, ledger).sample(cond, 0, anchors)
    backbone.base = backbone._copy() if start else backbone.base
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1.0)
    updater = StepUpdater(backbone, method, policy, optimizer, UpdateConfig(budget, seed=0), ledger)
    rewards = rewards or make_rewards(budget.prompts, budget.group_size)
    done, log = updater(rollout, rewards, state or policy.init_state(), index)
    return Outcome(backbone, rollout, ledger, done, log)


def test_loss_and_gradient_by_hand_for_two_samples() -> None:
    """FlowGRPO's update written out again in float64 for one prompt and two samples."""
    method = FlowGRPO(eta=0.7, clip_range=1e-4, equalizer="off")
    rewards = Rewards({"a": torch.tensor([[1.0, 3.0]])}, {"a": 1.0})
    done = run_update(method, rewards=rewards, prompts=1, group_size=2, micro_batch=2)
    adv = torch.tensor([-1.0, 1.0], dtype=torch.float64) / (1 + 1e-4)  # mean 2, std (ddof 0) 1

    gain = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    tilt = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    text = 0.3  # "one" has three letters
    loss = torch.zeros((), dtype=torch.float64)
    for n, i in enumerate(done.rollout.view.steps.tolist()):
        sigma, after = done.rollout.sigmas[i].double(), done.rollout.sigmas[i + 1].double()
        x, x_next = done.rollout.x[n].double(), done.rollout.x_next[n].double()
        v = gain.reshape(1, 2, 1, 1, 1) * x + tilt * sigma + text
        variance = 0.7**2 * (sigma - after) * sigma / (1 - (after if sigma == 1 else sigma))
        pull = variance / (2 * sigma)
        mean = x - (sigma - after) * v - pull * (x + (1 - sigma) * v)
        logp = (-((x_next - mean) ** 2) / (2 * variance)).flatten(1).mean(1)
        ratio = torch.exp(logp - logp.detach())  # one at the first step, with the gradient of the log-probability
        loss = loss - (adv * ratio).sum() / (2 * 2)
    grads = torch.autograd.grad(loss, [gain, tilt])
    expected = torch.cat([g.flatten() for g in grads])
    assert expected.abs().min() > 1e-3
    # float32 against float64: the residual x_next - mean loses a digit or two of its seven
    torch.testing.assert_close(done.gradient().double(), expected, rtol=1e-4, atol=1e-6)
    assert done.log.means()["policy_loss"] == pytest.approx(float(loss.detach()), abs=1e-6)
    assert done.log.grad_norm == [pytest.approx(float(expected.norm()), rel=1e-4)]


@pytest.mark.parametrize("cls", OURS)
@pytest.mark.usefixtures("global_random_state_is_left_alone")
def test_the_ratio_is_exactly_one_before_the_first_step(cls: Any) -> None:
    done = run_update(cls(), start=0.05)
    assert done.log.ratio_error == dict.fromkeys(done.rollout.view.steps.tolist(), 0.0)
    assert done.log.clipped == 0
    assert done.gradient().abs().max() > 0


@pytest.mark.parametrize("cls", OURS)
@pytest.mark.parametrize("policy", ["none", "fixed", "dual"])
@pytest.mark.parametrize("size", [2, 4])
def test_the_micro_batch_changes_the_gradient_by_rounding_only(cls: Any, policy: str, size: int) -> None:
    kl = kl_policy(policy, **({} if policy == "none" else {"controller": "constant", "weight": 0.3}))
    whole, parts = (run_update(cls(), kl, micro_batch=micro, start=0.05) for micro in (8, size))
    assert max(parts.backbone.calls) == size
    # the same numbers are added in another order: a few roundings of float32 (6e-8 each)
    error = float((parts.gradient() - whole.gradient()).abs().max() / whole.gradient().abs().max())
    print(f"largest relative difference of the gradient: {error:.1e}")
    assert error < 1e-6
    assert parts.ledger.counts == whole.ledger.counts
    assert parts.log.count == whole.log.count == 16
    for name, value in whole.log.means().items():
        assert parts.log.means()[name] == pytest.approx(value, rel=1e-5, abs=1e-7)
    if policy != "none":
        assert parts.state["recent"] == pytest.approx(whole.state["recent"], rel=1e-4, abs=1e-7)


def test_minibatches_make_their_own_steps_and_move_the_ratio() -> None:
    one = run_update(CPS(clip_range=1e-4))
    two = run_update(CPS(clip_range=1e-4), minibatches=2, micro_batch=4)
    assert len(one.log.grad_norm) == one.ledger.counts["optimizer_steps"] == 1
    assert len(two.log.grad_norm) == two.ledger.counts["optimizer_steps"] == 2
    assert two.log.ratio_error == dict.fromkeys(two.rollout.view.steps.tolist(), 0.0)  # of the first step only
    assert one.log.clipped == 0
    assert two.log.clipped > 0  # in the second step the ratio has moved by more than the clip range
    assert two.ledger.counts["nfe_train"] == one.ledger.counts["nfe_train"]


def test_minibatches_split_the_samples_once_each() -> None:
    budget = dataclasses.replace(BUDGET, minibatches=4, micro_batch=2)
    parts = minibatches(budget, 0, 0)
    assert [len(part) for part in parts] == [2] * 4
    assert sorted(torch.cat(parts).tolist()) == list(range(8))
    assert torch.cat(parts).tolist() == torch.cat(minibatches(budget, 0, 0)).tolist()
    assert torch.cat(parts).tolist() != torch.cat(minibatches(budget, 0, 1)).tolist()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighted(FlowGRPO):
    """Step weights that are not one."""

    factor: float = 3.0

    def step_weights(self, sigmas: Tensor) -> Tensor:
        return self.factor * torch.arange(1.0, len(sigmas))


def test_step_weights_scale_the_policy_loss_and_not_the_kl() -> None:
    plain, weighted, larger = run_update(FlowGRPO()), run_update(Weighted()), run_update(Weighted(factor=3e6))
    assert not torch.allclose(weighted.gradient(), plain.gradient(), rtol=1e-2)
    torch.testing.assert_close(larger.gradient(), weighted.gradient(), rtol=1e-6, atol=0)  # their scale is no choice
    strong = kl_policy("fixed", controller="constant", weight=0.5)
    tied = Rewards({"a": torch.zeros(2, 4)}, {"a": 1.0})
    (plain, weighted) = (run_update(m, strong, rewards=tied, start=0.2) for m in (FlowGRPO(), Weighted()))
    assert plain.gradient().abs().max() > 5e-5
    assert torch.equal(plain.gradient(), weighted.gradient())


def anchor_terms(done: Outcome, method: Method) -> list[Tensor]:
    """The anchor's distance per trained step and sample, and the stepwise term, with gradient, by hand."""
    base, terms = ToyBackbone(), []
    for n, i in enumerate(done.rollout.view.steps.tolist()):
        sigma, after = (done.rollout.sigmas[k].expand(8) for k in (i, i + 1))
        x = done.rollout.x[n]
        assert torch.equal(done.rollout.anchors["fixed"][n], base.velocity(x, sigma, done.rollout.cond, 1.0).detach())
        gap = torch.tensor([0.2, 0.2]).reshape(1, 2, 1, 1, 1) * x  # the velocities differ by the shifted gain
        step = method.transition(x, torch.zeros_like(x), sigma, after)
        slope = method.transition(torch.zeros_like(x), torch.ones_like(x), sigma, after).mean
        terms.append(((slope * gap) ** 2).flatten(1).mean(1) / (2 * step.std**2))
    return terms


def test_the_fixed_anchor_enters_with_its_weight_before_the_tick() -> None:
    """With equal rewards the policy's loss has no gradient: what is left is the KL's, by hand for DanceGRPO."""
    tied = Rewards({"a": torch.ones(2, 4)}, {"a": 1.0})
    method, policy = DanceGRPO(), kl_policy("fixed", weight=0.5, min_weight=0.1)
    done = run_update(method, policy, rewards=tied, start=0.2)
    terms = anchor_terms(done, method)
    expected = [float(term.mean()) for term in terms]
    assert done.state["recent"] == pytest.approx(expected, rel=1e-5)
    assert done.log.means()["kl_anchor"] == pytest.approx(sum(expected) / 2, rel=1e-5)
    # the term is quadratic in the shift of the gain, so its derivative there is 2 / 0.2 times its share per channel
    weights = [0.1, 0.1 + 0.4 / 100]
    per_channel = torch.zeros(2)
    for n, i in enumerate(done.rollout.view.steps.tolist()):
        sigma, after = (done.rollout.sigmas[k].expand(8) for k in (i, i + 1))
        x = done.rollout.x[n]
        std = method.transition(x, torch.zeros_like(x), sigma, after).std
        slope = method.transition(torch.zeros_like(x), torch.ones_like(x), sigma, after).mean
        share = ((slope * 0.2 * x) ** 2).flatten(2).sum(2) / 8 / (2 * std[:, None] ** 2)
        per_channel += weights[n] * share.mean(0) * 2 / 0.2 / len(done.rollout.view.steps)
    torch.testing.assert_close(done.gradient()[:2], per_channel, rtol=1e-4, atol=0)


def test_the_controller_ticks_once_per_trained_step_whatever_the_micro_batch() -> None:
    policy = kl_policy("fixed", weight=0.5, min_weight=0.1)
    for size, steps in ((8, 1), (2, 1), (2, 2)):
        done = run_update(FlowGRPO(), policy, start=0.2, micro_batch=size, minibatches=steps)
        assert done.state["ticks"] == 2 * steps
        assert done.state["coefficient"] == pytest.approx(0.1 + 0.4 * 2 * steps / 100)
        assert len(done.state["recent"]) == 2 * steps


def test_dual_has_an_anchor_and_a_stepwise_term() -> None:
    """The stepwise term is 0 in value at the first step, and its gradient adds its weight to every advantage."""
    tied = Rewards({"a": torch.ones(2, 4)}, {"a": 1.0})
    shared = {"controller": "constant", "weight": 0.2}
    anchor = run_update(CPS(), kl_policy("fixed", **shared), rewards=tied, start=0.2)
    step = run_update(CPS(), kl_policy("stepwise", **shared, step_weight=0.5), rewards=tied, start=0.2)
    dual = run_update(CPS(), kl_policy("dual", **shared, anchor="fixed", step_weight=0.5), rewards=tied, start=0.2)
    assert step.log.means()["kl_stepwise"] == dual.log.means()["kl_stepwise"] == 0.0
    assert dual.log.means()["kl_anchor"] == anchor.log.means()["kl_anchor"] > 0
    assert min(float(r.gradient().abs().max()) for r in (anchor, step)) > 1e-4
    torch.testing.assert_close(dual.gradient(), anchor.gradient() + step.gradient(), rtol=1e-5, atol=1e-7)
    assert "nfe_anchor" not in step.ledger.counts
    assert dual.ledger.counts["nfe_anchor"] == 8 * 2

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class PlusOne(CPS):
        """Every advantage is 0.2 * 0.5."""

        def advantages(self, rewards: Rewards) -> Tensor:
            return torch.full((1, 2, 4), 0.1)

    plus = run_update(PlusOne(clip_range=LOOSE), kl_policy("none"), rewards=tied, start=0.2)
    torch.testing.assert_close(step.gradient(), plus.gradient(), rtol=1e-5, atol=1e-7)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerReward(FlowGRPO):
    """One advantage per reward, as DanceGRPO's paper sums them."""

    def advantages(self, rewards: Rewards) -> Tensor:
        return torch.stack([values - values.mean(1, keepdim=True) for values in rewards.values()])


def test_one_advantage_per_reward_is_summed_with_the_suite_weights() -> None:
    rewards = make_rewards(2, 4, {"a": 0.5, "b": 2.0})
    both = run_update(PerReward(), rewards=rewards)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Summed(FlowGRPO):
        def advantages(self, rewards: Rewards) -> Tensor:
            total = 0.5 * rewards["a"] + 2.0 * rewards["b"]
            return (total - total.mean(1, keepdim=True))[None]

    one = run_update(Summed(), rewards=rewards)
    torch.testing.assert_close(both.gradient(), one.gradient(), rtol=1e-4, atol=1e-6)  # linear where the ratio is 1
    assert both.gradient().abs().max() > 1e-3
    advantages = Advantages.compute(PerReward(), rewards)
    assert advantages.adv.shape == (2, 8)
    assert advantages.weights == [0.5, 2.0]
    assert Advantages.compute(FlowGRPO(), rewards).weights == [1.0]


@pytest.mark.parametrize("rule", [StandardizedAdvantages(), StandardizedAdvantages(std="each"), WhitenedAdvantages()])
@pytest.mark.parametrize("method", [FlowGRPO(), LongCatGRPO(), LongCatGRPO(largest_std=True)])
def test_a_reward_of_negative_weight_is_lowered(rule: AdvantageRule, method: Method) -> None:
    """One reward or several, whatever the rule: the sign is in the advantage, where a clip sees it."""
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    for weights in ({"a": -1.0}, {"a": -1.0, "b": -2.0}):
        found = Advantages.compute(method, Rewards(dict.fromkeys(weights, values), weights, rule))
        assert all(weight > 0 for weight in found.weights)
        centred = values.mean() - values.flatten()
        assert (found.adv * centred > 0).all()


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestHalf(FlowGRPO):
    def select(self, adv: Tensor) -> Tensor:
        return adv[0] >= adv[0].median(1, keepdim=True).values


def test_select_trains_on_the_selected_samples_alone() -> None:
    """Dropping samples equals giving them no advantage and dividing by the number of selected ones."""
    rewards = make_rewards(2, 4)
    advantages = Advantages.compute(BestHalf(), rewards)
    keep = advantages.keep.float()
    assert 0 < keep.sum() < 8

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Zeroed(FlowGRPO):
        def advantages(self, rewards: Rewards) -> Tensor:
            return super().advantages(rewards) * keep.reshape(1, 2, 4) * 8 / keep.sum()

    torch.testing.assert_close(
        run_update(BestHalf(), rewards=rewards).gradient(),
        run_update(Zeroed(), rewards=rewards).gradient(),
        rtol=1e-4,
        atol=1e-6,
    )


def test_a_closed_row_has_the_credit_of_the_suite_whatever_its_class_does() -> None:
    """So a class that recognises the probe of the division gains nothing."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Scaled(BestHalf):
        def advantages(self, rewards: Rewards) -> Tensor:
            return 10 * super().advantages(rewards)

    rewards = make_rewards(2, 4)
    closed, suite = Advantages.compute(Scaled(), rewards, closed=True), Advantages.compute(FlowGRPO(), rewards)
    assert torch.equal(closed.adv, suite.adv)
    assert closed.keep.all()
    assert not torch.equal(Advantages.compute(Scaled(), rewards).adv, suite.adv)


def test_an_update_spends_exactly_its_budget() -> None:
    done = run_update(SAGEGRPO(), minibatches=2, micro_batch=2)
    done.ledger.spend("decodes", 8)
    done.ledger.call_reward("r", 8)
    done.ledger.settle(dataclasses.replace(BUDGET, minibatches=2, micro_batch=2), 1, 1)
    assert done.ledger.counts["nfe_train"] == planned_counts(BUDGET, 1, 1)["nfe_train"] == 3 * 8 * 2


def test_the_gradient_is_clipped_to_the_budget_norm() -> None:
    free, bound = run_update(FlowGRPO()), run_update(FlowGRPO(), grad_clip=1e-3)
    assert bound.log.grad_norm == free.log.grad_norm  # the norm before clipping
    assert float(bound.gradient().norm()) == pytest.approx(1e-3, rel=2e-4)  # torch adds 1e-6 to the norm it divides by
    assert float(free.gradient().norm()) > 5e-3


def test_means_are_over_samples_and_trained_steps() -> None:
    done = run_update(FlowGRPO(), start=0.05)
    assert done.log.count == 8 * 2
    assert done.log.means()["log_prob"] == pytest.approx(float(done.rollout.logp_old.mean()), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_stops_the_run(bad: float) -> None:
    rewards = make_rewards(2, 4)
    rewards["b"][1, 2] = bad
    with pytest.raises(DivergedError, match="reward b is not finite"):
        run_update(FlowGRPO(), rewards=rewards)


class NoEpsilon(FlowGRPO):
    def advantages(self, rewards: Rewards) -> Tensor:
        total = rewards.total()
        return ((total - total.mean(1, keepdim=True)) / total.std(1, correction=0, keepdim=True))[None]


class TooFew(FlowGRPO):
    def advantages(self, rewards: Rewards) -> Tensor:
        return super().advantages(rewards)[0]


class TooMany(FlowGRPO):
    def advantages(self, rewards: Rewards) -> Tensor:
        return super().advantages(rewards).expand(3, -1, -1)


class KeepsNone(FlowGRPO):
    def select(self, adv: Tensor) -> Tensor:
        return torch.zeros(adv.shape[1:], dtype=torch.bool)


class Explodes(FlowGRPO):
    def surrogate(self, logp_new: Tensor, logp_old: Tensor, adv: Tensor) -> Tensor:
        return super().surrogate(logp_new, logp_old, adv) * math.inf


@pytest.mark.parametrize(
    ("method", "error", "sentence"),
    [
        (NoEpsilon(), DivergedError, "NoEpsilon.advantages is not finite"),
        (TooFew(), BenchError, r"TooFew.advantages returned \[2, 4\]: return \[k, 2, 4\]"),
        (TooMany(), BenchError, "TooMany.advantages returned 3 advantages: return one, or one per reward"),
        (KeepsNone(), DivergedError, "KeepsNone.select keeps no sample"),
        (Explodes(), DivergedError, "loss at step .* is not finite"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else "",
)
def test_a_faulty_hook_is_named(method: Method, error: type[BenchError], sentence: str) -> None:
    rewards = Rewards({"a": torch.zeros(2, 4), "b": torch.zeros(2, 4)}, {"a": 1.0, "b": 1.0})
    with pytest.raises(error, match=sentence) as raised:
        run_update(method, rewards=rewards if isinstance(method, NoEpsilon) else None)
    assert type(raised.value) is error


def test_a_policy_without_gradient_is_an_error_and_not_a_quiet_run() -> None:
    class Frozen(ToyBackbone):
        def velocity(self, *args: Any, **kwargs: Any) -> Tensor:
            v = super().velocity(*args, **kwargs)
            return v.detach() + 0 * self.tilt.detach().requires_grad_()

    backbone, ledger = Frozen(), Ledger()
    settings = RolloutConfig(BUDGET, "predicted_x0", "distinct", 0)
    rollout = Sampler(backbone, FlowGRPO(), settings, ledger).sample(backbone.encode(["one", "three"]), 0)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1.0)
    updater = StepUpdater(backbone, FlowGRPO(), kl_policy("none"), optimizer, UpdateConfig(BUDGET, seed=0), ledger)
    with pytest.raises(BenchError, match="no trained parameter got a gradient"):
        updater(rollout, make_rewards(2, 4), {}, 0)


def test_the_gradient_norms_of_the_steps_are_those_of_their_parts() -> None:
    """Parts of the gradient by step, with the KL term off: all other steps' weights are set to zero."""
    whole = run_update(FlowGRPO())
    for n, step in enumerate(whole.rollout.view.steps.tolist()):

        class Alone(FlowGRPO):
            def step_weights(self, sigmas: Tensor, only: int = step) -> Tensor:
                return torch.nn.functional.one_hot(torch.tensor(only), len(sigmas) - 1).float()

        alone = run_update(Alone())
        part = alone.gradient() / alone.rollout.view.weight[n]
        assert whole.log.grad_norm_of_step[step] == pytest.approx(float(part.norm()), rel=1e-5)
        assert list(whole.log.grad_norm_of_step)[n] == step


PROBED = PROBE_EVERY - 1


@pytest.mark.parametrize("micro_batch", [2, 8])
@pytest.mark.parametrize("name", ["fixed", "stepwise", "dual"])
def test_the_probe_splits_the_gradient_into_kl_and_policy(name: str, micro_batch: int) -> None:
    """Against two further updates: one without the KL, whose gradient is the policy's part, and their difference."""
    params = {"anchor": "fixed"} if name == "dual" else {}
    policy = kl_policy(name, weight=0.5, controller="constant", **params)
    both = run_update(SAGEGRPO(clip_range=LOOSE), policy, start=0.2, index=PROBED, micro_batch=micro_batch)
    alone = run_update(SAGEGRPO(clip_range=LOOSE), start=0.2, index=PROBED, micro_batch=micro_batch)
    assert both.log.kl_gradient is not None
    assert both.log.kl_gradient["policy"] == pytest.approx(float(alone.gradient().norm()), rel=1e-5)
    kl = both.gradient() - alone.gradient()
    assert both.log.kl_gradient["kl"] == pytest.approx(float(kl.norm()), rel=1e-3)
    assert both.log.kl_gradient["kl"] > 1e-3


def test_the_probe_changes_no_gradient() -> None:
    policy = kl_policy("dual", weight=0.5, controller="constant", anchor="fixed")
    probed, not_probed = (
        run_update(SAGEGRPO(clip_range=LOOSE), policy, start=0.2, index=index, micro_batch=2) for index in (PROBED, 0)
    )
    assert not_probed.log.kl_gradient is None
    assert torch.equal(probed.gradient(), not_probed.gradient())


@pytest.mark.parametrize(("every", "probed"), [(0, []), (2, [1, 3]), (3, [2])])
def test_how_often_is_the_suites_choice(every: int, probed: list[int]) -> None:
    config = UpdateConfig(BUDGET, seed=0, probe_every=every)
    assert [update for update in range(4) if config.probes(update)] == probed


def test_without_a_kl_nothing_is_split() -> None:
    assert run_update(FlowGRPO(), index=PROBED).log.kl_gradient is None


def test_a_detached_uncond_branch_reaches_the_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    velocity = ToyBackbone.velocity

    def spy(self: Any, x: Any, sigma: Any, cond: Any, guidance: float, uncond_grad: bool = True) -> Tensor:
        seen.append(uncond_grad)
        return velocity(self, x, sigma, cond, guidance, uncond_grad)

    monkeypatch.setattr(ToyBackbone, "velocity", spy)
    done = run_update(FlowGRPO())
    assert all(seen)
    updater = StepUpdater(
        done.backbone,
        FlowGRPO(),
        kl_policy("none"),
        torch.optim.SGD(done.backbone.parameters(), lr=1.0),
        UpdateConfig(BUDGET, seed=0, uncond_grad=False),
        Ledger(),
    )
    seen.clear()
    updater(done.rollout, make_rewards(2, 4), {}, 0)
    assert seen == [False] * len(seen)
    assert seen


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnStep(FlowGRPO):
    """One trained step per prompt, the later the prompt the later the step; or the same for all prompts."""

    paper: ClassVar[str] = "none"
    per_prompt: ClassVar[bool] = True
    only: int | None = None

    def stochastic(self, sigmas: Tensor, update: int, rng: torch.Generator) -> Tensor:
        mask = torch.zeros(len(sigmas) - 1, dtype=torch.bool)
        mask[int(torch.randint(0, 3, (1,), generator=rng)) if self.only is None else self.only] = True
        return mask

    def step_weights(self, sigmas: Tensor) -> Tensor:
        return torch.arange(1.0, len(sigmas))


def test_the_gradient_of_steps_per_prompt_is_the_weighted_sum_of_each_prompts_own() -> None:
    """Each prompt alone with its step: the other one is tied, so that its advantages are 0."""
    both = run_update(OwnStep(), train_steps=1)
    steps = both.rollout.view.steps[:, 0].tolist()
    assert steps[0] != steps[1]
    rewards, expected = make_rewards(2, 4), torch.zeros_like(both.gradient())
    mean = sum(step + 1 for step in steps) / 2
    for p, step in enumerate(steps):
        values = {name: part.clone() for name, part in rewards.items()}
        for part in values.values():
            part[1 - p] = 0.0
        alone = run_update(OwnStep(only=step), rewards=Rewards(values, rewards.weights), train_steps=1)
        expected += alone.gradient() * (step + 1) / mean  # alone, the only trained step has the weight 1
    torch.testing.assert_close(both.gradient(), expected, rtol=1e-4, atol=1e-6)
    assert both.log.grad_norm_of_step == {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Squared(FlowGRPO):
    """PPO's loss as an own `policy_loss`, with the squared distance of the two means times `pull`."""

    paper: ClassVar[str] = "none"
    pull: float = 0.0
    shape: Literal["b", "scalar", "infinite"] = "b"

    def policy_loss(
        self, new: ScoredStep, old: ScoredStep, x_next: Tensor, adv: Tensor, sigma: Tensor, sigma_next: Tensor
    ) -> Tensor:
        loss = self.surrogate(new.logp, old.logp, adv) + self.pull * latent_mean((new.mean - old.mean) ** 2)
        return {"b": loss, "scalar": loss.sum(), "infinite": loss / 0}[self.shape]


@pytest.mark.parametrize("batches", [1, 2])
def test_a_policy_loss_sees_the_steps_of_both_policies(batches: int) -> None:
    """Without a pull it is the surrogate, bit by bit; a pull acts once the policy has moved away."""
    plain, same, pulled = (
        run_update(method, minibatches=batches, micro_batch=4) for method in (FlowGRPO(), Squared(), Squared(pull=1.0))
    )
    assert torch.equal(same.gradient(), plain.gradient())
    assert torch.equal(pulled.gradient(), plain.gradient()) == (batches == 1)
    assert plain.rollout.mean_old is None
    assert same.rollout.mean_old is not None
    for n in range(same.rollout.trained):
        sigma, after = same.rollout.levels(n, torch.arange(8))
        v = ToyBackbone().velocity(same.rollout.x[n], sigma, same.rollout.cond, 1.0).detach()
        step = FlowGRPO().transition(same.rollout.x[n], v, sigma, after)
        assert torch.equal(same.rollout.mean_old[n], step.mean)


def test_a_loss_of_another_shape_or_that_is_not_finite_is_refused() -> None:
    with pytest.raises(BenchError, match=r"Squared's loss has the shape \[\]: return one value per sample, \[8\]"):
        run_update(Squared(shape="scalar"))
    with pytest.raises(DivergedError, match=r"loss at step \d is not finite"):
        run_update(Squared(shape="infinite"))
    for shape, problem in (("scalar", "policy_loss has shape"), ("infinite", "policy_loss is not finite")):
        with pytest.raises(BenchError, match=f"fails the check 'policy_loss': {problem}"):
            check_method(Squared(shape=shape))
    check_method(Squared(pull=1.0))
