"""The four methods against numbers computed by their authors' code (tests/golden/README.md)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.api import AdvantageRule, Gaussian, Method, Rewards, StandardizedAdvantages
from bench.flow import euler, sigma_schedule
from methods.cps import CPS
from methods.dance_grpo import DanceGRPO
from methods.flow_grpo import FlowGRPO
from methods.sage_grpo import SAGEGRPO
from tests.helpers import parity
from tests.helpers.paths import GOLDEN_DATA

METHODS: dict[str, Any] = {"flow_grpo": FlowGRPO, "dance_grpo": DanceGRPO, "cps": CPS, "sage_grpo": SAGEGRPO}
CASES: dict[str, Any] = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDEN_DATA.glob("p*.json"))}
TRANSITIONS = [name for name, case in CASES.items() if case["kind"] == "transition"]
BALANCING = [(name, kind) for name in TRANSITIONS for kind in CASES[name]["expected"].get("balancing", {})]
ADVANTAGE, SURROGATE, KL = (CASES[name] for name in ("p10_advantage", "p11_surrogate", "p12_kl"))

#: The kinds of numbers as the test run lists them.
KINDS = {
    "sigma": "schedule",
    "mean": "mean",
    "mean_sage": "mean (SAGE-GRPO)",
    "next_sample": "next sample",
    "next_sample_sage": "next sample (SAGE-GRPO)",
    "std": "std",
    "std_as_returned": "std as returned",
    "log_prob": "log-prob",
    "dmean_dv": "Jacobian",
    "grad_norm": "gradient norm of log-prob",
    "euler": "Euler step",
    "equalizer": "equalizer",
    "equalizer_norm": "equalizer norms",
    "advantage": "advantages",
    "total": "total reward",
    "loss": "surrogate",
    "loss_rel": "surrogate, relative",
    "loss_grad": "surrogate gradient",
    "kl": "KL",
    "kl_std": "KL std",
    "kl_grad": "KL gradient",
}


def within(kind: str, got: Any, want: Any, tolerance: float, relative: bool = False, floor: float = 1e-300) -> None:
    """`parity.within`, the kind under its printed name."""
    parity.within(f"methods: {KINDS[kind]}", got, want, tolerance, relative, floor)


def f32(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def latents(case: dict[str, Any], *names: str) -> list[Tensor]:
    return [f32(case["inputs"][name]).reshape(case["inputs"]["shape"]) for name in names]


def method_of(case: dict[str, Any]) -> Method:
    method: Method = METHODS[case["method"]](eta=case["eta"])
    return method


def test_all_twelve_files_are_here() -> None:
    assert len(CASES) == 12
    assert len(TRANSITIONS) == 9


@pytest.mark.parametrize("name", TRANSITIONS)
def test_schedule(name: str) -> None:
    schedule = CASES[name]["schedule"]
    # the origins compute it in float32: one rounding of a number below 1
    within("sigma", sigma_schedule(schedule["steps"], float(schedule["shift"])), f32(schedule["sigmas"]), 1.2e-7)


@pytest.mark.parametrize("name", TRANSITIONS)
def test_transition(name: str) -> None:
    case, m = CASES[name], method_of(CASES[name])
    x, v, x_next, noise = latents(case, "x", "v", "prev_sample", "noise")
    sigma, sigma_next = f32(case["sigma"]), f32(case["sigma_next"])
    want, sage = case["expected"], "_sage" if case["method"] == "sage_grpo" else ""
    v.requires_grad_(True)
    step = m.transition(x, v, sigma, sigma_next)
    drawn = step.mean + step.std.reshape(-1, *[1] * (x.ndim - 1)) * noise
    logp = m.log_prob(step, x_next)
    (slope,) = torch.autograd.grad(step.mean.sum(), v, retain_graph=True)
    (grad,) = torch.autograd.grad(logp.sum(), v)

    position = 3e-5 if sage else 4e-6
    within(f"mean{sage}", step.mean, f32(want["mean"]), position)
    within(f"next_sample{sage}", drawn, f32(want["next_sample"]), position)
    within("std", step.std, f32(want["std"]), 1e-5)
    within("log_prob", logp, f32(want["log_prob"]), 3e-6, relative=True, floor=1.0)
    within("dmean_dv", slope.flatten(1), f32(want["dmean_dv"])[:, None].expand(-1, slope[0].numel()), 2e-7)
    # d log_prob / d v holds (x_next - mean) / S: the tolerances of mean and log_prob combine
    within("grad_norm", grad.flatten(1).norm(dim=1), f32(want["grad_norm_logprob_v"]), 2e-5, relative=True)
    if "deterministic_next" in want:
        within("euler", euler(x, v, sigma, sigma_next), f32(want["deterministic_next"]), 4e-6)


@pytest.mark.parametrize("name", TRANSITIONS)
def test_std_as_returned_differs_by_the_step_length_for_flow_grpo_only(name: str) -> None:
    case = CASES[name]
    length = (f32(case["sigma"]) - f32(case["sigma_next"])).sqrt() if case["method"] == "flow_grpo" else torch.ones(2)
    step = method_of(case).transition(*latents(case, "x", "v"), f32(case["sigma"]), f32(case["sigma_next"]))
    within("std_as_returned", step.std / length, f32(case["expected"]["std_as_returned"]), 1e-5, relative=True)


@pytest.mark.parametrize(("name", "kind"), BALANCING)
def test_equalizer(name: str, kind: str) -> None:
    case = CASES[name]
    sigmas, want = f32(case["schedule"]["sigmas"]), case["expected"]["balancing"][kind]
    weights = METHODS[kind](eta=case["eta"], equalizer="released").step_weights(sigmas)
    within("equalizer", weights, f32(want["factors"]), 3e-5, relative=True)
    norms = f32(want["norms"])
    within("equalizer_norm", norms.median() / weights, norms, 3e-5, relative=True)


def grouped(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, ADVANTAGE["inputs"]["group_size"])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("key", "metric", "rule"),
    [
        ("flow_group_std", None, StandardizedAdvantages()),
        ("flow_global_std", None, StandardizedAdvantages(std="global")),
        ("dance_vq", "VQ", StandardizedAdvantages(ddof=1, eps=1e-8)),
        ("dance_mq", "MQ", StandardizedAdvantages(ddof=1, eps=1e-8)),
        ("sage", None, StandardizedAdvantages(eps=0.0)),  # its floor of the std, 1e-6, does not act on these rewards
    ],
)
def test_advantage(name: str, key: str, metric: str | None, rule: AdvantageRule) -> None:
    inputs = ADVANTAGE["inputs"]
    rewards = {metric: grouped(inputs["rewards"][metric]) for metric in inputs["weights"]}
    weights = inputs["weights"] if metric is None else {metric: 1.0}
    adv = METHODS[name]().advantages(Rewards(rewards, weights, rule))
    assert adv.shape == (1, 3, 4)
    within("advantage", adv, torch.tensor(ADVANTAGE["expected"][key], dtype=torch.float64), 2e-6)


def test_the_suite_weights_give_the_total_of_the_origins() -> None:
    inputs = ADVANTAGE["inputs"]
    total = Rewards({name: grouped(values) for name, values in inputs["rewards"].items()}, inputs["weights"]).total()
    within("total", total, grouped(inputs["total"]), 1e-6)


def losses(m: Method, key: str = "advantage") -> tuple[Tensor, Tensor]:
    """Per-sample surrogate and the log-probabilities that it depends on; advantages clipped as all origins do."""
    inputs = SURROGATE["inputs"]
    new = f32(inputs["new_log_prob"]).requires_grad_(True)
    adv = f32(inputs[key]).clamp(-inputs["adv_clip_max"], inputs["adv_clip_max"])
    return m.surrogate(new, f32(inputs["old_log_prob"]), adv), new


@pytest.mark.parametrize(("name", "key"), [("flow_grpo", "flow"), ("sage_grpo", "sage_no_balancing")])
def test_surrogate(name: str, key: str) -> None:
    want = SURROGATE["expected"][key]
    per_sample, new = losses(METHODS[name](clip_range=SURROGATE["inputs"]["clip_range"]))
    loss = per_sample.mean()
    (grad,) = torch.autograd.grad(loss, new)
    within("loss", loss, f32(want["policy_loss"]), 5e-6)
    within("loss_grad", grad, f32(want["grad_new_log_prob"]), 5e-6)


def test_surrogate_with_equalizer() -> None:
    inputs, want = SURROGATE["inputs"], SURROGATE["expected"]["sage_balanced"]
    schedule = inputs["balancing_schedule"]
    m = SAGEGRPO(eta=schedule["eta"], clip_range=inputs["clip_range"])
    weights = m.step_weights(sigma_schedule(schedule["steps"], float(schedule["shift"])))
    within("equalizer", weights, f32(inputs["balancing_factors"]), 3e-5, relative=True)
    per_sample, new = losses(m)
    per_sample = per_sample * weights[torch.tensor(inputs["diffusion_index"])]
    (grad,) = torch.autograd.grad(per_sample.mean(), new)
    within("loss_rel", per_sample, f32(want["per_sample"]), 5e-6, relative=True)
    within("loss_rel", per_sample.mean(), f32(want["policy_loss"]), 5e-6, relative=True)
    within("loss_grad", grad, f32(want["grad_new_log_prob"]), 5e-6)


def test_surrogate_of_two_rewards() -> None:
    want, m = SURROGATE["expected"]["dance"], DanceGRPO()
    assert m.clip_range == want["clip_range"]
    (vq, new), (mq, mq_new) = losses(m), losses(m, "mq_advantage")
    scale = want["gradient_accumulation_steps"] * want["train_timesteps"]
    total = (want["vq_coef"] * vq.mean() + want["mq_coef"] * mq.mean()) / scale
    grads = torch.autograd.grad(total, [new, mq_new])
    within("loss", vq.mean() / scale, f32(want["vq_loss"]), 5e-6)
    within("loss", mq.mean() / scale, f32(want["mq_loss"]), 5e-6)
    within("loss", total, f32(want["final_loss"]), 5e-6)
    within("loss_grad", grads[0] + grads[1], f32(want["grad_new_log_prob"]), 5e-6)


def kl_case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means of the policy and the reference, sigma and sigma_next of the KL file's step."""
    mean, ref = latents(KL, "mean", "ref_mean")
    sigmas, i = f32(KL["schedule"]["sigmas"]), KL["step_index"]
    return mean, ref, sigmas[i].expand(2), sigmas[i + 1].expand(2)


def real_std(name: str) -> Tensor:
    """Standard deviation of the method's step there, from its own transition."""
    mean, _, sigma, sigma_next = kl_case()
    method: Method = METHODS[name](eta=KL["eta"])
    return method.transition(mean, mean, sigma, sigma_next).std


@pytest.mark.parametrize(("name", "key"), [("flow_grpo", "flow"), ("cps", "cps")])
def test_divergence(name: str, key: str) -> None:
    mean, ref, sigma, sigma_next = kl_case()
    value = METHODS[name]().divergence(
        Gaussian(mean, real_std(name)), Gaussian(ref, real_std(name)), sigma, sigma_next
    )
    within("kl", value.mean(), f32(KL["expected"][key]["kl_loss"]), 1e-5, relative=True)


@pytest.mark.parametrize("name", METHODS)
def test_sage_position_term_for_every_transition(name: str) -> None:
    mean, ref, sigma, sigma_next = kl_case()
    want = KL["expected"]["sage"][name]
    std = real_std(name) / ((sigma - sigma_next).sqrt() if name == "flow_grpo" else 1)
    within("kl_std", std, f32(want["std_as_returned"]).expand(2), 1e-5, relative=True)
    moving = mean.clone().requires_grad_(True)
    value = SAGEGRPO().divergence(Gaussian(moving, std), Gaussian(ref, std), sigma, sigma_next).mean()
    (grad,) = torch.autograd.grad(value, moving)
    within("kl", value, f32(want["kl_moving_or_fixed"]), 1e-5, relative=True)
    within("kl_grad", grad.norm(), f32(want["grad_norm_mean"]), 1e-5, relative=True)


def test_stepwise_term() -> None:
    old, new = (f32(KL["inputs"][name]) for name in ("old_log_prob", "new_log_prob"))
    for want in KL["expected"]["sage"].values():
        within("kl", (old - new).mean(), f32(want["kl_stepwise"]), 1e-5, relative=True)


def test_defaults_are_the_papers() -> None:
    assert {name: cls().eta for name, cls in METHODS.items()} == {
        "flow_grpo": 0.7,
        "dance_grpo": 0.25,
        "cps": 0.7,
        "sage_grpo": 0.5,
    }
    assert {cls().clip_range for cls in METHODS.values()} == {1e-4}
    assert {name: cls().equalizer for name, cls in METHODS.items()} == {
        "flow_grpo": "off",
        "dance_grpo": "off",
        "cps": "off",
        "sage_grpo": "derived",
    }
    assert all(cls.paper.startswith("arXiv:") for cls in METHODS.values())
