"""Broken promises of plug-ins: what a check requires, how one check is run, and in which order checks are run."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.core.process_state import ProcessSnapshot

RANDOMNESS = "no global randomness"
CHANGES = "no global changes"
"""Names of the checks that every kind of plug-in has at the end."""

Plugin = TypeVar("Plugin")
FirstCall = TypeVar("FirstCall")


class CheckError(Exception):
    """A promise is broken; the message states what was observed."""


def require(condition: bool | Tensor, message: str) -> None:
    """Raise `CheckError` unless the condition holds."""
    if not bool(condition):
        raise CheckError(message)


def require_finite(values: Tensor, name: str) -> None:
    """No entry is NaN or infinite; `name` is for the message."""
    require(torch.isfinite(values).all(), f"{name} is not finite: {values.flatten()[:4].tolist()}")


def require_shape(values: Tensor, shape: tuple[int, ...], name: str) -> None:
    """The tensor has this shape; `name` is for the message."""
    require(tuple(values.shape) == shape, f"{name} has shape {list(values.shape)}, expected {list(shape)}")


def require_frozen(plugin: object) -> None:
    """The class is a frozen dataclass by its own decorator, and what it sets of its bases' fields has a type.

    A dataclass ignores a field that is set without one: the instances keep the default of the base class.
    """
    kind: Any = type(plugin)
    options = vars(kind).get("__dataclass_params__")
    require(
        options is not None and options.frozen,
        "the class has no decorator of its own: write @dataclass(frozen=True, kw_only=True) above it, "
        "or its fields are not parameters and its attributes can change",
    )
    for field in dataclasses.fields(kind):
        for base in kind.__mro__:
            require(
                field.name not in vars(base) or field.name in inspect.get_annotations(base),
                f"{base.__name__} sets {field.name} without a type, so its instances keep {field.default!r}: write "
                f"{field.name}: {getattr(field.type, '__name__', field.type)} = {vars(base).get(field.name)!r}",
            )


def require_fingerprint(fingerprint: Callable[[], Mapping[str, str]]) -> None:
    """The hook `fingerprint` gives texts, at least one, and the same ones on every call."""
    entries = dict(fingerprint())
    require(bool(entries), "fingerprint is empty: a record could not name the weights behind its numbers")
    invalid = [key for key, value in entries.items() if not (isinstance(key, str) and isinstance(value, str))]
    require(not invalid, f"fingerprint holds {invalid[:1]}, where key or value is not a text")
    require(dict(fingerprint()) == entries, "two calls of fingerprint differ")


class Violation(NamedTuple):
    """One broken promise."""

    check: str
    message: str
    cause: Exception | None = None
    """The exception of the plug-in, if it raised one."""


def _random_state() -> tuple[bytes, str]:
    """The state of torch's and numpy's global random generators.

    Python's own `random` is left to the check that repeats a call, since runtime type checkers draw from it.
    """
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    position, key = numpy_state["state"]["pos"], numpy_state["state"]["key"]
    return torch.get_rng_state().numpy().tobytes(), str(position) + key.tobytes().hex()


class GlobalState(NamedTuple):
    """What no hook of a plug-in may change: global random generators, global settings, the code of the harness."""

    random: tuple[bytes, str]
    process: ProcessSnapshot

    @classmethod
    def take(cls) -> GlobalState:
        """The present state."""
        return cls(_random_state(), ProcessSnapshot.take())

    def violations(self, randomness: str) -> Iterator[Violation]:
        """A violation for each of the two checks that fails; `randomness` is the message of the first."""
        if _random_state() != self.random:
            yield Violation(RANDOMNESS, randomness)
        if changes := self.process.changes():
            yield Violation(CHANGES, f"a call of the plug-in {changes}")


def run_check(name: str, check: Callable[..., Any], *inputs: Any) -> Iterator[Violation]:
    """The violation of one check, if there is one; an exception of the plug-in is one, too."""
    try:
        check(*inputs)
    except BenchError as error:
        yield Violation(name, str(error), error)
    except CheckError as error:
        yield Violation(name, f"{error}.")
    except Exception as error:
        yield Violation(name, f"{type(error).__name__}: {error}", error)


def raise_first(kind: str, plugin: object, violations: Iterator[Violation]) -> None:
    """Raise the first violation as a `BenchError` that names the plug-in's class and the check."""
    for violation in violations:
        name = f"{kind} {type(plugin).__module__}:{type(plugin).__qualname__}"
        raise BenchError(f"{name} fails the check '{violation.check}': {violation.message}") from violation.cause


@dataclass(frozen=True, kw_only=True)
class CheckSequence(Generic[Plugin, FirstCall]):
    """The checks of one kind of plug-in, in order: before its first call, the first call, and on the call's result."""

    before: Mapping[str, Callable[[Plugin], None]]
    call_name: str
    """Name of the check that the first call does not raise."""
    call: Callable[[Plugin], FirstCall]
    """The first call: its inputs and its result."""
    after: Mapping[str, Callable[[Plugin, FirstCall], None]]
    essential: int
    """How many of `after` must pass before the others are run."""
    randomness: str
    """The message when the global random state has changed."""
    restore: Callable[[Plugin], None] = lambda plugin: None
    """Called after each check that is not essential."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all checks, in order."""
        return (*self.before, self.call_name, *self.after, RANDOMNESS, CHANGES)

    def violations(self, plugin: Plugin, without: Collection[str] = ()) -> Iterator[Violation]:
        """Every violation in the order of `names`, at most one per check; `without`: checks that are left out."""
        state = GlobalState.take()
        early = [violation for name, check in self.before.items() for violation in run_check(name, check, plugin)]
        yield from early
        if early:  # later checks would fail for the same reason
            return
        results: list[FirstCall] = []
        yield from run_check(self.call_name, lambda: results.append(self.call(plugin)))
        if not results:
            return
        names = [name for name in self.after if name not in without]
        first = [
            violation
            for name in names[: self.essential]
            for violation in run_check(name, self.after[name], plugin, results[0])
        ]
        yield from first
        if not first:
            for name in names[self.essential :]:
                yield from run_check(name, self.after[name], plugin, results[0])
                self.restore(plugin)
        yield from state.violations(self.randomness)
