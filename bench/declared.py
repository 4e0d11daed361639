"""What a method's class must declare, whatever its hooks compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bench.api import Method
from bench.base import RESERVED_FIELDS
from bench.probe import need


def _dataclass(m: Method) -> None:
    made = vars(type(m)).get("__dataclass_params__")
    need(
        made is not None and made.frozen,
        "the class has no decorator of its own: write @dataclass(frozen=True, kw_only=True) above it, "
        "or its fields are no parameters and its attributes can change",
    )


def _paper(m: Method) -> None:
    paper = getattr(m, "paper", None)
    need(
        isinstance(paper, str) and bool(paper.strip()),
        "the class variable 'paper' is missing: add paper: ClassVar[str] = 'arXiv:...', or say why there is none",
    )


def _no_budget_field(m: Method) -> None:
    names = {field.name for field in dataclasses.fields(m)}
    names |= {name for part in type(m).__mro__ for name, value in vars(part).items() if not callable(value)}
    taken_names = sorted(RESERVED_FIELDS & names)
    need(not taken_names, f"the class sets {', '.join(taken_names)}, which belongs to the suite's budget: remove it")


DECLARATIONS: dict[str, Callable[[Method], None]] = {
    "frozen dataclass": _dataclass,
    "paper": _paper,
    "no budget field": _no_budget_field,
}
