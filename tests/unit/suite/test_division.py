"""`open_reasons`: what leaves the closed division, and what does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from bench.api import LATE, OPEN, AnyMethod, ForwardPoint, Method, ScoredStep, latent_mean
from bench.suite.division import open_reasons, wrong_gradient
from bench.suite.load import load_variants
from bench.suite.packaged import packaged_files
from bench.suite.prepared import prepare
from bench.suite.schema import RowSpec
from methods.awm import AWM
from methods.cps import CPS
from methods.dance_grpo import DanceGRPO
from methods.diffusion_nft import DiffusionNFT
from methods.flow_grpo import FlowGRPO
from methods.rvm import RVM
from methods.sage_grpo import SAGEGRPO

ROW = RowSpec(method="m")


def reasons(method: AnyMethod, **row: Any) -> list[str]:
    return open_reasons(method, ROW.model_copy(update=row))


@pytest.mark.parametrize("equalizer", ["off", "derived", "released"])
@pytest.mark.parametrize("cls", [FlowGRPO, DanceGRPO, CPS, SAGEGRPO])
def test_the_packaged_methods_are_closed(cls: type[Method], equalizer: Any) -> None:
    assert reasons(cls(equalizer=equalizer)) == []
    assert reasons(cls(equalizer=equalizer, clip_range=1e-3)) == []


@pytest.mark.parametrize(
    "params",
    [{"objective": "plain"}, {"variance": "exact"}, {"equalizer_norm": "variance"}, {"kl_scale": "paper"}],
)
def test_the_options_of_sage_grpo_that_choose_paper_or_code_are_closed(params: dict[str, Any]) -> None:
    assert reasons(SAGEGRPO(**params)) == []


@pytest.mark.parametrize(
    ("method", "option"),
    [
        (FlowGRPO(drop_zero_advantages=True), "option drop_zero_advantages is True"),
        (CPS(drop_zero_advantages=True), "option drop_zero_advantages is True"),
        (DanceGRPO(extremes=2), "option extremes is 2"),
    ],
)
def test_an_option_of_the_open_division_opens_it(method: Method, option: str) -> None:
    assert reasons(method) == [f"{type(method).__name__} chooses the samples that train", option]


def test_an_option_that_changes_nothing_on_the_probe_opens_it_too() -> None:
    assert reasons(DanceGRPO(extremes=8)) == ["option extremes is 8"]  # 8 and 8 of 16 are all


def test_a_learning_rate_of_its_own_opens_it() -> None:
    assert reasons(CPS(), lr=1e-3) == ["a learning rate of its own, 0.001"]


@dataclass(frozen=True, kw_only=True)
class Ranks(CPS):
    """Advantages of its own, without an option that is marked."""

    paper: ClassVar[str] = "none"

    def advantages(self, rewards: Any) -> Tensor:
        return super().advantages(rewards)


@dataclass(frozen=True, kw_only=True)
class Four(DanceGRPO):
    """Another default of an option of its base, whose mark is left out."""

    extremes: int = 4


@dataclass(frozen=True, kw_only=True)
class Marked(CPS):
    """An option of its own that is marked, and hooks that use it."""

    power: float = field(default=1.0, metadata=LATE | OPEN)

    def advantages(self, rewards: Any) -> Tensor:
        adv = super().advantages(rewards)
        return adv if self.power == 1 else adv.sign() * adv.abs() ** self.power


@dataclass(frozen=True, kw_only=True)
class Lying(Marked):
    """Marked, at its default, and yet other advantages."""

    power: float = field(default=1.0, metadata=OPEN)

    def advantages(self, rewards: Any) -> Tensor:
        return super().advantages(rewards) * (1 + 1e-6)


@dataclass(frozen=True, kw_only=True)
class Attribute(CPS):
    """Sets a hook as an attribute of the object."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "select", lambda adv: torch.ones(adv.shape[1:], dtype=torch.bool))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Ranks(), ["Ranks has advantages of its own"]),  # the result is the default's, and the class is its own
        (Four(), ["Four chooses the samples that train", "option extremes is 4"]),
        (Four(extremes=0), []),
        (Marked(), []),
        (Marked(power=2.0), ["Marked has advantages of its own", "option power is 2.0"]),
        (Lying(), ["Lying has advantages of its own"]),
        (Attribute(), ["Attribute chooses the samples that train"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else None,
)
def test_overrides(method: Method, expected: list[str]) -> None:
    assert reasons(method) == expected


@dataclass(frozen=True, kw_only=True)
class Scaled(CPS):
    """Scale, offset, dead zone and limit of the loss's gradient."""

    factor: float = 1.0
    dead: float = 0.0
    most: float = 9.0

    def surrogate(self, logp_new: Tensor, logp_old: Tensor, adv: Tensor) -> Tensor:
        adv = torch.where(adv.abs() < self.dead, torch.zeros_like(adv), adv).clamp(-self.most, self.most)
        return self.factor * super().surrogate(logp_new, logp_old, adv)


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"factor": 100.0}, "400 at ratio 1 with the advantage -4"),
        ({"factor": 1e6}, "4000000 at ratio 1 with the advantage -4"),
        ({"factor": 1 + 1e-6}, "4.000004 at ratio 1 with the advantage -4"),
        ({"dead": 0.3}, "0 at ratio 1 with the advantage 0.264"),
        ({"most": 3.0}, "3 at ratio 1 with the advantage -4"),
        ({"factor": float("nan")}, "nan at ratio 1 with the advantage -4"),
    ],
)
def test_another_gradient_at_ratio_1_opens_it(params: dict[str, float], found: str) -> None:
    assert reasons(Scaled(**params)) == [f"the gradient of the loss is {found}"]
    assert wrong_gradient(Scaled()) is None


@dataclass(frozen=True, kw_only=True)
class OffGrid(CPS):
    """A loss of another scale wherever the advantage is no multiple of a quarter."""

    def surrogate(self, logp_new: Tensor, logp_old: Tensor, adv: Tensor) -> Tensor:
        factor = torch.where(adv * 4 == (adv * 4).round(), 1.0, 3.0)
        return factor * super().surrogate(logp_new, logp_old, adv)


def test_a_gradient_that_is_right_for_round_advantages_only_opens_it() -> None:
    (reason,) = reasons(OffGrid())
    assert "at ratio 1 with the advantage" in reason


def test_the_division_of_every_row_of_the_packaged_suites() -> None:
    found = {
        (suite.name, row.name): open_reasons(row.method, row.spec)
        for path in packaged_files().values()
        for suite in load_variants(path)
        for row in prepare(suite).rows
        if row.spec.lr is None  # the trials of a search
    }
    assert {key: why for key, why in found.items() if why} == {
        ("nano_as_published_cps", "cps-as_published"): [
            "CPS chooses the samples that train",
            "option drop_zero_advantages is True",
        ],
        ("nano_as_published_dance_grpo", "dance_grpo-as_published"): [
            "DanceGRPO chooses the samples that train",
            "option extremes is 4",
        ],
        ("nano_as_published_flow_grpo", "flow_grpo-as_published"): [
            "FlowGRPO chooses the samples that train",
            "option drop_zero_advantages is True",
        ],
        ("nano_as_published_longcat_grpo", "longcat_grpo-as_published"): [
            "LongCatGRPO has advantages of its own",
            "option largest_std is True",
        ],
    }


@dataclass(frozen=True, kw_only=True)
class OwnLoss(CPS):
    """PPO's loss times a factor, and a push that has nothing to do with the advantage."""

    paper: ClassVar[str] = "none"
    factor: float = 1.0
    push: float = 0.0

    def policy_loss(
        self, new: ScoredStep, old: ScoredStep, x_next: Tensor, adv: Tensor, sigma: Tensor, sigma_next: Tensor
    ) -> Tensor:
        return self.factor * self.surrogate(new.logp, old.logp, adv) + self.push * latent_mean(new.mean)


def test_the_gradient_of_a_policy_loss_is_measured_too() -> None:
    assert reasons(OwnLoss()) == []
    assert "the gradient of the loss is " in reasons(OwnLoss(factor=2.0))[0]
    assert "does not follow that of the log-probability" in reasons(OwnLoss(push=0.1))[0]


@pytest.mark.parametrize("method", [RVM(), RVM(scale=1e3), AWM(), AWM(likelihood="huber"), DiffusionNFT(beta=0.1)])
def test_the_packaged_forward_methods_are_closed(method: AnyMethod) -> None:
    assert reasons(method) == []


@dataclass(frozen=True, kw_only=True)
class OwnCredit(RVM):
    """Credit of its own inside the loss: little for advantages below 1, a push without a reward."""

    paper: ClassVar[str] = "none"
    small: float = 1.0
    push: float = 0.0

    def loss(self, point: ForwardPoint, adv: Tensor) -> Tensor:
        loss = super().loss(point, torch.where(adv.abs() < 1, self.small * adv, adv))
        return loss + self.push * latent_mean(point.v)


@pytest.mark.parametrize("params", [{"small": 1e-3}, {"small": -1.0}, {"small": 1 + 1e-4}, {"push": 0.1}])
def test_credit_inside_the_loss_of_a_forward_method_opens_it(params: dict[str, float]) -> None:
    assert reasons(OwnCredit()) == []
    (reason,) = reasons(OwnCredit(**params))
    assert "the gradient of the loss is not in proportion to the advantage" in reason
