"""What the four methods must satisfy without any stored number: identities between methods, limits and derivations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.api import BenchError, Gaussian, Method
from bench.flow import euler, gaussian_kl, predicted_noise, sigma_schedule
from methods.cps import CPS
from methods.dance_grpo import DanceGRPO
from methods.flow_grpo import FlowGRPO
from methods.sage_grpo import SAGEGRPO

OURS: list[Any] = [FlowGRPO, DanceGRPO, CPS, SAGEGRPO]
SDES: list[Any] = [FlowGRPO, DanceGRPO, SAGEGRPO]

ETA = st.floats(0.05, 1.5)
STEPS = st.integers(2, 30)
SHIFT = st.sampled_from([1.0, 3.0, 5.0])
quick = settings(max_examples=40, deadline=None, derandomize=True)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def steps_of(sigmas: Tensor) -> tuple[Tensor, Tensor]:
    return sigmas[:-1], sigmas[1:]


def pull_and_variance(m: Method, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
    """k and S of mean = x - d v - k (x + (1 - sigma) v), read off the transition at x = 1, v = 0."""
    one = torch.ones(len(sigma), 1, dtype=torch.float64)
    step = m.transition(one, torch.zeros_like(one), sigma, sigma_next)
    return 1 - step.mean[:, 0], step.std**2


def log_prob_slope(m: Method, std: Tensor) -> Tensor:
    """|d log_prob / d mean| one std away from the mean."""
    mean = torch.zeros(len(std), 1, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(m.log_prob(Gaussian(mean, std), std[:, None]).sum(), mean)
    return grad[:, 0].abs()


def jacobian(m: Method, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """|d mean / d v| by autograd and std, per step."""
    v = torch.zeros(len(sigmas) - 1, 1, dtype=torch.float64, requires_grad=True)
    step = m.transition(torch.zeros_like(v), v, *steps_of(sigmas))
    (grad,) = torch.autograd.grad(step.mean.sum(), v)
    return grad[:, 0].abs(), step.std.detach()


@pytest.mark.parametrize("cls", OURS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(steps=st.integers(1, 80), shift=st.floats(0.5, 12), seed=st.integers(0, 99))
@quick
def test_eta_zero_is_the_euler_step(cls: Any, dtype: torch.dtype, steps: int, shift: float, seed: int) -> None:
    sigma, sigma_next = steps_of(sigma_schedule(steps, shift))
    x, v = draw(steps, 3, 2, seed=seed, dtype=dtype), draw(steps, 3, 2, seed=seed + 100, dtype=dtype)
    step = cls(eta=0.0).transition(x, v, sigma, sigma_next)
    assert torch.equal(step.mean, euler(x, v, sigma, sigma_next))
    assert torch.equal(step.std, torch.zeros(steps, dtype=dtype))


@pytest.mark.parametrize("cls", OURS)
@given(eta=ETA, steps=STEPS, shift=SHIFT, weight=st.floats(-2, 2))
@quick
def test_transition_is_affine_in_v(cls: Any, eta: float, steps: int, shift: float, weight: float) -> None:
    m, (sigma, sigma_next) = cls(eta=eta), steps_of(sigma_schedule(steps, shift))
    x, v, w = (draw(steps, 5, seed=seed) for seed in range(3))
    one, other = m.transition(x, v, sigma, sigma_next), m.transition(x, w, sigma, sigma_next)
    mixed = m.transition(x, weight * v + (1 - weight) * w, sigma, sigma_next)
    # float64 rounding, times the size of the terms: k reaches eta^2 / 2 times the amplitude of x
    assert torch.allclose(mixed.mean, weight * one.mean + (1 - weight) * other.mean, rtol=0, atol=1e-12)
    assert torch.equal(mixed.std, one.std)


@pytest.mark.parametrize("cls", OURS)
@given(eta=ETA, steps=STEPS, shift=SHIFT)
@quick
def test_all_kernels_have_one_form(cls: Any, eta: float, steps: int, shift: float) -> None:
    m, (sigma, sigma_next) = cls(eta=eta), steps_of(sigma_schedule(steps, shift))
    x, v = draw(steps, 4), draw(steps, 4, seed=1)
    pull, variance = pull_and_variance(m, sigma, sigma_next)
    expected = euler(x, v, sigma, sigma_next) - pull[:, None] * predicted_noise(x, v, sigma)
    assert torch.allclose(m.transition(x, v, sigma, sigma_next).mean, expected, rtol=0, atol=1e-12)
    if cls in SDES:  # the drift that keeps the marginals
        assert torch.allclose(pull, variance / (2 * sigma.double()), rtol=1e-12)


@pytest.mark.parametrize("cls", OURS)
@given(eta=ETA, shift=SHIFT)
@quick
def test_jacobian_is_the_closed_form(cls: Any, eta: float, shift: float) -> None:
    sigma, sigma_next = (s.double() for s in steps_of(sigma_schedule(20, shift)))
    d, (_, variance) = sigma - sigma_next, pull_and_variance(cls(eta=eta), sigma, sigma_next)
    if cls is CPS:
        expected = -sigma * (1 - sigma_next) + (1 - sigma) * sigma_next * abs(math.cos(eta * math.pi / 2))
    else:
        expected = -d - variance * (1 - sigma) / (2 * sigma)
    got, _ = jacobian(cls(eta=eta), sigma_schedule(20, shift))
    assert torch.allclose(got, expected.abs(), rtol=1e-12, atol=1e-15)


@given(eta=st.floats(0, 3), steps=STEPS, shift=SHIFT)
@quick
def test_cps_keeps_the_noise_level(eta: float, steps: int, shift: float) -> None:
    sigma, sigma_next = steps_of(sigma_schedule(steps, shift))
    pull, variance = pull_and_variance(CPS(eta=eta), sigma, sigma_next)
    after = sigma_next.double()
    assert torch.allclose((after - pull) ** 2 + variance, after**2, rtol=1e-12, atol=1e-15)
    assert variance[-1] == 0


@given(eta=ETA, steps=STEPS, shift=SHIFT)
@quick
def test_the_sdes_add_energy_beyond_the_noise_level(eta: float, steps: int, shift: float) -> None:
    sigma, sigma_next = steps_of(sigma_schedule(steps, shift))
    now, after = sigma.double(), sigma_next.double()
    for cls in SDES:
        pull, variance = pull_and_variance(cls(eta=eta), sigma, sigma_next)
        excess = (after - pull) ** 2 + variance - after**2
        assert torch.allclose(
            excess, variance * (now - after) / now + variance**2 / (4 * now**2), rtol=1e-9, atol=1e-14
        )
        assert (excess > 0).all()


@given(eta=ETA, sigma=st.floats(0.1, 0.98), fraction=st.floats(0.0, 0.9))
@quick
def test_sage_variance_is_the_refinement_limit_of_flow_grpo(eta: float, sigma: float, fraction: float) -> None:
    coarse = torch.tensor([sigma, sigma * fraction], dtype=torch.float64)
    limit = pull_and_variance(SAGEGRPO(eta=eta), *steps_of(coarse))[1].sum()
    gaps = []
    for pieces in (2000, 4000):
        fine = torch.linspace(sigma, sigma * fraction, pieces + 1, dtype=torch.float64)
        gaps.append((pull_and_variance(FlowGRPO(eta=eta), *steps_of(fine))[1].sum() / limit - 1).item())
    assert 0 < gaps[1] < gaps[0] < 0.05
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.01)  # a left Riemann sum: first order


def test_one_coarse_flow_grpo_step_overstates_the_variance() -> None:
    step = torch.tensor([0.8, 0.6], dtype=torch.float64)
    coarse, exact = (pull_and_variance(cls(eta=1.0), *steps_of(step))[1] for cls in (FlowGRPO, SAGEGRPO))
    assert (coarse / exact).item() == pytest.approx(0.8 / (math.log(2) - 0.2), rel=1e-12)  # 1.62


@given(eta=ETA, steps=STEPS, shift=SHIFT)
@quick
def test_flow_grpo_injects_eta_squared_in_its_first_step(eta: float, steps: int, shift: float) -> None:
    sigma, sigma_next = steps_of(sigma_schedule(steps, shift))
    assert pull_and_variance(FlowGRPO(eta=eta), sigma, sigma_next)[1][0].item() == pytest.approx(eta**2, rel=1e-12)


@pytest.mark.parametrize("cls", OURS)
@pytest.mark.parametrize("shape", [(), (7,), (4, 2, 2), (4, 3, 2, 2)])
def test_a_batch_is_its_samples_and_any_rank_works(cls: Any, shape: tuple[int, ...]) -> None:
    sigmas = sigma_schedule(12, 5.0)
    order = torch.tensor([5, 0, 10, 0])  # the first step, with its special case, between others
    sigma, sigma_next = sigmas[:-1][order], sigmas[1:][order]
    x, v, noise = (draw(4, *shape, seed=seed) for seed in range(3))
    m = cls(eta=0.5)
    step = m.transition(x, v, sigma, sigma_next)
    x_next = step.mean + step.std.reshape(-1, *[1] * len(shape)) * noise
    logp = m.log_prob(step, x_next)
    assert step.mean.shape == x.shape
    assert step.std.shape == logp.shape == (4,)
    for i in range(4):
        part = slice(i, i + 1)
        alone = m.transition(x[part], v[part], sigma[part], sigma_next[part])
        assert torch.equal(alone.mean, step.mean[part])
        assert torch.equal(alone.std, step.std[part])
        assert torch.allclose(m.log_prob(alone, x_next[part]), logp[part], rtol=1e-12)


@pytest.mark.parametrize("cls", OURS)
def test_float32_agrees_with_float64(cls: Any) -> None:
    sigma, sigma_next = steps_of(sigma_schedule(20, 5.0))
    x, v = draw(20, 64, dtype=torch.float32), draw(20, 64, seed=1, dtype=torch.float32)
    single = cls().transition(x, v, sigma, sigma_next)
    double = cls().transition(x.double(), v.double(), sigma, sigma_next)
    assert single.mean.dtype == single.std.dtype == torch.float32
    assert torch.allclose(single.mean.double(), double.mean, rtol=0, atol=2e-6)  # a few roundings of numbers of size 4
    assert torch.allclose(single.std.double(), double.std, rtol=1.2e-7, atol=0)  # one rounding


@pytest.mark.parametrize("cls", SDES)
def test_log_prob_is_the_mean_gaussian_log_density(cls: Any) -> None:
    x, v = draw(3, 4, 2), draw(3, 4, 2, seed=1)
    m, step = cls(), cls().transition(x, v, torch.tensor([1.0, 0.6, 0.3]), torch.tensor([0.9, 0.5, 0.0]))
    x_next = draw(3, 4, 2, seed=2)
    density = torch.distributions.Normal(step.mean, step.std.reshape(-1, 1, 1)).log_prob(x_next)
    assert torch.allclose(m.log_prob(step, x_next), density.flatten(1).mean(1), rtol=1e-12)


@pytest.mark.parametrize("cls", OURS)
def test_no_gradient_flows_into_the_sample(cls: Any) -> None:
    v, x_next = draw(1, 5, seed=1).requires_grad_(True), draw(1, 5, seed=2).requires_grad_(True)
    step = cls().transition(draw(1, 5), v, torch.tensor([0.6]), torch.tensor([0.4]))
    cls().log_prob(step, x_next).sum().backward()
    assert v.grad is not None
    assert v.grad.abs().min() > 0
    assert x_next.grad is None


@pytest.mark.parametrize("cls", SDES)
def test_a_gaussian_density_of_a_deterministic_step_is_refused(cls: Any) -> None:
    m, x = cls(eta=0.0), draw(1, 5)
    step = m.transition(x, x, torch.tensor([0.6]), torch.tensor([0.4]))
    with pytest.raises(BenchError, match="standard deviation 0"):
        m.log_prob(step, step.mean)
    if cls is not SAGEGRPO:  # the released code adds 1e-6 to the variance there
        with pytest.raises(BenchError, match="standard deviation 0"):
            m.divergence(step, step, torch.tensor([0.6]), torch.tensor([0.4]))


def test_cps_log_prob_is_finite_without_noise() -> None:
    m, x = CPS(), draw(2, 5)
    step = m.transition(x, x, torch.tensor([0.2, 0.3]), torch.zeros(2))
    assert torch.equal(step.std, torch.zeros(2).double())
    assert torch.equal(m.log_prob(step, step.mean), torch.zeros(2).double())


@given(eta=ETA, shift=SHIFT)
@quick
def test_divergences_are_multiples_of_the_gaussian_kl(eta: float, shift: float) -> None:
    sigma, sigma_next = steps_of(sigma_schedule(10, shift))
    x, v, w = (draw(10, 6, seed=seed) for seed in range(3))
    for cls in OURS:
        m = cls(eta=eta)
        step, ref = (m.transition(x, vel, sigma, sigma_next) for vel in (v, w))
        value, exact = m.divergence(step, ref, sigma, sigma_next), gaussian_kl(step, ref)
        factor = {
            FlowGRPO: sigma.double() - sigma_next.double(),
            DanceGRPO: torch.ones(10),
            CPS: 2 * step.std**2,
            SAGEGRPO: step.std**2 / (step.std**2 + 1e-6),
        }[cls]
        rows = step.std > 0
        assert torch.allclose(value[rows], (factor * exact)[rows], rtol=1e-9)


@pytest.mark.parametrize(("shift", "most"), [(3.0, 111), (5.0, 67), (7.0, 48), (9.0, 37), (12.0, 28)])
def test_sage_refuses_schedules_beyond_its_clamp(shift: float, most: int) -> None:
    assert SAGEGRPO().step_weights(sigma_schedule(most, shift)).isfinite().all()
    with pytest.raises(BenchError, match="fewer steps or a smaller shift"):
        SAGEGRPO().step_weights(sigma_schedule(most + 1, shift))
    assert torch.equal(SAGEGRPO(eta=0.0).step_weights(sigma_schedule(most + 1, shift)), torch.ones(most + 1))


@pytest.mark.parametrize("cls", [FlowGRPO, DanceGRPO, CPS])
def test_rounded_sigmas_are_refused_or_harmless(cls: Any) -> None:
    sigma, sigma_next = torch.ones(1), torch.ones(1)  # what bfloat16 makes of 0.999
    x = draw(1, 5)
    if cls is FlowGRPO:
        with pytest.raises(BenchError, match="float32"):
            cls().transition(x, x, sigma, sigma_next)
    else:
        assert cls().transition(x, x, sigma, sigma_next).mean.isfinite().all()


@pytest.mark.parametrize("cls", SDES)
@given(eta=ETA, steps=STEPS, shift=SHIFT)
@quick
def test_derived_equalizer_is_the_released_one_for_gaussian_log_probs(
    cls: Any, eta: float, steps: int, shift: float
) -> None:
    sigmas = sigma_schedule(steps, shift)
    derived, released = (cls(eta=eta, equalizer=kind).step_weights(sigmas) for kind in ("derived", "released"))
    assert torch.allclose(derived, released, rtol=2.4e-7, atol=0)  # two roundings to float32


@pytest.mark.parametrize("cls", OURS)
@given(eta=st.floats(0.05, 0.95), steps=STEPS, shift=SHIFT)
@quick
def test_derived_equalizer_balances_every_step(cls: Any, eta: float, steps: int, shift: float) -> None:
    m, sigmas = cls(eta=eta, equalizer="derived"), sigma_schedule(steps, shift)
    slope, std = jacobian(m, sigmas)
    noisy = std > 0
    scale = (slope * log_prob_slope(m, torch.where(noisy, std, 1.0)) * m.step_weights(sigmas))[noisy]
    assert noisy.sum() >= steps - 1
    assert torch.allclose(scale, scale[:1].expand_as(scale), rtol=1e-6)


def test_released_equalizer_unbalances_cps() -> None:
    sigmas = sigma_schedule(20, 5.0)
    slope, std = jacobian(CPS(eta=0.5), sigmas)
    scale = slope * log_prob_slope(CPS(eta=0.5), std)
    after = scale * CPS(eta=0.5, equalizer="released").step_weights(sigmas)
    spread = [(s[:-1].max() / s[:-1].min()).item() for s in (scale, after)]
    assert spread == [pytest.approx(7.0, abs=0.05), pytest.approx(22.6, abs=0.05)]


@pytest.mark.parametrize("cls", OURS)
def test_equalizer_keeps_the_median_step_and_off_is_one(cls: Any) -> None:
    sigmas = sigma_schedule(20, 5.0)
    weights = cls(equalizer="derived").step_weights(sigmas)
    assert weights.dtype == torch.float32
    assert weights.sort().values[10] == 1  # the lower of the two middle norms is the upper of the two middle weights
    assert torch.equal(cls(equalizer="off").step_weights(sigmas), torch.ones(20))
    with torch.no_grad():
        assert torch.equal(cls(equalizer="derived").step_weights(sigmas), weights)


@given(eta=st.floats(0.1, 1.2), steps=st.integers(2, 20), mean=st.floats(-1, 1), spread=st.floats(0.3, 2))
@quick
def test_every_method_keeps_the_mean_of_gaussian_data(eta: float, steps: int, mean: float, spread: float) -> None:
    """With the exact velocity on N(mean, spread^2) data, the marginal mean (1 - sigma) mean is kept exactly."""
    sigmas = sigma_schedule(steps, 3.0).double()
    for cls in OURS:
        for sigma, sigma_next in zip(sigmas[:-1, None], sigmas[1:, None], strict=True):
            x = ((1 - sigma) * mean)[:, None]  # transition is affine in x as well: the mean of the marginal is enough
            v = -mean + (sigma - (1 - sigma) * spread**2) / ((1 - sigma) ** 2 * spread**2 + sigma**2) * (
                x - (1 - sigma) * mean
            )
            got = cls(eta=eta).transition(x, v, sigma, sigma_next).mean
            assert got.item() == pytest.approx((1 - sigma_next.item()) * mean, abs=1e-13)


# SAGE-GRPO, paper against released code --------------------------------------------------------------------------
def test_plain_objective_has_the_clipped_gradient_on_policy() -> None:
    logp = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64)
    adv = torch.tensor([1.5, -0.5, 0.0], dtype=torch.float64)
    grads = []
    for objective in ("clipped", "plain"):
        new = logp.clone().requires_grad_(True)
        grads += torch.autograd.grad(SAGEGRPO(objective=objective).surrogate(new, logp, adv).sum(), new)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(grads[1], -adv)


def test_the_papers_equalizer_is_the_std_and_spans_seven() -> None:
    sigmas = sigma_schedule(20, 5.0)
    method = SAGEGRPO(equalizer_norm="variance")
    zero = torch.zeros(20, 1, dtype=torch.float64)
    std = method.transition(zero, zero, sigmas[:-1].double(), sigmas[1:].double()).std
    weights = method.step_weights(sigmas).double()
    torch.testing.assert_close(weights / std, (weights / std)[:1].expand(20), rtol=1e-6, atol=0)
    assert float(weights.max() / weights.min()) == pytest.approx(7.0, abs=0.05)
    released = SAGEGRPO(equalizer="released").step_weights(sigmas)
    assert float(released.max() / released.min()) == pytest.approx(148, abs=1)
    assert torch.equal(SAGEGRPO(equalizer="off", equalizer_norm="variance").step_weights(sigmas), torch.ones(20))


def test_the_papers_kl_divides_by_the_variance_squared() -> None:
    std = torch.tensor([0.5, 0.1])
    step, ref = (Gaussian(torch.full((2, 3), mean), std) for mean in (0.0, 0.2))
    sigma = torch.ones(2)
    released, paper = (SAGEGRPO(kl_scale=scale).divergence(step, ref, sigma, sigma) for scale in ("released", "paper"))
    torch.testing.assert_close(released, 0.04 / (2 * (std**2 + 1e-6)))
    torch.testing.assert_close(paper, 0.04 / (2 * std**4))


@pytest.mark.parametrize("name", ["objective", "equalizer_norm", "kl_scale", "variance"])
def test_an_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(BenchError, match=f"SAGEGRPO: {name} is 'other'; choose one of"):
        SAGEGRPO(**{name: "other"})
