"""Forward methods: rollouts without noise, losses at noised videos, the old policy, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import Tensor

from bench.algorithm.forward import (
    ForwardRollout,
    ForwardSampler,
    ForwardUpdater,
    follow_policy,
    noise_levels,
    start_old_policy,
)
from bench.algorithm.sampling import RolloutConfig
from bench.algorithm.update import UpdateConfig
from bench.algorithm.update_stats import UpdateStats
from bench.api import (
    AnyMethod,
    BenchError,
    Budget,
    ForwardMethod,
    ForwardPoint,
    Method,
    Rewards,
    StandardizedAdvantages,
    latent_mean,
)
from bench.checks.forward import SAMPLES, synthetic_advantages, synthetic_point
from bench.checks.methods import FORWARD_CHECKS, check_method
from bench.checks.steps import check_steps
from bench.core.ledger import Ledger, planned_counts
from bench.flow import euler, sigma_schedule
from bench.plugins import kl_policy
from bench.suite.prepared import prepare
from methods.awm import AWM
from methods.diffusion_nft import DiffusionNFT
from methods.flow_grpo import FlowGRPO
from methods.rvm import RVM
from tests.helpers.nano_suite import tiny
from tests.helpers.toy import ToyBackbone

BUDGET = Budget(
    **{"updates": 1, "prompts": 2, "group_size": 4, "steps": 4, "train_steps": 2, "shift": 5.0, "guidance": 1.0},
    **{"lr": 1.0, "micro_batch": 8, "grad_clip": 1e9},
)
OURS = [DiffusionNFT, AWM, RVM]
PROMPTS = ["one", "three"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matching(ForwardMethod):
    """The plainest loss: the flow-matching error times the advantage."""

    paper: ClassVar[str] = "none"

    def loss(self, point: ForwardPoint, adv: Tensor) -> Tensor:
        return adv * latent_mean((point.v - (point.noise - point.x0)) ** 2)


@dataclasses.dataclass
class Outcome:
    """One rollout and the results of its update."""

    backbone: ToyBackbone
    rollout: ForwardRollout
    ledger: Ledger
    log: UpdateStats

    def gradient(self) -> Tensor:
        """Gradient of the last optimizer step."""
        return torch.cat([p.grad.flatten() for p in self.backbone.parameters() if p.grad is not None])


def run_update(method: ForwardMethod, shift: float = 0.0, rewards: Rewards | None = None, **changes: Any) -> Outcome:
    """A rollout of the base and one update at rate 1; `shift`: how far the policy has moved from its old self."""
    backbone, ledger, budget = ToyBackbone(), Ledger(), dataclasses.replace(BUDGET, **changes)
    start_old_policy(method, backbone)
    with torch.no_grad():
        backbone.gain.add_(shift)
    settings = RolloutConfig(budget, "predicted_x0", "distinct", 0)
    rollout = ForwardSampler(backbone, method, settings, ledger).sample(backbone.encode(PROMPTS), 0)
    values = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
    rewards = rewards or Rewards({"a": values}, {"a": 1.0})
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1.0)
    updater = ForwardUpdater(backbone, method, kl_policy("none"), optimizer, UpdateConfig(budget, seed=0), ledger)
    _, log = updater(rollout, rewards, {}, 0)
    return Outcome(backbone, rollout, ledger, log)


def test_rollouts_are_the_ode_of_the_suite() -> None:
    rollout, sigmas, backbone = run_update(Matching()).rollout, sigma_schedule(4, 5.0), ToyBackbone()
    x = rollout.noise.draw("initial", 0, range(8))
    for i in range(4):
        sigma, after = sigmas[i].expand(8), sigmas[i + 1].expand(8)
        x = euler(x, backbone.velocity(x, sigma, rollout.cond, 1.0).detach(), sigma, after)
    assert torch.equal(rollout.x0, x)


def test_loss_and_gradient_by_hand() -> None:
    """The matching loss written out again in float64."""
    done = run_update(Matching())
    values = torch.randn(2, 4, generator=torch.Generator().manual_seed(3)).double()
    centred = values - values.mean(1, keepdim=True)
    adv = (centred / (values.std(1, correction=0, keepdim=True) + 1e-4)).flatten()
    gain = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    tilt = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    text = torch.tensor([0.3] * 4 + [0.5] * 4, dtype=torch.float64).reshape(8, 1, 1, 1, 1)
    loss = torch.zeros((), dtype=torch.float64)
    for n in range(2):
        sigma = done.rollout.levels[n].double().reshape(8, 1, 1, 1, 1)
        x0, noise = done.rollout.x0.double(), done.rollout.noise.draw("forward", n, range(8)).double()
        v = gain.reshape(1, 2, 1, 1, 1) * ((1 - sigma) * x0 + sigma * noise) + tilt * sigma + text
        loss = loss + (adv * ((v - (noise - x0)) ** 2).flatten(1).mean(1)).sum() / 16
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [gain, tilt])])
    torch.testing.assert_close(done.gradient().double(), expected, rtol=1e-4, atol=1e-6)
    assert done.log.means()["policy_loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert done.log.ratio_fields() == {}


@pytest.mark.parametrize("cls", OURS)
def test_an_update_costs_the_budget_and_its_references(cls: Any) -> None:
    done = run_update(cls(), guidance=2.0)
    planned = planned_counts(dataclasses.replace(BUDGET, guidance=2.0), 0, 1)
    counts = {name: done.ledger.counts.get(name, 0) for name in planned if name not in ("reward_calls", "decodes")}
    assert counts == {name: planned[name] for name in counts}
    assert done.ledger.counts["nfe_anchor"] == len(cls.references) * 8 * 2 * 2  # samples, points, guidance
    assert sum(done.backbone.calls) == 8 * (4 + 2 * (1 + len(cls.references)))


@pytest.mark.parametrize("cls", OURS)
@pytest.mark.parametrize("size", [2, 4])
def test_the_micro_batch_changes_the_gradient_by_rounding_only(cls: Any, size: int) -> None:
    whole, parts = (run_update(cls(), 0.05, micro_batch=micro) for micro in (8, size))
    assert torch.equal(whole.rollout.x0, parts.rollout.x0)
    error = float((parts.gradient() - whole.gradient()).abs().max() / whole.gradient().abs().max())
    assert error < 1e-5


def test_points_and_levels_are_streams_of_their_own() -> None:
    config = RolloutConfig(BUDGET, "predicted_x0", "distinct", 0)
    levels = noise_levels(Matching(), config, 0)
    assert levels.shape == (2, 8)
    assert torch.equal(levels, noise_levels(RVM(), config, 0)), "the same for all methods that do not choose"
    assert not torch.equal(levels, noise_levels(Matching(), config, 1))
    assert not torch.equal(levels, noise_levels(Matching(), dataclasses.replace(config, seed=1), 0))
    rollout = run_update(Matching()).rollout
    draws = [rollout.noise.draw("forward", n, range(8)) for n in range(2)]
    assert len({str(row.tolist()) for draw in draws for row in draw}) == 16
    awm = noise_levels(AWM(), config, 0)
    assert ((awm[0] > 0.55) & (awm[1] <= 0.55) & (awm > 0.1)).all()


def test_the_old_policy_follows_by_its_decay() -> None:
    backbone, method = ToyBackbone(), DiffusionNFT()
    start_old_policy(method, backbone)
    old = [p.clone() for p in backbone.anchors["old"]]
    with torch.no_grad():
        backbone.gain.add_(1.0)
    follow_policy(method, backbone, 100)  # decay 0.1
    torch.testing.assert_close(backbone.anchors["old"][0], 0.1 * old[0] + 0.9 * backbone.gain.detach())
    follow_policy(Matching(), backbone, 100)
    torch.testing.assert_close(backbone.anchors["old"][0], 0.1 * old[0] + 0.9 * backbone.gain.detach())


def test_videos_are_those_of_the_old_policy_where_the_method_says_so() -> None:
    still, moved = run_update(DiffusionNFT()), run_update(DiffusionNFT(), 0.3)
    assert torch.equal(still.rollout.x0, moved.rollout.x0)
    assert not torch.equal(run_update(RVM()).rollout.x0, run_update(RVM(), 0.3).rollout.x0)


@pytest.mark.parametrize("cls", OURS)
def test_the_packaged_methods_pass_their_checks(cls: Any) -> None:
    assert check_method(cls()) == FORWARD_CHECKS


def test_nft_has_no_contrast_where_the_policy_is_the_old_one() -> None:
    point, adv = synthetic_point(DiffusionNFT(), same=True), synthetic_advantages()
    torch.testing.assert_close(DiffusionNFT().loss(point, adv), DiffusionNFT().loss(point, -adv))


def test_awms_ratio_is_one_where_the_policy_is_the_old_one() -> None:
    point, adv = synthetic_point(AWM(), same=True), synthetic_advantages()
    torch.testing.assert_close(AWM().loss(point, adv), -adv / 5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken(Matching):
    """Matching with one fault."""

    fault: str = "none"

    def loss(self, point: ForwardPoint, adv: Tensor) -> Tensor:
        loss = super().loss(point, adv)
        faults = {
            "shape": lambda: loss.sum(),
            "infinite": lambda: loss / 0,
            "pull": lambda: loss + latent_mean(point.v**2),
            "batch": lambda: loss * latent_mean(point.v).sum(),
            "in place": lambda: latent_mean(point.x0.mul_(2.0) - point.v) * adv,
            "detached": lambda: loss.detach(),
            "sign": lambda: -loss,
            "base": lambda: loss + latent_mean((point.v - cast(Tensor, point.v_ref)) ** 2),
        }
        return faults.get(self.fault, lambda: loss)()

    def noise_levels(self, shape: tuple[int, int], rng: torch.Generator) -> Tensor:
        levels = super().noise_levels(shape, rng)
        faults = {"level 0": levels * 0, "levels of another shape": levels[:, :1], "tiny": levels.double() * 1e-60}
        return faults.get(self.fault, levels)

    def old_decay(self, update: int) -> float:
        return 1.5 if self.fault == "decay" and update == 2 else 0.0

    def advantages(self, rewards: Rewards) -> Tensor:
        return rewards.total()[None] if self.fault == "credit" else super().advantages(rewards)


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("shape", "loss", r"loss has shape \[\]"),
        ("infinite", "loss", "loss is not finite"),
        ("detached", "loss", "no gradient of loss reaches v"),
        ("batch", "loss", "depends on the other samples"),
        ("pull", "no reward, no pull", "with advantage 0"),
        ("sign", "good samples", "does not bring the velocity nearer to that of a good sample"),
        ("base", "declared references", r"does not ask for: add 'old' \(point.v_old\) or 'base' \(point.v_ref\)"),
        ("in place", "purity", "loss changes its inputs in place"),
        ("level 0", "noise_levels", r"noise_levels returned 0 at update 0: return levels in \(0, 1\]"),
        ("tiny", "noise_levels", r"noise_levels returned 0 at update 0: return levels in \(0, 1\]"),
        ("levels of another shape", "noise_levels", r"noise_levels returned torch.float32 \[8, 1\]"),
        ("decay", "old_decay", r"old_decay is 1.5 at update 2: return a share in \[0, 1\]"),
        ("credit", "shifted rewards", "adding a constant to all rewards"),
    ],
)
def test_a_broken_method_is_refused_in_one_sentence(fault: str, check: str, message: str) -> None:
    check_method(Broken())
    with pytest.raises(BenchError, match=rf"Broken fails the check '{check}': .*{message}"):
        check_method(Broken(fault=fault))


def test_a_decay_outside_of_its_range_is_found_before_a_run() -> None:
    check_steps(Broken(fault="decay"), tiny("budget.updates=2"))
    with pytest.raises(BenchError, match=r"Broken\.old_decay is 1\.5 at update 2"):
        check_steps(Broken(fault="decay"), tiny("budget.updates=3"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoodOnly(Matching):
    """Learns from good samples only, and not at all at noise level 1."""

    references: ClassVar[frozenset[str]] = frozenset({"base"})

    def loss(self, point: ForwardPoint, adv: Tensor) -> Tensor:
        near = latent_mean((point.v - cast(Tensor, point.v_ref)) ** 2)
        return (1 - point.sigma) * super().loss(point, adv.clamp_min(0)) + near


@dataclasses.dataclass(frozen=True, kw_only=True)
class NothingOfBad(Matching):
    """No gradient at all for samples that are worse than others."""

    def loss(self, point: ForwardPoint, adv: Tensor) -> Tensor:
        return super().loss(point, adv.clamp_min(0))


def test_a_loss_may_leave_bad_samples_and_single_levels_alone() -> None:
    check_method(GoodOnly())
    check_method(NothingOfBad())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forgetful(Matching):
    def old_decay(self, update: int) -> float:
        return 0.9


def test_a_decay_without_an_old_policy_is_refused() -> None:
    with pytest.raises(BenchError, match=r"old_decay is 0\.9, but there is no old policy: add 'old' to references"):
        check_method(Forgetful())


def test_several_advantages_leave_a_regularizer_its_weight() -> None:
    """The mean by weight: with advantages of 0, RVM's loss of two rewards is that of one."""
    each = StandardizedAdvantages(std="each")
    zero = Rewards({"a": torch.ones(2, 4), "b": torch.ones(2, 4)}, {"a": 0.5, "b": 2.0}, each)
    one = Rewards({"a": torch.ones(2, 4)}, {"a": 1.0})
    for method in (RVM(), AWM()):
        both, single = (run_update(method, 0.3, rewards).gradient() for rewards in (zero, one))
        torch.testing.assert_close(both, single)
        assert single.abs().max() > 0


def test_letters_are_no_references() -> None:
    letters = type("Letters", (Matching,), {"__module__": __name__, "references": frozenset("old")})
    with pytest.raises(BenchError, match=r"write a set of names, such as frozenset\(\{'old'\}\)"):
        check_method(dataclasses.dataclass(frozen=True, kw_only=True)(letters)())


@pytest.mark.parametrize(
    "content",
    [{"old_decay": 0.9}, {"__annotations__": {"old_decay": "float"}}, {"old_decay": property(lambda self: 1)}],
)
def test_a_hook_is_a_function(content: dict[str, Any]) -> None:
    message = "sets old_decay, which is a hook: define it as a function, def old_decay"
    with pytest.raises(BenchError, match=message):
        type("Field", (Matching,), {"__module__": __name__, **content})
    with pytest.raises(BenchError, match=message):
        type("Mixed", (type("Mixin", (), {"__module__": __name__, **content}), Matching), {"__module__": __name__})
    type("Sound", (Matching,), {"__module__": __name__, "old_decay": classmethod(lambda cls, update: 0.5)})


def test_a_class_of_both_kinds_is_refused() -> None:
    with pytest.raises(BenchError, match="derives from Method and ForwardMethod: a method is of one kind"):
        type("Both", (FlowGRPO, Matching), {"__module__": __name__})
    with pytest.raises(BenchError, match="derives from neither Method nor ForwardMethod: a method is of one kind"):
        type("None", (AnyMethod,), {"__module__": __name__})
    assert not issubclass(Matching, Method)


@pytest.mark.parametrize(
    ("base", "hook", "function", "other"),
    [
        (FlowGRPO, "old_decay", lambda self, update: 0.0, "ForwardMethod"),
        (FlowGRPO, "loss", lambda self, point, adv: adv, "ForwardMethod"),
        (Matching, "transition", lambda self, x, v, sigma, sigma_next: x, "Method"),
    ],
)
def test_a_hook_of_the_other_kind_is_refused(base: Any, hook: str, function: Any, other: str) -> None:
    """Nothing would call it; a mixin that brings it is refused too."""
    message = rf"defines {hook}, a hook of {other} that would never be called: rename it, or derive from the other"
    with pytest.raises(BenchError, match=message):
        type("Mixed", (base,), {"__module__": __name__, hook: function})
    mixin = type("Mixin", (), {"__module__": __name__, hook: function})
    with pytest.raises(BenchError, match=message):
        type("Mixed", (mixin, base), {"__module__": __name__})


def test_a_field_or_a_helper_may_have_the_name_of_a_hook_of_the_other_kind() -> None:
    type("Own", (FlowGRPO,), {"__module__": __name__, "loss": "huber", "__annotations__": {"loss": "str"}})
    type("Helper", (FlowGRPO,), {"__module__": __name__, "loss": lambda self, ratio: ratio})


def test_a_forward_method_has_no_kl_policy() -> None:
    name = f"{Matching.__module__}:Matching"
    with pytest.raises(BenchError, match=r"row 'm': .*Matching is a forward method, .* set kl to none"):
        prepare(tiny(f"rows=[{{method: '{name}', kl: fixed, label: m}}]"))
    assert prepare(tiny(f"rows=[{{method: '{name}', kl: none, label: m}}]")).rows[0].method == Matching()


def test_the_synthetic_point_has_the_references_of_the_method() -> None:
    point = synthetic_point(RVM())
    assert len(point.v) == SAMPLES
    assert point.v_old is None
    assert point.v_ref is not None
