"""Parameters of a plug-in, compared with the types of its constructor; nothing is made or loaded."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from bench.core.errors import BenchError
from bench.core.hashing import plain
from bench.core.text import shown

LENGTHS = {"missing": "it has too few items", "too_long": "it has too many items"}
"""Errors of a list in place of a tuple, in words."""


def check_types(cls: Any, what: str, params: Mapping[str, Any]) -> None:
    """Raise a `BenchError` on a value that does not fit its parameter's annotation, or a number that is not finite.

    Values are those of YAML: a list fits a tuple, a text fits a path, a whole number fits a float, and nothing else is
    converted. `what` starts the message, such as "evaluator 'clipscore'". Parameters without an annotation, or with
    one that cannot be read from a text, take any value.
    """
    types = _types(cls)
    for key, value in params.items():
        _check_value(types.get(key), f"{what}, parameter {key!r}", value)


def json_text(what: str, value: Any) -> str:
    """The JSON text of a parameter; a number that is not finite is a `BenchError` that starts with `what`."""
    try:
        return json.dumps(plain(value), allow_nan=False)
    except ValueError as cause:
        raise BenchError(f"{what} holds a number that is not finite: give a finite one.") from cause


def quotes_hint(kind: str, value: object) -> str:
    """How to write a text that YAML reads as something else; "" for other errors. `kind`: pydantic's of the error."""
    if kind not in ("string_type", "literal_error") or not isinstance(value, (bool, int, float)):
        return ""
    if isinstance(value, bool):
        return "; YAML reads yes, no, on and off as true and false, so put a word in quotes"
    return "; put it in quotes for a text"


def _types(cls: Any) -> dict[str, Any]:
    """Parameter to type. A text of an annotation is evaluated, if all of them can be."""
    try:
        hints = get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__, include_extras=True)
    except NameError:  # a name that is imported for type checkers only
        hints = {}
    types = {key: parameter.annotation for key, parameter in inspect.signature(cls).parameters.items()}
    types = {key: hints.get(key) if isinstance(kind, str) else kind for key, kind in types.items()}
    return {key: kind for key, kind in types.items() if kind not in (None, inspect.Parameter.empty)}


def _check_value(kind: Any, what: str, value: Any) -> None:
    from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

    text = json_text(what, value)
    if kind is None:
        return
    try:
        TypeAdapter(kind).validate_json(text, strict=True)
    except PydanticSchemaGenerationError:  # a class that no text gives, such as torch.device
        return
    except ValidationError as cause:
        error = cause.errors()[0]
        wanted = _description(kind)
        reason = LENGTHS.get(error["type"], error["msg"].replace("Input should be", "it should be"))
        need = f"give {wanted}" if wanted else reason
        hint = quotes_hint(error["type"], error["input"])
        raise BenchError(f"{what} is {shown(repr(value), 60)}: {need}{hint}.") from cause


def _description(kind: Any) -> str | None:
    """Text of a pydantic `Field(description=...)` in an annotation."""
    for part in getattr(kind, "__metadata__", ()):
        if description := getattr(part, "description", None):
            return str(description)
    return next((text for part in get_args(kind) if (text := _description(part))), None)
