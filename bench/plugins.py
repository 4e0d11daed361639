"""Names to objects: entry points of bench.methods, bench.evaluators and bench.backbones, or "module:Class"."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any, cast

from bench.api import Backbone, BenchError, Evaluator, Method
from bench.core.hashing import sha256_file


def available(group: str) -> dict[str, str]:
    """Name to "module:Class" of one group, sorted."""
    return {
        point.name: point.value
        for point in sorted(metadata.entry_points(group=f"bench.{group}"), key=lambda p: p.name)
    }


def find(group: str, name: str) -> Any:
    """The class behind a name; an unknown name is refused with the nearest known one."""
    known = available(group)
    target = known.get(name, name)
    if ":" not in target:
        near = difflib.get_close_matches(name, known, 1, 0.4)
        hint = f"did you mean {near[0]!r}?" if near else "write a class of your own as 'module:Class'."
        raise BenchError(f"unknown {group.removesuffix('s')} {name!r}: known are {', '.join(known)}; {hint}")
    module_name, _, class_name = target.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # "module:Class" may lie beside the suite
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as cause:
        raise BenchError(
            f"{group.removesuffix('s')} {name!r}: module {cause.name!r} cannot be imported; "
            "run from the folder that holds it or install it."
        ) from cause
    found = getattr(module, class_name, None)
    if found is None:
        raise BenchError(f"{group.removesuffix('s')} {name!r}: module {module_name} has no class {class_name!r}.")
    return found


def _construct(group: str, name: str, params: dict[str, Any]) -> Any:
    cls = find(group, name)
    if getattr(cls, "__pydantic_config__", None):
        return _validated(cls, name, params)
    check(group, name, params)
    return cls(**params)


def check(group: str, name: str, params: Mapping[str, Any]) -> None:
    """Refuse an unknown name, or a parameter that the class does not take, without making anything."""
    known = inspect.signature(find(group, name)).parameters
    for key in params:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known) or 'none'}."
            raise BenchError(f"{group.removesuffix('s')} {name!r} has no parameter {key!r}: {hint}")


def _validated(cls: Any, name: str, params: dict[str, Any]) -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_python(params)
    except ValidationError as cause:
        error = cause.errors()[0]
        key = str(error["loc"][-1]) if error["loc"] else ""
        if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            known = sorted(field.name for field in dataclasses.fields(cls))
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}."
            raise BenchError(f"method {name!r} has no parameter {key!r}: {hint}") from cause
        raise BenchError(
            f"method {name!r}, parameter {key!r}: {error['msg']} (got {str(error['input'])[:60]!r})."
        ) from cause


def method(name: str, **params: Any) -> Method:
    """A GRPO variant with its paper's defaults, or with `params` in their place; unknown parameters are refused."""
    found = _construct("methods", name, params)
    if not isinstance(found, Method):
        raise BenchError(f"method {name!r} is no bench.api.Method: let the class derive from it.")
    return found


def evaluator(name: str, **params: Any) -> Evaluator:
    """A scorer; its constructor loads the checkpoint exactly, or refuses."""
    found = _construct("evaluators", name, params)
    if not isinstance(found, Evaluator):
        raise BenchError(f"evaluator {name!r} is no bench.api.Evaluator: let the class derive from it.")
    return found


def backbone(name: str, **params: Any) -> Backbone:
    """A video generator."""
    return cast(Backbone, _construct("backbones", name, params))


def source(group: str, name: str) -> str:
    """sha256 of a plug-in's file, so that an edit outside the project's packages changes a run's digest too."""
    return sha256_file(inspect.getfile(find(group, name)))
