"""The frame rate of a video, from the time stamps of its frames.

Containers store a time stamp as a whole number of ticks of a clock, so frames at a constant rate are up to one tick
off an even grid. WebM, Matroska, phones and screen recorders have a clock of milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from bench.api import BenchError

MILLISECOND = Fraction(1, 1000)
"""The coarsest usual clock, in seconds. A file with a finer one may hold stamps that were rounded to it before."""


def constant_rate(stamps: Sequence[int | None], tick: Fraction, stated: Fraction | None, name: str) -> float:
    """Frames per second of two or more frames whose time stamps are multiples of `tick` seconds.

    The rate that the header states is used if the stamps fit it, otherwise that of the stamps. Frames fit a rate if
    each is within one tick, or a millisecond, and within half an interval of its place: beyond that, it may as well be
    another frame. Raises `BenchError` if no rate fits. `name`: the video, for messages.
    """
    if None in stamps:
        raise BenchError(f"video {name} has frames without a time stamp: write it again with a constant frame rate.")
    times = np.sort(np.array(stamps, dtype=np.float64)) * float(tick)  # AVI numbers frames in the order of decoding
    times -= times[0]
    tolerance = float(max(tick, MILLISECOND))
    if stated and _fits(times - np.arange(len(times)) / float(stated), 1 / float(stated), tolerance):
        return float(stated)
    interval, start = (float(value) for value in np.polyfit(np.arange(len(times)), times, 1))
    drift = times - start - np.arange(len(times)) * interval
    resolved = (
        2 * tolerance < interval
    )  # a coarser clock hides a frame left out: without a stated rate it must be exact
    if interval > 0 and _fits(drift, interval, tolerance if resolved else 1e-6 * interval):
        return 1 / interval
    worst = int(np.abs(drift).argmax())
    raise BenchError(
        f"video {name} has no constant frame rate (frame {worst} is {abs(drift[worst]):.3f} s off the even grid of "
        "its time stamps): write it again with a constant one."
    )


def _fits(drift: np.ndarray, interval: float, tolerance: float) -> bool:
    largest = float(np.abs(drift).max())
    return largest < interval / 2 and largest <= tolerance * (1 + 1e-9)  # the last term is the rounding of floats
