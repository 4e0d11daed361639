"""JSON with limits: what other readers accept silently, or answer with a recursion error, is one sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.core.limits import DIGITS, JSON_BYTES, JSON_DEPTH
from bench.core.text import bad_character, read_text, shown


def read_json(path: Path, what: str = "file", fix: str = "fetch it again") -> dict[str, Any]:
    """The JSON object in a UTF-8 file; everything else is a `BenchError` that names the file and ends with `fix`."""
    value = parse_json(read_text(path, what, fix, JSON_BYTES), f"{what} {path}", fix)
    if not isinstance(value, dict):
        raise BenchError(f"{what} {path} does not hold a JSON object: {fix}.")
    return value


def parse_json(text: str | bytes, where: str, fix: str, any_text: bool = False) -> Any:
    """The value of a JSON text.

    Refused with a `BenchError` that starts with `where` and ends with `fix`: text that is not JSON, a key that is
    given twice, NaN and infinity, numbers that are too long, too deep nesting, and texts with a NUL character or half
    a surrogate pair. With `any_text` such texts are accepted.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
        )
        _check(value, any_text)
    except RecursionError as cause:
        raise BenchError(f"{where} is nested deeper than {JSON_DEPTH} levels: {fix}.") from cause
    except _RefusedError as cause:
        raise BenchError(f"{where} {cause}: {fix}.") from cause
    except ValueError as cause:  # that of the decoder, or of bytes that are not UTF-8
        raise BenchError(f"{where} is not JSON ({shown(cause)}): {fix}.") from cause
    return value


class _RefusedError(Exception):
    """Valid JSON that is refused; the message goes on from the name of the file."""


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise _RefusedError(f"gives the key {shown(name, 60)!r} twice")
    return value


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise _RefusedError(f"holds a whole number of {len(digits)} digits (at most {DIGITS})")
    return int(digits)


def _check(value: Any, any_text: bool) -> None:
    """Refuse too deep nesting, and characters that cannot be stored."""
    level, depth = [value], 0
    while level:
        if depth > JSON_DEPTH:
            raise _RefusedError(f"is nested deeper than {JSON_DEPTH} levels")
        if any(isinstance(item, float) and not math.isfinite(item) for item in level):
            raise _RefusedError(f"holds a number at {next(_not_finite(value))} that is not finite")
        for text in (item for item in level if isinstance(item, str) and not any_text):
            if kind := bad_character(text):
                raise _RefusedError(f"holds a text with {kind}")
        lists = [item for item in level if isinstance(item, list)]
        objects = [item for item in level if isinstance(item, dict)]
        level = [item for values in lists for item in values]
        level += [item for values in objects for pair in values.items() for item in pair]
        depth += 1


def _not_finite(value: Any, key: str = "") -> Iterator[str]:
    """Dotted keys of NaN and infinities."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from _not_finite(item, f"{key}.{shown(name, 40)}" if key else shown(name, 40))
    if isinstance(value, float) and not math.isfinite(value):
        yield key or "its top"
