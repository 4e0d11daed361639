"""How exactly do the noisy steps of the methods sample, if velocity and score are exact? Nothing here is random.

On Gaussian data the mean and the variance of the latent follow a recursion (`kernel.terminal`), so every number is
exact up to rounding. Five frames:

- `steps`: noise and excess energy of each step (the excess noise energy of CPS, arXiv:2509.05952; the energy beyond
  the exact integral, figure 1 of SAGE-GRPO, arXiv:2603.21872);
- `errors`: variance of the last latent compared with that of the data, with and without the Euler error;
- `matched`: the same with eta solved per method, so that all inject the same root-sum-square noise;
- `convergence`: the same for several numbers of steps;
- `summary`: one line per method.

Numbers that depend on a step that a method rejects are NaN, with the step and the reason in `status`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from bench import plugins
from bench.api import Method
from bench.audit.sde.kernel import QUIET, Kernel, Last, euler_kernel, read, refined_variance, terminal
from bench.core.errors import BenchError
from bench.flow import sigma_schedule
from bench.suite.methods import with_eta

#: Data: one mean, which every method preserves exactly, and standard deviations; that of the noise is 1.
DATA_MEAN, DATA_STDS = 1.0, (0.1, 0.25, 0.5, 1.0, 2.0)
#: Root-sum-square noise of the matched comparison; eta 0.5 gives 0.5 (DanceGRPO) to 2.4 (CPS) at 20 steps, shift 5.
RSS_TARGETS = (0.25, 0.5, 1.0)
#: Step counts of the convergence study.
STEP_COUNTS = (5, 10, 20, 40, 80, 160, 320, 640, 1280)
#: Noise levels of at least this value count as high noise.
HIGH_NOISE = 0.9
#: Largest eta, grid spacing and number of bisections of the search in `solve_eta`.
ETA_MOST, ETA_GRID, BISECTIONS = 4.0, 0.05, 50
#: Label of the deterministic sampler.
EULER = "ODE Euler"

STUDIED = ("cps", "dance_grpo", "flow_grpo", "sage_grpo")
"""The methods of the study unless others are named: those that SAGE-GRPO's paper compares."""


@dataclass(frozen=True)
class Contender:
    """A method and its name in the frames."""

    name: str
    method: Method

    @property
    def eta(self) -> float:
        """Noise scale; NaN if the method has no such field."""
        return float(getattr(self.method, "eta", torch.nan))


def contenders(names: Sequence[str], eta: float | None = None) -> list[Contender]:
    """Methods by name or "module:Class" (`STUDIED` if `names` is empty), with their own eta or with `eta`."""
    chosen = list(names) or list(STUDIED)
    if duplicates := {name for name in chosen if chosen.count(name) > 1}:
        raise BenchError(f"method {min(duplicates)!r} is named twice: name each once.")
    methods = [plugins.method(name) for name in chosen]
    return [
        Contender(name, method if eta is None else with_eta(method, eta))
        for name, method in zip(chosen, methods, strict=True)
    ]


def study(entries: Sequence[Contender], count: int = 20, shift: float = 5.0) -> dict[str, pd.DataFrame]:
    """All frames by name, for these methods on the harness's schedule of `count` steps, in a few seconds."""
    per_step = steps(entries, count, shift)
    return {
        "summary": summary(per_step),
        "steps": per_step,
        "errors": errors(entries, count, shift),
        "matched": matched(entries, count, shift),
        "convergence": convergence(entries, shift, sorted({*STEP_COUNTS, count})),
    }


def steps(entries: Sequence[Contender], count: int, shift: float) -> pd.DataFrame:
    """One row per method and step, with the method's own last step.

    variance: injected, S. rate_integral: `refined_variance`, the limit for ever smaller pieces of the step, NaN if
    there is none. extra: S minus that integral, 0 for an exact integral. excess: energy of noise beyond sigma_next^2,
    `Kernel.excess`. All in units of the noise's variance, 1.
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
    """Distribution of the last latent per method, rule for the last step and data std; ODE Euler first.

    variance: of the last latent. error: variance - data_std^2. relative_error: error / data_std^2. isolated_error:
    relative error with the exact flow in place of the Euler step. mean_error: absolute. fresh: share of the
    variance that the steps injected. last: "noisy", the method's own last step, or "clean", the Euler step to the
    predicted x0.
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

    Deterministic steps (the clean last step) do not count. If no eta reaches the target, eta and the numbers are NaN,
    and `status` has the reason.
    """
    sigmas = sigma_schedule(count, shift)
    rows = []
    for target in targets:
        for entry in entries:
            for last in ("noisy", "clean"):
                labels = {"rss": target, "method": entry.name, "steps": count, "shift": shift, "last": last}
                try:
                    eta = solve_eta(entry.method, sigmas, target, lambda kernel: kernel.rss, last)
                except BenchError as error:
                    unknown = {"eta": torch.nan, **dict.fromkeys(NUMBERS, torch.nan), "status": str(error)}
                    rows += [{**labels, "data_std": std, **unknown} for std in DATA_STDS]
                else:
                    rows += _rows(read(with_eta(entry.method, eta), sigmas, last), **labels, eta=eta)
    return pd.DataFrame(rows)


def convergence(entries: Sequence[Contender], shift: float, counts: Sequence[int] = STEP_COUNTS) -> pd.DataFrame:
    """`errors` for several numbers of steps, with both rules for the last step."""
    return pd.concat([errors(entries, count, shift) for count in counts], ignore_index=True)


def summary(per_step: pd.DataFrame) -> pd.DataFrame:
    """One row per method of a frame of `steps`: sums over the steps, and over those with sigma of at least HIGH_NOISE.

    extra: sum over the steps whose integral exists. quiet: noisy steps that inject nothing. status: the first invalid
    step with its reason; the sums are then NaN.
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


NUMBERS = ("variance", "error", "relative_error", "isolated_error", "mean_error", "fresh")
"""Columns of `errors` that are NaN where a step is invalid."""


def _rows(kernel: Kernel, **labels: Any) -> list[dict[str, Any]]:
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
        {**labels, "data_std": std, **dict(zip(NUMBERS, values, strict=True)), "status": kernel.invalid}
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

    A measure may decrease for large eta (as the noise of CPS does above 1): the first crossing counts. If no eta up to
    ETA_MOST reaches the target, or the kernel is invalid, it is a `BenchError`.
    """

    def measured(eta: float) -> float:
        kernel = read(with_eta(method, eta), sigmas, last)
        if kernel.invalid:
            raise BenchError(kernel.invalid)
        return measure(kernel)

    low, high, best = 0.0, 0.0, 0.0
    while best < target:
        low, high = high, high + ETA_GRID
        if high > ETA_MOST:
            raise BenchError(f"no eta up to {ETA_MOST:g} reaches {target:g}")
        best = measured(high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if measured(middle) < target else (low, middle)
    return high
