"""Schedule, x0 and noise from the velocity, reverse steps and the Gaussian KL."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.api import BenchError, Gaussian
from bench.flow import euler, gaussian_kl, predicted_noise, predicted_x0, reverse_step, sde_step, sigma_schedule

SHAPES = [(3,), (3, 5), (3, 4, 2, 2), (3, 4, 2, 3, 3)]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@given(steps=st.integers(1, 60), shift=st.floats(0.2, 12))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_schedule_falls_from_one_to_zero(steps: int, shift: float) -> None:
    sigmas = sigma_schedule(steps, shift)
    assert sigmas.dtype == torch.float32
    assert sigmas.shape == (steps + 1,)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_shift_one_is_uniform_and_a_shift_raises_the_middle() -> None:
    assert torch.allclose(sigma_schedule(4, 1.0), torch.tensor([1, 0.75, 0.5, 0.25, 0]), rtol=0, atol=0)
    assert sigma_schedule(2, 5.0)[1].item() == pytest.approx(5 / 6, abs=1e-7)


@pytest.mark.parametrize(("steps", "shift"), [(0, 5.0), (10, 0.0), (10, -1.0), (10, float("nan"))])
def test_impossible_schedules_are_refused(steps: int, shift: float) -> None:
    with pytest.raises(BenchError, match="sigma_schedule"):
        sigma_schedule(steps, shift)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_velocity_gives_back_x0_and_noise(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x0, noise = draw(*shape, dtype=dtype), draw(*shape, seed=1, dtype=dtype)
    sigma = torch.tensor([1.0, 0.625, 0.25])
    level = sigma.to(dtype).reshape(-1, *[1] * (len(shape) - 1))
    x, v = (1 - level) * x0 + level * noise, noise - x0
    atol = 1e-6 if dtype == torch.float32 else 1e-14  # a few roundings of numbers of size 1
    assert torch.allclose(predicted_x0(x, v, sigma), x0, rtol=0, atol=atol)
    assert torch.allclose(predicted_noise(x, v, sigma), noise, rtol=0, atol=atol)
    moved = euler(x, v, sigma, torch.zeros(3))
    assert moved.dtype == dtype
    assert torch.allclose(moved, x0, rtol=0, atol=atol)  # a straight path has no Euler error


@pytest.mark.parametrize("shape", SHAPES)
def test_sde_step_is_euler_plus_half_the_variance_along_the_score(shape: tuple[int, ...]) -> None:
    x, v = draw(*shape), draw(*shape, seed=1)
    sigma, sigma_next = torch.tensor([1.0, 0.7, 0.2]), torch.tensor([0.9, 0.5, 0.0])
    variance = torch.tensor([0.3, 0.1, 0.0])
    step = sde_step(x, v, sigma, sigma_next, variance)
    score = -predicted_noise(x, v, sigma) / sigma.double().reshape(-1, *[1] * (len(shape) - 1))
    expected = euler(x, v, sigma, sigma_next) + variance.double().reshape(-1, *[1] * (len(shape) - 1)) / 2 * score
    assert torch.allclose(step.mean, expected, rtol=0, atol=1e-14)
    assert torch.allclose(step.std**2, variance.double(), rtol=1e-15)
    assert step.std.shape == (3,)
    assert step.mean.dtype == step.std.dtype == x.dtype


@pytest.mark.parametrize("variance", [-1e-3, float("nan"), float("inf")])
def test_a_step_with_an_impossible_variance_is_refused(variance: float) -> None:
    x = draw(2, 3)
    with pytest.raises(BenchError, match="variance"):
        reverse_step(x, x, torch.ones(2), torch.zeros(2), torch.zeros(2), torch.tensor([0.1, variance]))


def test_a_noise_level_without_its_sample_is_refused() -> None:
    x = draw(4, 4, 3)  # with [4] taken along the wrong axis nothing would fail
    with pytest.raises(
        (BenchError, TypeError), match=r"one value per sample|Type-check"
    ):  # jaxtyping, if on, is first
        predicted_x0(x, x, torch.full((1,), 0.5))


def test_gaussian_kl_agrees_with_torch() -> None:
    step = Gaussian(draw(3, 4, 2), torch.tensor([0.3, 1.0, 2.0]).double())
    ref = Gaussian(draw(3, 4, 2, seed=1), torch.tensor([0.5, 1.0, 0.7]).double())
    normal = [torch.distributions.Normal(g.mean, g.std.reshape(-1, 1, 1)) for g in (step, ref)]
    expected = torch.distributions.kl_divergence(*normal).flatten(1).mean(1)
    assert torch.allclose(gaussian_kl(step, ref), expected, rtol=1e-13)
    assert torch.equal(gaussian_kl(step, step), torch.zeros(3).double())
