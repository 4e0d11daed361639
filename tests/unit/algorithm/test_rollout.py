"""Rollouts on a closed-form backbone: the noise is the harness's, the trained steps are the suite's."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.algorithm.rollout import NoiseSource, Rollout, Sampler
from bench.algorithm.sampling import RolloutConfig
from bench.algorithm.steps import noisy_steps, trained_steps
from bench.api import BenchError, Budget, DivergedError, Gaussian, Method
from bench.core.ledger import Ledger
from bench.flow import euler, predicted_x0
from methods.cps import CPS
from methods.dance_grpo import DanceGRPO
from methods.flow_grpo import FlowGRPO
from methods.sage_grpo import SAGEGRPO
from tests.helpers.toy import ToyBackbone

OURS = [FlowGRPO, DanceGRPO, CPS, SAGEGRPO]
BUDGET = Budget(
    **{"updates": 2, "prompts": 2, "group_size": 3, "steps": 5, "train_steps": 2, "shift": 5.0, "guidance": 1.0},
    **{"lr": 1e-3, "micro_batch": 6},
)
PROMPTS = ["one", "three"]


def settings(**changes: Any) -> RolloutConfig:
    return dataclasses.replace(RolloutConfig(BUDGET, "predicted_x0", "distinct", 7), **changes)


def sample(
    method: Method,
    update: int = 0,
    anchors: tuple[str, ...] = (),
    backbone: ToyBackbone | None = None,
    **changes: Any,
) -> Rollout:
    backbone = backbone or ToyBackbone()
    sampler = Sampler(backbone, method, settings(**changes), Ledger())
    return sampler.sample(backbone.encode(PROMPTS), update, anchors)


def noise(config: RolloutConfig, update: int, kind: str, step: int, shape: Any) -> Tensor:
    """Noise of all samples of an update."""
    samples = range(config.budget.prompts * config.budget.group_size)
    return NoiseSource(config, update, shape).draw(kind, step, samples)


def fresh_noise(rollout: Rollout, method: Method) -> Tensor:
    """The standard normal draws behind the trained steps, solved from what the rollout stored."""
    backbone, drawn = ToyBackbone(), []
    for n, i in enumerate(rollout.view.steps.tolist()):
        sigma, sigma_next = (rollout.sigmas[k].expand(6) for k in (i, i + 1))
        v = backbone.velocity(rollout.x[n], sigma, rollout.cond, 1.0).detach()
        step = method.transition(rollout.x[n], v, sigma, sigma_next)
        drawn.append((rollout.x_next[n] - step.mean) / step.std.reshape(-1, 1, 1, 1, 1))
    return torch.stack(drawn)


@pytest.mark.usefixtures("global_random_state_is_left_alone")
def test_all_methods_see_the_same_noise_and_train_the_same_steps() -> None:
    first_step = settings(budget=dataclasses.replace(BUDGET, train_steps=4))
    rollouts = {cls: (cls(), sample(cls(), budget=first_step.budget)) for cls in OURS}
    expected = noise(first_step, 0, "initial", 0, ToyBackbone.latent_shape)
    fresh = torch.stack([noise(first_step, 0, "step", i, ToyBackbone.latent_shape) for i in range(4)])
    for method, rollout in rollouts.values():
        assert torch.equal(rollout.x[0], expected)
        assert rollout.view.steps.tolist() == [0, 1, 2, 3]
        # solving the noise back divides a float32 difference by a std of at least .1: a few units in the sixth digit
        torch.testing.assert_close(fresh_noise(rollout, method), fresh, rtol=0, atol=1e-4)


@pytest.mark.parametrize("update", range(6))
def test_trained_steps_are_the_same_for_all_methods(update: int) -> None:
    chosen = {tuple(sample(cls(), update).view.steps.tolist()) for cls in OURS}
    (steps,) = chosen
    assert len(steps) == 2
    assert list(steps) == sorted(set(steps))
    assert 4 not in steps


def test_trained_steps_change_from_update_to_update_and_from_seed_to_seed() -> None:
    assert len({tuple(sample(CPS(), u).view.steps.tolist()) for u in range(12)}) > 2
    assert len({tuple(sample(CPS(), 0, seed=s).view.steps.tolist()) for s in range(12)}) > 2


def test_noise_depends_on_prompt_member_step_update_and_seed_alone() -> None:
    base, shape = settings(), ToyBackbone.latent_shape
    drawn = [
        noise(base, 0, "initial", 0, shape),
        noise(base, 0, "step", 0, shape),
        noise(base, 0, "step", 1, shape),
        noise(base, 1, "step", 0, shape),
        noise(settings(seed=8), 0, "step", 0, shape),
    ]
    assert len({tuple(row.flatten().tolist()) for draw in drawn for row in draw}) == 5 * 6
    wide = settings(budget=dataclasses.replace(BUDGET, prompts=3, group_size=4))
    wider = noise(wide, 0, "step", 1, shape).unflatten(0, (3, 4))
    assert torch.equal(wider[:2, :3].flatten(0, 1), drawn[2])


@pytest.mark.parametrize("method", [cls() for cls in OURS], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_micro_batch_changes_no_bit_of_a_rollout(method: Method, size: int) -> None:
    backbone = ToyBackbone()
    whole = sample(method, anchors=("fixed",))
    parts = sample(method, anchors=("fixed",), backbone=backbone, budget=dataclasses.replace(BUDGET, micro_batch=size))
    assert max(backbone.calls) == size
    for name in ("x", "x_next", "logp_old", "x0"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name
    assert torch.equal(parts.anchors["fixed"], whole.anchors["fixed"])


def test_group_noise_shared_gives_a_group_one_start_and_different_ends() -> None:
    all_steps = dataclasses.replace(BUDGET, train_steps=4)
    shared = sample(CPS(), budget=all_steps, group_noise="shared")
    starts = shared.x[0].unflatten(0, (2, 3))
    assert torch.equal(starts, starts[:, :1].expand_as(starts))
    assert not torch.equal(starts[0], starts[1])
    assert len({tuple(row.flatten().tolist()) for row in shared.x0}) == 6
    distinct = sample(CPS(), budget=all_steps)
    assert torch.equal(distinct.x[0].unflatten(0, (2, 3))[:, 0], starts[:, 0])
    assert len({tuple(row.flatten().tolist()) for row in distinct.x[0]}) == 6


@pytest.mark.parametrize("cls", OURS)
def test_predicted_x0_ends_in_x_minus_sigma_v(cls: Any) -> None:
    """With all noisy steps trained, the last stored x_next is the input of the last, deterministic step."""
    rollout = sample(cls(), budget=dataclasses.replace(BUDGET, train_steps=4))
    x, sigma = rollout.x_next[-1], rollout.sigmas[4].expand(6)
    v = ToyBackbone().velocity(x, sigma, rollout.cond, 1.0).detach()
    assert torch.equal(rollout.x0, euler(x, v, sigma, torch.zeros(6)))
    torch.testing.assert_close(rollout.x0, predicted_x0(x, v, sigma), rtol=0, atol=1e-6)


def test_final_latent_noises_and_trains_the_last_step() -> None:
    every = dataclasses.replace(BUDGET, train_steps=5)
    rollout = sample(SAGEGRPO(), budget=every, decode="final_latent")
    assert rollout.view.steps.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(rollout.x0, rollout.x_next[-1])
    last = fresh_noise(rollout, SAGEGRPO())[-1]
    torch.testing.assert_close(last, noise(settings(), 0, "step", 4, ToyBackbone.latent_shape), rtol=0, atol=1e-3)
    with pytest.raises(BenchError, match=r"SAGEGRPO has 4 steps to train at update 0, but budget\.train_steps is 5"):
        sample(SAGEGRPO(), budget=every)


def test_anchor_velocities_are_those_of_the_frozen_base() -> None:
    backbone = ToyBackbone()
    with torch.no_grad():
        backbone.gain.add_(1.0)
    rollout = sample(FlowGRPO(), anchors=("fixed",), backbone=backbone)
    base = ToyBackbone()
    for n, i in enumerate(rollout.view.steps.tolist()):
        expected = base.velocity(rollout.x[n], rollout.sigmas[i].expand(6), rollout.cond, 1.0)
        assert torch.equal(rollout.anchors["fixed"][n], expected.detach())


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_rollout_counts_what_it_spends(guidance: float) -> None:
    ledger, times = Ledger(), 1 if guidance == 1 else 2
    budget = dataclasses.replace(BUDGET, guidance=guidance)
    backbone = ToyBackbone()
    Sampler(backbone, CPS(), settings(budget=budget), ledger).sample(backbone.encode(PROMPTS), 0, ("fixed",))
    assert ledger.counts == {"nfe_rollout": 30 * times, "nfe_anchor": 12 * times, "videos": 6, "prompts": 2}
    assert sum(backbone.calls) == 30 + 12


class Window(FlowGRPO):
    def stochastic(self, sigmas: Tensor, update: int, rng: torch.Generator) -> Tensor:
        mask = torch.zeros(len(sigmas) - 1, dtype=torch.bool)
        mask[1:3] = True
        return mask


class NamesAQuietStep(Window):
    def train_steps(self, sigmas: Tensor, n: int, rng: torch.Generator) -> Tensor:
        return torch.arange(n)


class NamesOneTwice(Window):
    def train_steps(self, sigmas: Tensor, n: int, rng: torch.Generator) -> Tensor:
        return torch.ones(n, dtype=torch.long)


class NamesTooMany(Window):
    def train_steps(self, sigmas: Tensor, n: int, rng: torch.Generator) -> Tensor:
        return torch.arange(1, 2)


class NamesItsOwn(Window):
    def train_steps(self, sigmas: Tensor, n: int, rng: torch.Generator) -> Tensor:
        return torch.tensor([2, 1])


class WrongMask(FlowGRPO):
    def stochastic(self, sigmas: Tensor, update: int, rng: torch.Generator) -> Tensor:
        return torch.ones(len(sigmas), dtype=torch.bool)


class NoVariance(FlowGRPO):
    def log_prob(self, step: Gaussian, x_next: Tensor) -> Tensor:
        return super().log_prob(step, x_next) / 0


def test_a_method_chooses_among_its_noisy_steps_only() -> None:
    assert sample(Window()).view.steps.tolist() == [1, 2]
    assert sample(NamesItsOwn()).view.steps.tolist() == [1, 2]
    for faulty in (NamesAQuietStep, NamesOneTwice, NamesTooMany):
        with pytest.raises(BenchError, match=rf"{faulty.__name__}\.train_steps returned .*: return 2 different"):
            sample(faulty())
    with pytest.raises(BenchError, match=r"WrongMask\.stochastic returned torch\.bool \[6\]: return bool \[5\]"):
        sample(WrongMask())


def test_the_quiet_steps_of_a_window_are_plain_euler() -> None:
    """Step 3 follows the window: from its input to the last step's, nothing random happens."""
    rollout = sample(Window())
    x, backbone = rollout.x_next[-1], ToyBackbone()
    for i in (3, 4):
        sigma, sigma_next = (rollout.sigmas[k].expand(6) for k in (i, i + 1))
        x = euler(x, backbone.velocity(x, sigma, rollout.cond, 1.0).detach(), sigma, sigma_next)
    assert torch.equal(x, rollout.x0)


def test_a_log_probability_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(DivergedError, match=r"log-probability of rollout step .* is not finite"):
        sample(NoVariance())


def test_the_mask_of_the_decode_rule() -> None:
    sigmas = torch.linspace(1, 0, 6)
    quiet = noisy_steps(CPS(), sigmas, settings(), 0)
    assert quiet.tolist() == [True] * 4 + [False]
    for cls in (FlowGRPO, DanceGRPO, SAGEGRPO):
        assert noisy_steps(cls(), sigmas, settings(decode="final_latent"), 0).all()
    # CPS has no variance at sigma 0: its last step is deterministic under any decode rule
    assert noisy_steps(CPS(), sigmas, settings(decode="final_latent"), 0).tolist() == [True] * 4 + [False]
    assert set(trained_steps(CPS(), sigmas, quiet, settings(), 3).tolist()) <= {0, 1, 2, 3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnWindow(FlowGRPO):
    """Each prompt has a window of two noisy steps at a place of its own."""

    per_prompt = True
    first: int | None = None
    """The same first step for all prompts; None: drawn."""

    def stochastic(self, sigmas: Tensor, update: int, rng: torch.Generator) -> Tensor:
        first = int(torch.randint(0, 3, (1,), generator=rng)) if self.first is None else self.first
        mask = torch.zeros(len(sigmas) - 1, dtype=torch.bool)
        mask[first : first + 2] = True
        return mask

    def step_weights(self, sigmas: Tensor) -> Tensor:
        return torch.arange(1.0, len(sigmas))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedWindow(OwnWindow):
    """The same window for all prompts."""

    per_prompt = False


def test_steps_per_prompt_that_are_equal_change_no_bit() -> None:
    """The path of masks [p, t] against that of masks [t], with the same steps of all prompts."""
    own, shared = sample(OwnWindow(first=1)), sample(SharedWindow(first=1))
    assert own.view.steps.tolist() == [[1, 2], [1, 2]]
    assert own.view.weight.tolist() == [shared.view.weight.tolist()] * 2
    for name in ("x", "x_next", "logp_old", "x0"):
        assert torch.equal(getattr(own, name), getattr(shared, name)), name


@pytest.mark.parametrize("update", [0, 1, 3])
def test_each_prompt_is_noisy_at_its_own_steps_and_costs_nothing_more(update: int) -> None:
    backbone = ToyBackbone()
    rollout = sample(OwnWindow(), update, ("fixed",), backbone)
    assert sum(backbone.calls) == 6 * 5 + 6 * 2  # rollout and anchor: as with one mask for all
    steps = rollout.view.steps
    mean = float(torch.arange(1.0, 6.0)[steps].mean())
    torch.testing.assert_close(rollout.view.weight, (steps + 1) / mean)
    for p, prompt in enumerate(PROMPTS):
        alone = sample(SharedWindow(first=int(steps[p, 0])), update, ("fixed",))
        rows = slice(3 * p, 3 * p + 3)
        for name in ("x", "x_next", "logp_old"):
            assert torch.equal(getattr(rollout, name)[:, rows], getattr(alone, name)[:, rows]), (prompt, name)
        assert torch.equal(rollout.x0[rows], alone.x0[rows])
        assert torch.equal(rollout.anchors["fixed"][:, rows], alone.anchors["fixed"][:, rows])
    assert rollout.levels(1, torch.tensor([0, 5]))[0].tolist() == rollout.sigmas[steps[:, 1]].tolist()


def test_the_steps_of_prompts_differ_between_prompts_and_updates() -> None:
    drawn = [sample(OwnWindow(), update).view.steps for update in range(12)]
    assert any(steps[0].tolist() != steps[1].tolist() for steps in drawn)
    assert len({str(steps.tolist()) for steps in drawn}) > 3
