"""The SDE study against the tables of the exact study, which another program computed, and against its own limits."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.api import BenchError, Gaussian, Method
from bench.audit.sde import study
from bench.audit.sde.kernel import ODE, QUIET, Kernel, Last, euler_kernel, read, refined_variance, terminal
from bench.audit.sde.study import DATA_STDS, EULER, Contender, contenders, matched, solve_eta, summary
from bench.backbones.gaussian import GaussianData, flow_line, marginal_variance, velocity_line
from bench.cli import main
from bench.flow import euler, predicted_noise, sigma_schedule
from bench.suite.methods import with_eta
from methods.cps import CPS
from methods.dance_grpo import DanceGRPO
from methods.flow_grpo import FlowGRPO
from methods.sage_grpo import SAGEGRPO
from tests.helpers.paths import GOLDEN_DATA, PROJECT

GOLDEN = json.loads((GOLDEN_DATA / "sde_study.json").read_text())
NAMES = ("flow_grpo", "dance_grpo", "cps", "sage_grpo")
CLASSES: dict[str, Any] = dict(zip(NAMES, (FlowGRPO, DanceGRPO, CPS, SAGEGRPO), strict=True))
ETAS = (0.3, 0.5, 0.7, 1.0)
STDS = torch.tensor(DATA_STDS, dtype=torch.float64)
quick = settings(max_examples=40, deadline=None, derandomize=True)


def printed(value: float, digits: int) -> Any:
    """Equal to a number printed with this many decimals."""
    return pytest.approx(value, abs=0.5001 * 10**-digits)


def at(name: str, eta: float, steps: int = 20, shift: float = 5.0, last: Last = "noisy") -> Kernel:
    return read(CLASSES[name](eta=eta), sigma_schedule(steps, shift), last)


# the tables -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("row", GOLDEN["steps"]["rows"], ids=lambda row: f"step {row[0]}")
def test_the_noise_of_each_step_is_the_tables(row: Sequence[float]) -> None:
    step, sigma, sigma_next, *expected = row
    i = int(step)
    sigmas = sigma_schedule(20, 5.0)
    assert sigmas[i].item() == printed(sigma, 4)
    assert sigmas[i + 1].item() == printed(sigma_next, 4)
    found = [at(name, 0.5).variance[i].item() / 0.25 for name in ("flow_grpo", "dance_grpo", "sage_grpo")]
    found += [at("cps", eta).variance[i].item() for eta in ETAS]
    assert found == [printed(value, 4) for value in expected]


@pytest.mark.parametrize("row", GOLDEN["sums"]["rows"], ids=lambda row: f"eta {row[0]}")
def test_sums_and_excess_energy_are_the_tables(row: list[Any]) -> None:
    eta, injected, excess, high = row
    frame = summary(study.steps(contenders(NAMES, eta), 20, 5.0)).set_index("method")
    order = list(NAMES)
    assert frame["variance"][order].tolist() == [printed(value, 3) for value in injected]
    assert frame["excess"][order].tolist() == [printed(value, 4) for value in excess]
    assert frame["excess_high"][order].tolist() == [printed(value, 4) for value in high]


def test_sage_over_flow_per_step_is_the_tables() -> None:
    ratio = at("sage_grpo", 1.0).variance / at("flow_grpo", 1.0).variance
    assert ratio.tolist() == [printed(value, 3) for value in GOLDEN["sage_over_flow"]["values"]]
    for steps, value, digits in GOLDEN["sage_first_step"]["rows"]:
        assert at("sage_grpo", 1.0, int(steps)).variance[0].item() == printed(value, int(digits))


@pytest.mark.parametrize("row", GOLDEN["terminal"]["rows"], ids=lambda row: f"{row[0]} steps, variance {row[1]}")
def test_terminal_variance_errors_are_the_tables(row: Sequence[float]) -> None:
    steps, variance, *expected = row
    frame = study.errors(contenders(NAMES, 0.5), int(steps), 5.0)
    as_coded = frame[(frame["data_std"] == math.sqrt(variance)) & ((frame["last"] == "noisy") | (frame["eta"] == 0))]
    found = as_coded.set_index("method")["error"]
    order = [EULER, *NAMES]
    assert found[order].tolist() == [printed(value, 4) for value in expected]
    assert frame["mean_error"].max() < 1.1e-14


@pytest.mark.parametrize("row", GOLDEN["isolated"]["rows"], ids=lambda row: f"std {row[0]}")
def test_isolated_errors_are_the_tables(row: Sequence[float]) -> None:
    std, *expected = row
    frame = study.errors(contenders(NAMES, 0.5), 20, 5.0)
    for name, (clean, noisy) in zip(NAMES, expected, strict=True):
        own = frame[(frame["method"] == name) & (frame["data_std"] == std)].set_index("last")["isolated_error"]
        assert own["clean"] == printed(clean, 3)
        assert own["noisy"] == printed(noisy, 2 if noisy > 1 else 3)


def settings_of(shifts: Sequence[int], last: Last, isolated: bool) -> Iterator[tuple[float, list[float]]]:
    """Data std and sizes of the four errors (of the std as sampled, of the variance isolated) in every setting."""
    for shift, steps, eta in itertools.product(shifts, (10, 20, 40), ETAS):
        found = []
        for name in NAMES:
            variance = terminal(at(name, eta, steps, float(shift), last), 0.0, STDS, isolated).variance
            found.append((variance - STDS**2 if isolated else variance.sqrt() - STDS).abs())
        yield from zip(DATA_STDS, torch.stack(found, 1).tolist(), strict=True)


def ranks(errors: Sequence[Sequence[float]], method: int) -> list[int]:
    """How often a method is first, second, third and fourth."""
    places = Counter(sum(other < row[method] for other in row) for row in errors)
    return [places[i] for i in range(4)]


@pytest.mark.parametrize(("last", "column"), [("noisy", 1), ("clean", 2)])
@pytest.mark.parametrize("kind", ["terminal", "isolated"])
def test_who_is_best_is_the_tables(kind: str, last: Last, column: int) -> None:
    best, isolated = GOLDEN["best"], kind == "isolated"
    for expected in best[kind]:
        errors = [row for _, row in settings_of(expected[0], last, isolated)]
        assert [ranks(errors, i)[0] for i in range(4)] == expected[column]
    for expected in best["sage_ranks"].get(kind, []):
        assert ranks([row for _, row in settings_of(expected[0], last, isolated)], 3) == expected[column]
    for expected in best["sage_last"].get(kind, []):
        found = ranks([row for _, row in settings_of(expected[0], last, isolated)], 3)
        assert [found[0], found[3]] == expected[column]


def before_flow(shifts: Sequence[int], last: Last, isolated: bool) -> list[int]:
    """In how many settings SAGE-GRPO beats FlowGRPO, with narrow data and with wide data."""
    wins = Counter(std >= 1 for std, row in settings_of(shifts, last, isolated) if row[3] < row[0])
    return [wins[False], wins[True]]


def test_where_sage_beats_flow_is_the_tables() -> None:
    expected = GOLDEN["best"]["sage_before_flow"]
    for shifts, noisy, clean in expected["isolated"]:
        assert before_flow(shifts, "noisy", True) == noisy
        assert before_flow(shifts, "clean", True) == clean
    assert before_flow([1], "noisy", True) == expected["isolated, shift 1, noisy"]
    for shifts, as_coded, noise_free in expected["terminal, all stds"]:
        assert sum(before_flow(shifts, "noisy", False)) == as_coded
        assert sum(before_flow(shifts, "clean", False)) == noise_free


@pytest.mark.parametrize("last", ["noisy", "clean"])
def test_matched_share_of_fresh_noise_is_the_tables(last: Last) -> None:
    wins, ratios = Counter[int](), dict[float, list[float]]()
    for share, steps, std in itertools.product((0.25, 0.5, 0.75), (10, 20, 40), DATA_STDS[:4]):
        sigmas, one, errors = sigma_schedule(steps, 5.0), torch.tensor([std], dtype=torch.float64), []
        for cls in CLASSES.values():
            eta = solve_eta(cls(), sigmas, share, lambda k, one=one: float(terminal(k, 0.0, one).fresh), last)
            law = terminal(read(cls(eta=eta), sigmas, last), 0.0, one, isolated=True)
            errors.append(abs(float(law.variance) - std**2))
        wins[errors.index(min(errors))] += 1
        if share == 0.5:
            ratios.setdefault(std, []).append(errors[3] / errors[0])
    assert [wins[i] for i in range(4)] == GOLDEN["matched_share"][last]
    if last == "noisy":
        for std, least, most in GOLDEN["matched_share"]["sage_over_flow"]["rows"]:
            assert min(ratios[std]) == printed(least, 2)
            assert max(ratios[std]) == printed(most, 2)


# limits ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("row", GOLDEN["cps_limit"]["rows"], ids=lambda row: f"eta {row[0]}")
def test_cps_does_not_converge_to_the_data(row: Sequence[float]) -> None:
    eta, expected = row
    for std in DATA_STDS:
        errors = [
            float(terminal(at("cps", eta, steps, 1.0), 0.0, torch.tensor([std])).variance) / std**2 - 1
            for steps in (640, 10240)
        ]
        limit = (1 + abs(math.cos(eta * math.pi / 2))) / 2 - 1
        assert abs(errors[1] - limit) < abs(errors[0] - limit)
        assert errors[1] == pytest.approx(limit, abs=0.004)
        if std == 1:
            assert errors[1] == printed(expected, 4)


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_euler_and_dance_converge_to_the_data_in_first_order(shift: float) -> None:
    for make in (lambda n: euler_kernel(sigma_schedule(n, shift)), lambda n: at("dance_grpo", 0.5, n, shift)):
        errors = [(terminal(make(n), 0.0, STDS).variance / STDS**2 - 1).abs() for n in (2560, 5120)]
        assert (errors[1] < 0.01).all()
        assert (errors[0] / errors[1]).tolist() == [pytest.approx(2, rel=0.05)] * len(STDS)


# properties -----------------------------------------------------------------------------------------------------
@given(sigma=st.floats(0.1, 0.97), fraction=st.floats(0.0, 0.9), eta=st.floats(0.1, 1.5))
@quick
def test_the_integral_of_flow_grpos_rate_is_sages_variance(sigma: float, fraction: float, eta: float) -> None:
    sigmas = torch.tensor([sigma, sigma * fraction], dtype=torch.float64)
    exact = read(SAGEGRPO(eta=eta), sigmas).variance
    for cls in (FlowGRPO, SAGEGRPO):
        assert torch.allclose(refined_variance(cls(eta=eta), sigmas), exact, rtol=1e-4)
    assert torch.allclose(refined_variance(DanceGRPO(eta=eta), sigmas), read(DanceGRPO(eta=eta), sigmas).variance)
    assert refined_variance(CPS(eta=eta), sigmas).isnan().all() or fraction == 0  # to sigma 0 CPS injects nothing


def test_the_integral_diverges_at_pure_noise() -> None:
    sigmas = sigma_schedule(20, 5.0)
    for cls in (FlowGRPO, SAGEGRPO):
        found = refined_variance(cls(), sigmas)
        assert found.isnan().tolist() == [True] + [False] * 19


@given(eta=st.floats(0, 3), steps=st.integers(2, 60), shift=st.floats(0.5, 9))
@quick
def test_cps_keeps_the_noise_level(eta: float, steps: int, shift: float) -> None:
    kernel = at("cps", eta, steps, shift)
    assert kernel.excess.abs().max() < 1e-14
    assert kernel.status[-1] == QUIET
    law = terminal(kernel, 0.0, torch.tensor([1e-6]))  # point-like data are sampled exactly
    assert float(law.variance) < 1e-11


@given(steps=st.integers(2, 80), shift=st.floats(0.5, 9), std=st.floats(0.05, 3))
@quick
def test_eta_zero_is_euler_for_all(steps: int, shift: float, std: float) -> None:
    plain = euler_kernel(sigma_schedule(steps, shift))
    stds = torch.tensor([std], dtype=torch.float64)
    for name in NAMES:
        kernel = at(name, 0.0, steps, shift)
        assert set(kernel.status) == {QUIET}
        assert kernel.rss == 0
        assert torch.allclose(kernel.excess, torch.zeros(steps, dtype=torch.float64), atol=1e-14)
        for isolated in (False, True):
            found, expected = (terminal(k, 0.3, stds, isolated) for k in (kernel, plain))
            assert torch.allclose(found.variance, expected.variance, rtol=1e-11)
            assert float(found.fresh) == 0
        assert found.variance.item() == pytest.approx(std**2, rel=1e-10)  # nothing but the exact flow is left


@given(eta=st.floats(0.05, 1.5), steps=st.integers(2, 40), mean=st.floats(-2, 2))
@quick
def test_every_method_keeps_the_mean(eta: float, steps: int, mean: float) -> None:
    for name in NAMES:
        for isolated in (False, True):
            law = terminal(at(name, eta, steps, 3.0), mean, STDS, isolated)
            assert law.mean.tolist() == [pytest.approx(mean, abs=1e-11)] * len(STDS)


# the data -------------------------------------------------------------------------------------------------------
@given(sigma=st.floats(0.02, 1), mean=st.floats(-2, 2), std=st.floats(0.05, 3), x=st.floats(-4, 4))
@quick
def test_velocity_and_score_are_those_of_gaussian_data(sigma: float, mean: float, std: float, x: float) -> None:
    data, place = GaussianData(mean, std), torch.full((1, 1), x, dtype=torch.float64)
    level = torch.tensor([sigma], dtype=torch.float64)
    v = data.velocity(place, level)
    centre = (1 - sigma) * mean
    spread = float(marginal_variance(level, torch.tensor(std, dtype=torch.float64)))
    clean = mean + (1 - sigma) * std**2 / spread * (x - centre)  # E[x0 | x], by the normal equations
    assert v.item() == pytest.approx((x - clean) / sigma, rel=1e-9, abs=1e-9)
    assert (data.score(place, level) + predicted_noise(place, v, level) / sigma).abs().item() < 1e-9 / sigma**2
    assert data.score(place, level).item() == pytest.approx(-(x - centre) / spread, rel=1e-12)


@given(sigma=st.floats(0.2, 1), mean=st.floats(-2, 2), std=st.floats(0.3, 2), x=st.floats(-4, 4))
@settings(quick, max_examples=10)
def test_many_euler_steps_follow_the_exact_flow(sigma: float, mean: float, std: float, x: float) -> None:
    data, levels = GaussianData(mean, std), torch.linspace(sigma, 0.1, 1001, dtype=torch.float64)
    place = torch.full((1, 1), x, dtype=torch.float64)
    gain, offset = flow_line(levels[0], levels[-1], mean, torch.tensor(std, dtype=torch.float64))
    expected = float(gain * x + offset)
    for now, after in itertools.pairwise(levels[:, None]):
        place = euler(place, data.velocity(place, now), now, after)
    assert place.item() == pytest.approx(expected, abs=0.03)


def test_gaussian_data_are_a_backbone_without_parameters() -> None:
    data = GaussianData(0.5, 2.0, (2, 1, 3, 3))
    cond = data.encode(["a", "b"])
    x, level = torch.ones(2, *data.latent_shape), torch.tensor([0.5, 1.0])
    v = data.velocity(x, level, cond, 6.0)
    assert v.shape == x.shape
    assert v.dtype == torch.float32
    assert torch.equal(v, data.velocity(x, level, cond.take([0, 0]), 1.0))
    assert v[1].mean().item() == pytest.approx(0.5)  # at pure noise v = x - mean
    assert list(data.parameters()) == []
    assert data.state_dict() == {}
    with data.as_anchor("fixed"):
        data.refresh_anchor("fixed")
    with pytest.raises(BenchError, match="no pixels"):
        data.decode(x)
    with pytest.raises(BenchError, match="no state"):
        data.load_state_dict({"w": x})
    with pytest.raises(BenchError, match="finite std above 0"):
        GaussianData(0.0, 0.0)
    slope, offset = velocity_line(torch.tensor(1.0), 0.5, STDS)
    assert torch.equal(slope, torch.ones(5).double())
    assert torch.equal(offset, torch.full((5,), -0.5).double())


def test_the_recursion_is_what_sampling_does() -> None:
    """A million draws through the method's own steps: the only place where the study meets a random number."""
    data, sigmas = GaussianData(1.0, 0.5), sigma_schedule(6, 5.0)
    rng = torch.Generator().manual_seed(0)
    for name in NAMES:
        x = torch.randn(1, 1_000_000, generator=rng, dtype=torch.float64)
        for now, after in itertools.pairwise(sigmas[:, None]):
            step = CLASSES[name](eta=0.5).transition(x, data.velocity(x, now), now, after)
            x = step.mean + step.std[:, None] * torch.randn(x.shape, generator=rng, dtype=torch.float64)
        law = terminal(at(name, 0.5, 6), 1.0, torch.tensor([0.5]))
        assert x.mean().item() == pytest.approx(float(law.mean), abs=4e-3)  # four standard errors
        assert x.var().item() == pytest.approx(float(law.variance), rel=6e-3)


# what goes wrong ------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Odd(Method):
    """A stranger's method: no eta, and a std below 0 or not finite where `bad` says so."""

    paper: ClassVar[str] = "none: a test"
    bad: float = 0.0
    curved: bool = False

    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        mean = euler(x, v, sigma, sigma_next) + (v**2 if self.curved else 0)
        std = torch.where((sigma < 0.5) & (sigma_next > 0), self.bad, 0.1).to(x)
        return Gaussian(mean, std)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_a_step_with_a_bad_std_is_reported_and_gives_no_number(bad: float) -> None:
    entry = Contender("odd", Odd(bad=bad))
    per_step = study.steps([entry], 10, 1.0)
    broken = per_step[per_step["variance"].isna()]
    assert broken["step"].tolist() == [6, 7, 8]
    assert all("std is" in text for text in broken["status"])
    (row,) = summary(per_step).to_dict("records")
    assert row["status"].startswith("step 6: std is")
    assert math.isnan(row["rss"])
    assert math.isnan(row["excess"])
    frame = study.errors([entry], 10, 1.0)
    own = frame[frame["method"] == "odd"]
    assert own[["variance", "isolated_error"]].isna().all(axis=None)
    assert own["status"].str.startswith("step 6: ").all()


def test_sages_invalid_first_step_is_reported_and_the_last_valid_count_is_67() -> None:
    assert at("sage_grpo", 0.5, 67).invalid == ""
    kernel = at("sage_grpo", 0.5, 68)
    assert kernel.invalid.startswith("step 0: SAGE-GRPO's variance is -")
    assert kernel.variance.isnan().tolist() == [True] + [False] * 67
    frame = matched(contenders(["sage_grpo"]), 68, 5.0, [0.5])
    assert frame["isolated_error"].isna().all()
    assert frame["status"].str.startswith("step 0: ").all()


def test_matched_noise_is_equal_and_says_what_cannot_be_matched() -> None:
    frame = matched([*contenders(NAMES), Contender("odd", Odd(bad=0.1))], 20, 5.0, [0.5, 3.5])
    sigmas = sigma_schedule(20, 5.0)
    for (rss, name, last), own in frame.groupby(["rss", "method", "last"]):
        if own["status"].iloc[0] == "":
            found = read(CLASSES[str(name)](eta=own["eta"].iloc[0]), sigmas, last).rss
            assert found == pytest.approx(rss, rel=1e-9)
    missing = frame[frame["status"] != ""]
    assert set(missing["method"][missing["rss"] == 0.5]) == {"odd"}
    assert missing["variance"].isna().all()
    reasons = dict(zip(missing["method"], missing["status"], strict=True))
    assert "no field 'eta'" in reasons["odd"]
    assert reasons["cps"] == "no eta up to 4 reaches 3.5"


def test_a_transition_that_is_not_affine_is_refused() -> None:
    with pytest.raises(BenchError, match=r"Odd\.transition is not affine in x and v"):
        read(Odd(curved=True, bad=0.1), sigma_schedule(5, 1.0))


def test_steps_outside_a_methods_window_are_the_ode() -> None:
    kernel = read(contenders(["examples.window_grpo:WindowGRPO"])[0].method, sigma_schedule(10, 5.0))
    assert [status == ODE for status in kernel.status] == [False, False, *[True] * 8]
    assert kernel.rss == pytest.approx(at("flow_grpo", 0.7, 10).variance[:2].sum().sqrt().item())


def test_contenders_are_checked() -> None:
    assert [entry.name for entry in contenders([])] == sorted(NAMES)
    assert {entry.eta for entry in contenders(NAMES, 0.4)} == {0.4}
    assert [entry.eta for entry in contenders(NAMES)] == [0.7, 0.25, 0.7, 0.5]
    with pytest.raises(BenchError, match="'cps' is named twice"):
        contenders(["cps", "cps"])
    with pytest.raises(BenchError, match="no field 'eta'"):
        with_eta(Odd(), 0.5)


# the command ----------------------------------------------------------------------------------------------------
FILES = {f"{name}.{kind}" for name in ("energy", "errors", "matched", "convergence") for kind in ("png", "pdf")}
FILES |= {f"{name}.csv" for name in ("summary", "steps", "errors", "matched", "convergence")} | {"sde-study.md"}


def test_the_command_writes_tables_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sde-study", "sage_grpo", "examples.window_grpo:WindowGRPO", "--steps", "70", "--out", str(tmp_path)]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "| sage_grpo " in out
    assert "invalid (step 0)" in out
    assert "at most 67 steps" in out
    assert "nan" not in out
    assert "written: " in err
    assert {path.name for path in tmp_path.iterdir()} == FILES
    page = (tmp_path / "sde-study.md").read_text()
    assert "`bench sde-study sage_grpo examples.window_grpo:WindowGRPO --steps 70 --shift 5`" in page
    assert out.strip() in page
    steps = pd.read_csv(tmp_path / "steps.csv")
    assert len(steps) == 140
    assert steps["variance"].isna().sum() == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sage_grop"], "did you mean 'sage_grpo'"),
        (["--steps", "0"], "steps >= 1"),
        (["--eta", "-1"], "eta is -1"),
        (["cps", "cps"], "named twice"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sde-study", *words, "--out", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_figures_import_no_torch() -> None:
    code = "import sys, bench.audit.sde.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0
