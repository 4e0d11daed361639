"""A method has enough noisy steps at every update and seed, or the update is named before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor

from bench.algorithm.sampling import RolloutConfig
from bench.algorithm.steps import schedule_properties
from bench.api import BenchError, Method
from bench.checks.steps import check_steps
from bench.flow import sigma_schedule
from bench.suite.schema import Suite
from methods.cps import CPS
from methods.flow_grpo import FlowGRPO
from tests.helpers.nano_suite import tiny


@dataclass(frozen=True, kw_only=True)
class Window(FlowGRPO):
    """`width` noisy steps, one step later at each update, or at a random place."""

    paper: ClassVar[str] = "none"
    width: int = 2
    place: Literal["moving", "random", "nowhere"] = "moving"

    def stochastic(self, sigmas: Tensor, update: int, rng: torch.Generator) -> Tensor:
        steps = len(sigmas) - 1
        first = update if self.place == "moving" else int(torch.randint(0, steps - 1, (1,), generator=rng))
        noisy = torch.zeros(steps, dtype=torch.bool)
        noisy[first : first + self.width] = self.place != "nowhere"
        return noisy


@dataclass(frozen=True, kw_only=True)
class Late(CPS):
    """Raises at update 3."""

    paper: ClassVar[str] = "none"

    def stochastic(self, sigmas: Tensor, update: int, rng: torch.Generator) -> Tensor:
        if update == 3:
            raise IndexError("window")
        return super().stochastic(sigmas, update, rng)


def suite(*overrides: str) -> Suite:
    """4 steps, 2 of which are trained."""
    return tiny("budget.updates=4", *overrides)


def test_a_window_that_reaches_the_last_step_is_refused_with_the_update_and_the_setting() -> None:
    message = (
        r"Window has 1 steps to train at update 2, but budget\.train_steps is 2: the method marks 2 of 4 steps noisy, "
        r"`decode: predicted_x0` silences the last, 1 remain"
    )
    with pytest.raises(BenchError, match=message):
        check_steps(Window(), suite())
    check_steps(Window(), suite("budget.updates=2"))
    check_steps(Window(), suite("budget.updates=3", "decode=final_latent"))
    with pytest.raises(BenchError, match=r"at update 2, .*`last_step: untrained` leaves out the last, 1 remain"):
        check_steps(Window(), suite("decode=final_latent", "last_step=untrained"))


@dataclass(frozen=True, kw_only=True)
class OwnWindow(Window):
    """The same for each prompt."""

    per_prompt: ClassVar[bool] = True


def test_a_window_of_one_prompt_is_refused_with_the_prompt() -> None:
    with pytest.raises(BenchError, match=r"OwnWindow has 1 steps to train at update 2, prompt 0, but budget"):
        check_steps(OwnWindow(), suite())


def test_a_kernel_without_noise_is_named() -> None:
    with pytest.raises(
        BenchError, match=r"marks 4 of 4 steps noisy, its kernel adds no noise at 4 of them with eta 0, 0 remain"
    ):
        check_steps(CPS(eta=0.0), suite())


def test_a_method_without_a_noisy_step_is_refused() -> None:
    with pytest.raises(BenchError, match=r"has 0 steps to train at update 0.*marks 0 of 4 steps noisy, 0 remain"):
        check_steps(Window(place="nowhere"), suite())


def test_every_seed_is_asked() -> None:
    random, few = Window(place="random"), suite("budget.updates=1")
    refused = []
    for seed in range(8):
        try:
            check_steps(random, few.model_copy(update={"seeds": [seed]}))
        except BenchError:
            refused.append(seed)
    assert 0 < len(refused) < 8
    sound = next(seed for seed in range(8) if seed not in refused)
    with pytest.raises(BenchError, match="at update 0"):
        check_steps(random, few.model_copy(update={"seeds": [sound, refused[0]]}))


def test_an_exception_of_a_hook_names_the_update() -> None:
    with pytest.raises(BenchError, match=r"Late raises IndexError at update 3 of the budget \(window\)"):
        check_steps(Late(), suite())


@pytest.mark.parametrize("method", [CPS(), FlowGRPO()])
def test_our_methods_have_enough(method: Method) -> None:
    check_steps(method, suite("budget.updates=100000"))  # asked once, since the steps do not depend on the update


@dataclass(frozen=True, kw_only=True)
class Above(FlowGRPO):
    """Weights of its own: 1 at noise levels above a limit, 0 below, which is legal."""

    limit: float = 0.8
    late: bool = False

    def stochastic(self, sigmas: Tensor, update: int, rng: torch.Generator) -> Tensor:
        steps = torch.arange(len(sigmas) - 1)
        return steps >= 2 if self.late and update == 1 else steps < 2

    def step_weights(self, sigmas: Tensor) -> Tensor:
        return (sigmas[:-1] > self.limit).float()


def test_weights_that_no_trained_step_has_are_found_before_a_run() -> None:
    short = tiny("budget.updates=2", "budget.train_steps=1")
    check_steps(Above(limit=0.9), short)
    with pytest.raises(BenchError, match=r"Above\.step_weights has the mean 0 over the steps that may train"):
        check_steps(Above(limit=0.9, late=True), short)


def test_the_predicted_norms_are_those_of_the_kernel_whatever_the_weights() -> None:
    config = RolloutConfig(tiny().budget, "predicted_x0", "distinct", 0)
    sigmas = sigma_schedule(4, 5.0)
    own, plain = (schedule_properties(method, sigmas, config) for method in (Above(), FlowGRPO()))
    assert own["predicted_grad_norm"] == plain["predicted_grad_norm"]
    assert 0.0 in own["step_weight"]
