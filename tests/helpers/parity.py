"""Comparison with stored numbers of the original programs; the test run ends with the largest error of each kind.

Errors travel in pytest's `user_properties`, so that the workers of pytest-xdist hand them to the process that prints.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

KEY = "parity"

#: The properties of the test that runs; the fixture `parity_errors` of conftest sets it.
_running: list[tuple[str, object]] = []


def start(properties: list[tuple[str, object]]) -> None:
    """From now on errors belong to the test with these properties."""
    global _running
    _running = properties


def within(name: str, got: Any, want: Any, tolerance: float, relative: bool = False, floor: float = 1e-300) -> None:
    """Compare values of one shape, flattened to float64, and note the largest error under `name`.

    With `relative` the error is over max(|want|, `floor`). A tolerance of 0 asks for equality.
    """
    a, b = (np.asarray(_plain(value), dtype=np.float64).ravel() for value in (got, want))
    assert a.shape == b.shape, f"{name}: {a.size} values, {b.size} expected"
    assert a.size, f"{name}: nothing to compare"
    scale = np.maximum(np.abs(b), floor) if relative else 1.0
    error = float((np.abs(a - b) / scale).max())
    _running.append((KEY, [name, error, tolerance]))
    assert error <= tolerance, f"{name}: error {error:.2e} above {tolerance:.0e}"


def _plain(value: Any) -> Any:
    return value.detach().cpu().double().numpy() if hasattr(value, "detach") else value


def worst(reports: Iterable[Any]) -> list[tuple[str, float, float]]:
    """(name, error, its tolerance) of each name's comparison that came nearest to its tolerance, by name."""
    found: dict[str, tuple[float, float]] = {}
    for report in reports:
        for key, value in getattr(report, "user_properties", ()):
            if key == KEY:
                name, error, tolerance = value
                if name not in found or _share(error, tolerance) > _share(*found[name]):
                    found[name] = error, tolerance
    return sorted((name, *numbers) for name, numbers in found.items())


def _share(error: float, tolerance: float) -> float:
    """The error as a share of its tolerance."""
    if tolerance == 0:
        return 0.0 if error == 0 else float("inf")
    return float("inf") if error != error else error / tolerance
