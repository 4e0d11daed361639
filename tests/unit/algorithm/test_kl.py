"""KL policies: anchors, weights, and the controller against the released traces."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.api import BenchError, KLPolicy, RefreshRule
from bench.plugins import available, kl_policy
from tests.helpers import parity
from tests.helpers.paths import GOLDEN_DATA

GOLDEN: dict[str, Any] = json.loads((GOLDEN_DATA / "p12_kl.json").read_text())
TRACES = {trace["name"]: trace for trace in GOLDEN["expected"]["controller"]}


def coefficients(policy: KLPolicy, values: list[float], term: Any = "anchor") -> list[float]:
    """Weight of the term after each value."""
    state, seen = policy.init_state(), []
    for value in values:
        state = policy.next_state(state, {"anchor": value, "stepwise": 0.0})
        seen.append(policy.weights(state)[term])
    return seen


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("policy", ["fixed", "moving", "dual"])
def test_released_controller_follows_the_released_traces(name: str, policy: str) -> None:
    trace = TRACES[name]
    kl = kl_policy(policy, weight=trace["kl_weight"], min_weight=trace["kl_min_coef"])
    actual, expected = coefficients(kl, trace["kl_sequence"]), trace["coef_after_each_update"]
    parity.within("methods: controller", actual, expected, 1e-12, relative=True)  # float64: a few roundings per tick


def test_the_weight_in_use_is_the_one_before_the_tick() -> None:
    policy = kl_policy("fixed")
    state = policy.init_state()
    assert policy.weights(state) == {"anchor": 1e-7}
    assert policy.weights(policy.next_state(state, {"anchor": 1.0}))["anchor"] == pytest.approx(1.99e-7)


def test_controller_reacts_to_the_mean_of_the_last_ten_values_only() -> None:
    quiet = coefficients(kl_policy("fixed"), [1e-5] * 130)
    assert quiet[-1] == quiet[98] == pytest.approx(9.901e-6)  # inside the band nothing moves
    burst = coefficients(kl_policy("fixed"), [1.0] * 95 + [1e-5] * 35)
    assert burst[103] == burst[-1] == pytest.approx(9.901e-6 * 0.9**5)  # ticks 100 to 104 still hold a value of it


def test_usual_controller_is_the_released_one_with_the_sign_flipped() -> None:
    high, low = [1e-4] * 130, [0.0] * 130
    start = 9.901e-6
    assert coefficients(kl_policy("fixed"), high)[100] == pytest.approx(start * 0.81)
    assert coefficients(kl_policy("fixed", controller="usual"), high)[100] == pytest.approx(1e-5)  # at the ceiling
    assert coefficients(kl_policy("fixed", controller="usual"), low)[100] == pytest.approx(start * 0.81)
    assert coefficients(kl_policy("fixed", controller="usual"), low)[:99] == coefficients(kl_policy("fixed"), low)[:99]


def test_coefficient_stays_between_its_bounds() -> None:
    for controller in ("released", "usual"):
        for value in (0.0, 1.0):
            seen = coefficients(kl_policy("fixed", controller=controller), [value] * 300)
            assert min(seen) >= 1e-7
            assert max(seen) <= 1e-5


def test_constant_controller_never_moves() -> None:
    policy = kl_policy("fixed", weight=0.04, controller="constant")
    assert policy.weights(policy.init_state()) == {"anchor": 0.04}
    assert set(coefficients(policy, [0.0, 5.0] * 80)) == {0.04}


def test_terms_add_up_to_the_released_effective_kl() -> None:
    for name, want in GOLDEN["expected"]["sage"].items():
        logs = {"anchor": want["kl_moving_or_fixed"], "stepwise": want["kl_stepwise"]}
        for policy, key in (("dual", "effective_dual"), ("moving", "effective_single"), ("fixed", "effective_single")):
            kl = kl_policy(policy)
            state = kl.next_state(kl.init_state(), logs)
            assert state["recent"] == [pytest.approx(want[key], rel=1e-6)], (name, policy)  # float32 origin


def test_weights_by_policy() -> None:
    by_name = {name: kl_policy(name) for name in available("kl_policies")}
    weights = {name: policy.weights(policy.init_state()) for name, policy in by_name.items()}
    assert weights["none"] == {}
    assert weights["fixed"] == weights["moving"] == {"anchor": pytest.approx(1e-7)}
    assert weights["stepwise"] == {"stepwise": pytest.approx(1e-8)}
    assert weights["dual"] == {"anchor": pytest.approx(1e-7), "stepwise": pytest.approx(1e-8)}


def test_anchors_by_policy() -> None:
    anchors = {name: kl_policy(name).anchors() for name in available("kl_policies")}
    previous = RefreshRule(network=False)
    assert anchors == {
        "none": {},
        "fixed": {"fixed": RefreshRule()},
        "stepwise": {"previous": previous},
        "moving": {"moving": RefreshRule(every=10)},
        "dual": {"moving": RefreshRule(every=10), "previous": previous},
    }
    assert kl_policy("dual", anchor="fixed").anchors() == {"fixed": RefreshRule(), "previous": previous}


def test_moving_anchor_is_due_every_n_updates_and_never_at_the_first() -> None:
    assert [update for update in range(31) if RefreshRule(every=10).due(update)] == [10, 20, 30]
    assert not any(RefreshRule().due(update) for update in range(31))


@pytest.mark.parametrize("name", available("kl_policies"))
def test_state_is_plain_and_the_step_is_pure(name: str) -> None:
    policy, logs = kl_policy(name), {"anchor": 3e-5, "stepwise": 1e-3}
    state = policy.init_state()
    for _ in range(115):
        stored = json.dumps(state)
        after = policy.next_state(state, logs)
        assert json.dumps(state) == stored
        assert policy.next_state(json.loads(stored), logs) == after  # a resumed run goes on with the same bits
        state = after


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_a_number_stops_the_run(bad: float) -> None:
    policy = kl_policy("fixed")
    with pytest.raises(BenchError, match="tick 0"):
        policy.next_state(policy.init_state(), {"anchor": bad})


def test_a_missing_term_is_named() -> None:
    policy = kl_policy("dual")
    with pytest.raises(BenchError, match="stepwise"):
        policy.next_state(policy.init_state(), {"anchor": 0.0})


@pytest.mark.parametrize(
    ("name", "params", "match"),
    [
        ("duel", {}, "did you mean 'dual'"),
        ("Fixed", {}, "did you mean 'fixed'"),
        ("fixed", {"every": 5}, "every"),
        ("none", {"weight": 1.0}, "weight"),
        ("moving", {"every": 0}, "every"),
        ("moving", {"every": 2.5}, "every"),
        ("fixed", {"weight": -1.0}, "weight"),
        ("fixed", {"weight": float("nan")}, "weight"),
        ("fixed", {"weight": 1e-8}, "min_weight"),
        ("fixed", {"controller": "adaptive"}, "controller"),
        ("dual", {"anchor": "previous"}, "anchor"),
    ],
)
def test_mistakes_are_refused_with_a_remedy(name: str, params: dict[str, Any], match: str) -> None:
    with pytest.raises(BenchError, match=match):
        kl_policy(name, **params)
