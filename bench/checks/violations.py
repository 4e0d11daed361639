"""Broken promises of plug-ins: how one check is run, and in which order the checks of a plug-in are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from bench.api import BenchError
from bench.checks.batch import CheckError

RANDOMNESS = "no global randomness"

Plugin = TypeVar("Plugin")
Target = TypeVar("Target")


class Violation(NamedTuple):
    """One broken promise."""

    check: str
    found: str
    cause: Exception | None = None
    """The plug-in's own exception, if it raised one."""


def global_state() -> tuple[bytes, str]:
    """The state of torch's and numpy's global random generators."""
    # Python's own random is left to the repeated call: runtime type checkers draw from it.
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    position, key = numpy_state["state"]["pos"], numpy_state["state"]["key"]
    return torch.get_rng_state().numpy().tobytes(), str(position) + key.tobytes().hex()


def run_check(check: str, run: Callable[..., Any], *inputs: Any) -> Iterator[Violation]:
    """The violation of one check, if there is one."""
    try:
        run(*inputs)
    except BenchError as error:
        yield Violation(check, str(error), error)
    except CheckError as error:
        yield Violation(check, f"{error}.")
    except Exception as error:
        yield Violation(check, f"{type(error).__name__}: {error}", error)


def raise_first(kind: str, plugin: object, violations: Iterator[Violation]) -> None:
    """Raise the first violation as a `BenchError` that names the plug-in's class and the check."""
    for violation in violations:
        name = f"{kind} {type(plugin).__module__}:{type(plugin).__qualname__}"
        raise BenchError(f"{name} fails the check '{violation.check}': {violation.found}") from violation.cause


@dataclass(frozen=True, kw_only=True)
class CheckSequence(Generic[Plugin, Target]):
    """The checks of one kind of plug-in: before its first call, the first call, and on what that call gave."""

    before: Mapping[str, Callable[[Plugin], None]]
    call_name: str
    call: Callable[[Plugin], Target]
    after: Mapping[str, Callable[[Plugin, Target], None]]
    essential: int
    """How many of `after` must pass before the others are run."""
    randomness: str
    """What is reported when the global random state has changed."""
    restore: Callable[[Plugin], None] = lambda plugin: None
    """Called after each of the remaining checks."""

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.before, self.call_name, *self.after, RANDOMNESS)

    def violations(self, plugin: Plugin) -> Iterator[Violation]:
        """Every violation in the order of `names`, at most one per check."""
        state = global_state()
        early = [violation for name, check in self.before.items() for violation in run_check(name, check, plugin)]
        yield from early
        if early:  # what follows would repeat them
            return
        targets: list[Target] = []
        yield from run_check(self.call_name, lambda: targets.append(self.call(plugin)))
        if not targets:
            return
        names = list(self.after)
        first = [
            violation
            for name in names[: self.essential]
            for violation in run_check(name, self.after[name], plugin, targets[0])
        ]
        yield from first
        if not first:
            for name in names[self.essential :]:
                yield from run_check(name, self.after[name], plugin, targets[0])
                self.restore(plugin)
        if global_state() != state:
            yield Violation(RANDOMNESS, self.randomness)
