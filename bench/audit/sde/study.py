"""How exactly do the methods' noisy steps sample, if velocity and score are exact? A study without a random number.

On Gaussian data the mean and the variance of the latent follow a recursion (`kernel.terminal`), so every
entry is exact up to rounding. Five questions, one frame each:

- `steps`: noise and excess energy of each step (the excess noise energy of CPS, arXiv:2509.05952; the energy beyond
  the exact integral, figure 1 of SAGE-GRPO, arXiv:2603.21872);
- `errors`: variance of the last latent against the data's, as sampled and with the Euler error taken out;
- `matched`: the same with eta solved per method, so that all inject the same root-sum-square noise;
- `convergence`: the same over the number of steps;
- `summary`: one line per method.

A step that a method refuses makes the numbers that need it NaN, with the step and the reason in `status`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from bench import plugins
from bench.api import BenchError, Method
from bench.audit.sde.kernel import QUIET, Kernel, Last, euler_kernel, read, refined_variance, terminal, with_eta
from bench.flow import sigma_schedule

#: Data: one mean (every method keeps it exactly) and standard deviations from point-like to twice the noise's.
DATA_MEAN, DATA_STDS = 1.0, (0.1, 0.25, 0.5, 1.0, 2.0)
#: Root-sum-square noise of the matched comparison; eta 0.5 gives 0.5 (DanceGRPO) to 2.4 (CPS) at 20 steps, shift 5.
RSS_TARGETS = (0.25, 0.5, 1.0)
#: Step counts of the convergence study.
STEP_COUNTS = (5, 10, 20, 40, 80, 160, 320, 640, 1280)
#: Noise levels from here up count as high noise.
HIGH_NOISE = 0.9
#: Largest eta and spacing of the search of `solve_eta`, and its bisections.
ETA_MOST, ETA_GRID, BISECTIONS = 4.0, 0.05, 50
#: Label of the deterministic sampler.
EULER = "ODE Euler"


@dataclass(frozen=True)
class Contender:
    """A method under the name its rows carry."""

    name: str
    method: Method

    @property
    def eta(self) -> float:
        """Noise scale; NaN if the method has no such field."""
        return float(getattr(self.method, "eta", torch.nan))


def contenders(names: Sequence[str], eta: float | None = None) -> list[Contender]:
    """Methods by name or "module:Class" (all known ones if none is named), with their own eta or with this one."""
    chosen = list(names) or list(plugins.available("methods"))
    if twice := {name for name in chosen if chosen.count(name) > 1}:
        raise BenchError(f"method {min(twice)!r} is named twice: name each once.")
    methods = [plugins.method(name) for name in chosen]
    return [
        Contender(name, method if eta is None else with_eta(method, eta))
        for name, method in zip(chosen, methods, strict=True)
    ]


def study(entries: Sequence[Contender], count: int = 20, shift: float = 5.0) -> dict[str, pd.DataFrame]:
    """All frames by name, for these methods on the harness's schedule of `count` steps; takes a few seconds."""
    per_step = steps(entries, count, shift)
    return {
        "summary": summary(per_step),
        "steps": per_step,
        "errors": errors(entries, count, shift),
        "matched": matched(entries, count, shift),
        "convergence": convergence(entries, shift, sorted({*STEP_COUNTS, count})),
    }


# frames -------------------------------------------------------------------------------------------------------
def steps(entries: Sequence[Contender], count: int, shift: float) -> pd.DataFrame:
    """One row per method and step, as the method has it (the last step too).

    variance: injected, S. rate_integral: what the method would inject in ever smaller pieces of the step, NaN if
    that has no limit. extra: S less that integral, the cost of one coarse step (0 for an exact integral). excess:
    energy of noise beyond sigma_next^2, `Kernel.excess`. All in units of the noise's variance, 1.
    """
    sigmas = sigma_schedule(count, shift)
    frames = []
    for entry in entries:
        kernel = read(entry.method, sigmas)
        integral = torch.where(kernel.variance > 0, refined_variance(entry.method, sigmas), torch.nan)
        columns = {
            "sigma": kernel.sigmas[:-1],
            "sigma_next": kernel.sigmas[1:],
            "variance": kernel.variance,
            "std": kernel.variance.sqrt(),
            "rate_integral": integral,
            "extra": kernel.variance - integral,
            "excess": kernel.excess,
        }
        frame = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
        frame.insert(0, "step", range(count))
        frame.insert(0, "eta", entry.eta)
        frame.insert(0, "method", entry.name)
        frames.append(frame.assign(status=kernel.status))
    return pd.concat(frames, ignore_index=True)


def errors(entries: Sequence[Contender], count: int, shift: float) -> pd.DataFrame:
    """Terminal law per method, rule for the last step and data std; ODE Euler first.

    variance: of the last latent. error: that less data_std^2. relative_error: error / data_std^2. isolated_error:
    relative error with the exact flow in place of the Euler step. mean_error: absolute. fresh: share of the
    variance that was injected on the way. last: "noisy", the last step as the method has it, or "clean", the Euler
    step to the predicted x0.
    """
    sigmas = sigma_schedule(count, shift)
    rows = _rows(euler_kernel(sigmas), method=EULER, eta=0.0, steps=count, shift=shift, last="clean")
    for entry in entries:
        for last in ("noisy", "clean"):
            kernel = read(entry.method, sigmas, last)
            rows += _rows(kernel, method=entry.name, eta=entry.eta, steps=count, shift=shift, last=last)
    return pd.DataFrame(rows)


def matched(
    entries: Sequence[Contender], count: int, shift: float, targets: Sequence[float] = RSS_TARGETS
) -> pd.DataFrame:
    """`errors` with eta solved so that each method's injected root-sum-square noise is each of `targets`.

    Steps made deterministic (the clean last one) do not count. Where no eta does it, eta and the numbers are NaN and
    `status` says why.
    """
    sigmas = sigma_schedule(count, shift)
    rows = []
    for target in targets:
        for entry in entries:
            for last in ("noisy", "clean"):
                about = {"rss": target, "method": entry.name, "steps": count, "shift": shift, "last": last}
                try:
                    eta = solve_eta(entry.method, sigmas, target, lambda kernel: kernel.rss, last)
                except BenchError as error:
                    nothing = {"eta": torch.nan, **dict.fromkeys(NUMBERS, torch.nan), "status": str(error)}
                    rows += [{**about, "data_std": std, **nothing} for std in DATA_STDS]
                else:
                    rows += _rows(read(with_eta(entry.method, eta), sigmas, last), **about, eta=eta)
    return pd.DataFrame(rows)


def convergence(entries: Sequence[Contender], shift: float, counts: Sequence[int] = STEP_COUNTS) -> pd.DataFrame:
    """`errors` over the number of steps, with both rules for the last step."""
    return pd.concat([errors(entries, count, shift) for count in counts], ignore_index=True)


def summary(per_step: pd.DataFrame) -> pd.DataFrame:
    """One row per method of a frame of `steps`: sums over the steps, and over those with sigma of at least HIGH_NOISE.

    extra sums over the steps whose integral exists. quiet: steps whose kernel injects nothing. status: the first
    invalid step with its reason, and the sums are NaN then.
    """
    rows = []
    for name, frame in per_step.groupby("method", sort=False):
        high = frame["sigma"] >= HIGH_NOISE
        invalid = frame[frame["variance"].isna()]
        total = frame["variance"].sum(skipna=False)
        rows.append(
            {
                "method": name,
                "eta": frame["eta"].iloc[0],
                "variance": total,
                "rss": total**0.5,
                "excess": frame["excess"].sum(skipna=False),
                "excess_high": frame["excess"][high].sum(skipna=False),
                "extra": frame["extra"].sum(min_count=1) if invalid.empty else torch.nan,
                "extra_high": frame["extra"][high].sum(min_count=1) if invalid.empty else torch.nan,
                "quiet": " ".join(str(step) for step in frame["step"][frame["status"] == QUIET]),
                "status": "" if invalid.empty else f"step {invalid['step'].iloc[0]}: {invalid['status'].iloc[0]}",
            }
        )
    return pd.DataFrame(rows)


# parts --------------------------------------------------------------------------------------------------------
NUMBERS = ("variance", "error", "relative_error", "isolated_error", "mean_error", "fresh")
"""Columns of `errors` that are NaN where a step is invalid."""


def _rows(kernel: Kernel, **about: Any) -> list[dict[str, Any]]:
    """One row per data std."""
    stds = torch.tensor(DATA_STDS, dtype=torch.float64)
    law = terminal(kernel, DATA_MEAN, stds)
    isolated = terminal(kernel, DATA_MEAN, stds, isolated=True)
    error = law.variance - stds**2
    columns = (
        law.variance,
        error,
        error / stds**2,
        isolated.variance / stds**2 - 1,
        (law.mean - DATA_MEAN).abs(),
        law.fresh,
    )
    return [
        {**about, "data_std": std, **dict(zip(NUMBERS, values, strict=True)), "status": kernel.invalid}
        for std, *values in zip(DATA_STDS, *(column.tolist() for column in columns), strict=True)
    ]


def solve_eta(
    method: Method,
    sigmas: torch.Tensor,
    target: float,
    measure: Callable[[Kernel], float],
    last: Last = "clean",
) -> float:
    """The smallest eta at which `measure` of the kernel reaches `target`, by a grid and bisection.

    A measure need not grow over all eta (CPS's noise does not above 1): the first crossing counts. None up to
    ETA_MOST, or an invalid kernel, is a `BenchError`.
    """

    def at(eta: float) -> float:
        kernel = read(with_eta(method, eta), sigmas, last)
        if kernel.invalid:
            raise BenchError(kernel.invalid)
        return measure(kernel)

    low, high, best = 0.0, 0.0, 0.0
    while best < target:
        low, high = high, high + ETA_GRID
        if high > ETA_MOST:
            raise BenchError(f"no eta up to {ETA_MOST:g} reaches {target:g}")
        best = at(high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) < target else (low, middle)
    return high
