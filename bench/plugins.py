"""Plug-ins by name: entry points of bench.methods, bench.evaluators and bench.backbones, or "module:Class"."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

from bench.core.errors import BenchError
from bench.core.hashing import sha256_file
from bench.core.plugin_source import refuse_by_source

if TYPE_CHECKING:
    from bench.api import Backbone, Evaluator, Method


def available(group: str) -> dict[str, str]:
    """Name to "module:Class" of one group ("methods", "evaluators" or "backbones"), sorted."""
    return {
        point.name: point.value
        for point in sorted(metadata.entry_points(group=f"bench.{group}"), key=lambda p: p.name)
    }


GROUPS = ("methods", "evaluators", "backbones")


def group_of(name: str) -> str:
    """The group of an entry point's name; an unknown name is refused with the nearest known one."""
    names = {group: available(group) for group in GROUPS}
    for group in GROUPS:
        if name in names[group]:
            return group
    near = difflib.get_close_matches(name, [each for group in GROUPS for each in names[group]], 1, 0.4)
    hint = f"did you mean {near[0]!r}?" if near else "write a class of your own as 'module:Class'."
    lists = "; ".join(f"{group} are {', '.join(names[group])}" for group in GROUPS)
    raise BenchError(f"{name!r} is neither a method nor an evaluator nor a backbone: {lists}; {hint}")


def check_name(group: str, name: str) -> None:
    """Raise a `BenchError` on an unknown name, or on "module:Class" without such a module; nothing is imported."""
    module_name = _target(group, name).partition(":")[0]
    try:
        spec = importlib.util.find_spec(module_name)
    except ModuleNotFoundError as cause:  # of a package that contains the module
        raise _not_importable(group, name, cause.name) from cause
    if spec is None:
        raise _not_importable(group, name, module_name)


def _target(group: str, name: str) -> str:
    """ "module:Class" of a name, with the working folder among the places that are searched for the module."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # "module:Class" may be a file beside the suite
    known = available(group)
    target = known.get(name, name)
    if ":" not in target:
        near = difflib.get_close_matches(name, known, 1, 0.4)
        hint = f"did you mean {near[0]!r}?" if near else "write a class of your own as 'module:Class'."
        raise BenchError(f"unknown {group.removesuffix('s')} {name!r}: known are {', '.join(known)}; {hint}")
    module_name, _, class_name = target.partition(":")
    problem = None if name in known else refuse_by_source(module_name, class_name, group != "backbones")
    if problem:
        raise BenchError(f"{group.removesuffix('s')} {name!r}: {problem}; it was not imported.")
    return target


def _not_importable(group: str, name: str, module: str | None) -> BenchError:
    return BenchError(
        f"{group.removesuffix('s')} {name!r}: module {module!r} cannot be imported; "
        "run from the folder that contains it, or install it."
    )


def find(group: str, name: str) -> Any:
    """The class of a name. An unknown name is a `BenchError` that names the nearest known one."""
    module_name, _, class_name = _target(group, name).partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as cause:
        raise _not_importable(group, name, cause.name) from cause
    cls = getattr(module, class_name, None)
    if cls is None:
        raise BenchError(f"{group.removesuffix('s')} {name!r}: module {module_name} has no class {class_name!r}.")
    return cls


def _construct(group: str, name: str, params: dict[str, Any]) -> Any:
    cls = find(group, name)
    if getattr(cls, "__pydantic_config__", None):
        return _validated(cls, name, params)
    check(group, name, params)
    return cls(**params)


def check(group: str, name: str, params: Mapping[str, Any]) -> None:
    """Raise a `BenchError` on an unknown name or parameter, without making an object."""
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
    """A GRPO variant with the defaults of its paper, except for `params`. Unknown parameters are a `BenchError`."""
    from bench.api import Method  # imports torch, without which names are checked

    plugin = _construct("methods", name, params)
    if not isinstance(plugin, Method):
        raise BenchError(f"method {name!r} is not a bench.api.Method: derive the class from it.")
    return plugin


def evaluator(name: str, **params: Any) -> Evaluator:
    """An evaluator. Its constructor loads the checkpoint exactly, or raises a `BenchError`."""
    from bench.api import Evaluator

    plugin = _construct("evaluators", name, params)
    if not isinstance(plugin, Evaluator):
        raise BenchError(f"evaluator {name!r} is not a bench.api.Evaluator: derive the class from it.")
    return plugin


def backbone(name: str, **params: Any) -> Backbone:
    """A video generator; `params` are the parameters of its constructor."""
    return cast("Backbone", _construct("backbones", name, params))


def source(group: str, name: str) -> str:
    """sha256 of the file of a plug-in, so that an edit of an external plug-in changes the digest of a run too."""
    return sha256_file(inspect.getfile(find(group, name)))
