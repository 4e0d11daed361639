"""What an input may do: be accepted, or be refused in one sentence, soon and in little memory."""

from __future__ import annotations

import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from bench.core.errors import BenchError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""Inputs of each kind; 0: the few of the normal tests."""
SECONDS = 5.0
"""Longest processor time that reading an input may take."""
MEMORY_MB = 600
"""Largest growth of the process over all inputs of one kind."""
LONGEST = 3000
"""Characters of a message."""
COUNTS: dict[str, Counter[str]] = {}
"""Kind of input to the numbers of inputs that were accepted and refused."""


class HangError(BaseException):
    """An input took too long."""


@contextmanager
def timer(seconds: float = SECONDS) -> Iterator[None]:
    """Raise `HangError` in the code that takes longer."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError(f"no answer after {seconds} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def answer(kind: str, call: Callable[[], Any]) -> str | None:
    """The sentence with which an input is refused; None if it is accepted. Any other exception is a fault."""
    counts = COUNTS.setdefault(kind, Counter())
    try:
        with timer():
            call()
    except BenchError as error:
        counts["refused"] += 1
        message = str(error)
        assert "\n" not in message, message
        assert message.strip(), "an empty message"
        assert len(message) <= LONGEST, message
        return message
    except HangError as error:
        raise AssertionError(f"{kind}: {error}") from None  # without the place, which may have no line number
    counts["accepted"] += 1
    return None


def memory_mb() -> float:
    """The largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
