"""Plug-ins by name: an entry point of the group of their kind (`KINDS`), or "module:Class"."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from bench.core.errors import BenchError, ProcessStateError
from bench.core.imports import check_module, import_plugin
from bench.core.parameters import check_types, json_text
from bench.core.plugin_classes import refuse_by_source
from bench.core.plugin_sources import entry_points, plugin_digests
from bench.core.text import shown

if TYPE_CHECKING:
    from types import ModuleType

    from bench.api import AdvantageRule, Backbone, Evaluator, KLPolicy, NoisePolicy

KINDS = {
    "methods": "method",
    "evaluators": "evaluator",
    "backbones": "backbone",
    "kl_policies": "KL policy",
    "noise_policies": "noise policy",
    "advantage_rules": "advantage rule",
}
"""Group of entry points, after "bench.", to the kind of its plug-ins in words."""
BASES = {
    "methods": "AnyMethod",
    "evaluators": "Evaluator",
    "kl_policies": "KLPolicy",
    "noise_policies": "NoisePolicy",
    "advantage_rules": "AdvantageRule",
}
"""Group to the class of bench.api from which its plug-ins derive; a backbone derives from nothing."""
_changed_by_import: dict[str, str] = {}
"""Module to what its import has changed in this process. A module is imported once, so a second look needs this."""


def available(group: str) -> dict[str, str]:
    """Name to "module:Class" of one group (a key of `KINDS`), sorted."""
    return entry_points(group)


def group_of(name: str) -> str:
    """The group of an entry point's name; an unknown name is refused with the nearest known one."""
    names = {group: available(group) for group in KINDS}
    for group, known in names.items():
        if name in known:
            return group
    near = difflib.get_close_matches(name, [each for known in names.values() for each in known], 1, 0.4)
    hint = f"did you mean {near[0]!r}?" if near else "write a class of your own as 'module:Class'."
    lists = "; ".join(f"{KINDS[group]}: {', '.join(known)}" for group, known in names.items())
    raise BenchError(f"{name!r} is not the name of a plug-in ({lists}): {hint}")


def check_name(group: str, name: str) -> None:
    """Raise a `BenchError` on an unknown name, or on "module:Class" without such a module; nothing is imported."""
    module_name = _target(group, name).partition(":")[0]
    check_module(module_name, f"{KINDS[group]} {name!r}", is_entry_point=name in available(group))


def _target(group: str, name: str) -> str:
    """ "module:Class" of a name; one whose source shows that it is no plug-in of this group is a `BenchError`."""
    known, kind = available(group), KINDS[group]
    target = known.get(name, name)
    if ":" not in target:
        near = difflib.get_close_matches(name, known, 1, 0.4)
        hint = f"did you mean {near[0]!r}?" if near else "write a class of your own as 'module:Class'."
        raise BenchError(f"unknown {kind} {name!r}: known are {', '.join(known)}; {hint}")
    module_name, _, class_name = target.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        raise BenchError(
            f"{kind} {shown(repr(name))} is not 'module:Class': write the names of a Python module "
            "and of a class in it, such as my_grpo:MyGRPO."
        )
    problem = None if name in known else refuse_by_source(module_name, class_name, group != "backbones")
    if problem:
        raise BenchError(f"{kind} {name!r}: {problem}; it was not imported.")
    return target


def find(group: str, name: str) -> Any:
    """The class of a name. An unknown name is a `BenchError` that names the nearest known one."""
    module_name, _, class_name = _target(group, name).partition(":")
    module = _import(module_name, f"{KINDS[group]} {name!r}", name in available(group))
    cls = getattr(module, class_name, None)
    if cls is None:
        raise BenchError(f"{KINDS[group]} {name!r}: module {module_name} has no class {class_name!r}.")
    return cls


def _import(module_name: str, label: str, is_entry_point: bool) -> ModuleType:
    """The module; `ProcessStateError` if its import changes a global setting or code of the harness."""
    from bench.core.process_state import ProcessSnapshot  # imports torch, without which names are checked

    before = None if module_name in sys.modules else ProcessSnapshot.take()
    module = import_plugin(module_name, label, is_entry_point)
    if before is not None and (changes := before.changes()):
        _changed_by_import[module_name] = changes
    if module_name in _changed_by_import:
        raise ProcessStateError(f"{label}, when it is imported, {_changed_by_import[module_name]}")
    return module


def _construct(group: str, name: str, params: dict[str, Any]) -> Any:
    cls = _plugin_class(group, name)
    from bench.core.process_state import unchanged_process, unchanged_settings  # import torch; names need none

    label = f"{KINDS[group]} {name!r}"
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise BenchError(f"{label} is abstract: name a class that defines {missing}.")
    if getattr(cls, "__pydantic_config__", None) is not None:
        with unchanged_settings(
            f"{label}, in its constructor,"
        ):  # made by the dozen; a run watches the code as a whole
            return _validated(cls, label, params)
    check(group, name, params)
    with unchanged_process(f"{label}, in its constructor,"):
        return cls(**params)


def _plugin_class(group: str, name: str) -> Any:
    """The class of a name, which must derive from the abstract class of its group, if there is one."""
    from bench import api

    cls, base = find(group, name), BASES.get(group)
    if base is not None and not (inspect.isclass(cls) and issubclass(cls, getattr(api, base))):
        base = {"AnyMethod": "Method or ForwardMethod"}.get(base, base)
        raise BenchError(f"{KINDS[group]} {name!r} is not a bench.api.{base}: derive the class from it.")
    return cls


def check(group: str, name: str, params: Mapping[str, Any]) -> None:
    """Raise a `BenchError` on an unknown name or parameter or a value of another type, without making an object."""
    cls, label = _plugin_class(group, name), f"{KINDS[group]} {name!r}"
    try:
        known = inspect.signature(cls).parameters
    except (ValueError, TypeError) as cause:  # a class of the interpreter, or no class
        raise BenchError(f"{label} is no plug-in: write a class of your own.") from cause
    for key in params:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known) or 'none'}."
            raise BenchError(f"{label} has no parameter {key!r}: {hint}")
    check_types(cls, label, params)


def _validated(cls: Any, name: str, params: dict[str, Any]) -> Any:
    """The dataclass with these fields; `name` is for the messages."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_json(_json(name, params), strict=True)
    except ValidationError as cause:
        error = cause.errors()[0]
        key = str(error["loc"][-1]) if error["loc"] else ""
        if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            known = sorted(field.name for field in dataclasses.fields(cls))
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}."
            raise BenchError(f"{name} has no parameter {key!r}: {hint}") from cause
        raise BenchError(f"{name}, parameter {key!r}: {error['msg']} (got {str(error['input'])[:60]!r}).") from cause


def _json(label: str, params: dict[str, Any]) -> str:
    """The parameters as JSON text; a number that is not finite is a `BenchError` that names the parameter."""
    return (
        "{"
        + ", ".join(
            f"{json.dumps(key)}: {json_text(f'{label}, parameter {key!r},', value)}" for key, value in params.items()
        )
        + "}"
    )


def method(name: str, **params: Any) -> Any:
    """A method with the defaults of its paper, except for `params`. Unknown parameters are a `BenchError`.

    It is a `Method` or a `ForwardMethod`.
    """
    return _construct("methods", name, params)


def kl_policy(name: str, **params: Any) -> KLPolicy:
    """A KL policy with its defaults, except for `params`. Unknown parameters are a `BenchError`."""
    return cast("KLPolicy", _construct("kl_policies", name, params))


def noise_policy(name: str, **params: Any) -> NoisePolicy:
    """A noise policy with these parameters. Unknown parameters are a `BenchError`."""
    return cast("NoisePolicy", _construct("noise_policies", name, params))


def advantage_rule(name: str, **params: Any) -> AdvantageRule:
    """An advantage rule with its defaults, except for `params`. Unknown parameters are a `BenchError`."""
    return cast("AdvantageRule", _construct("advantage_rules", name, params))


def evaluator(name: str, **params: Any) -> Evaluator:
    """An evaluator. Its constructor loads the checkpoint exactly, or raises a `BenchError`."""
    return cast("Evaluator", _construct("evaluators", name, params))


def backbone(name: str, **params: Any) -> Backbone:
    """A video generator; `params` are the parameters of its constructor."""
    return cast("Backbone", _construct("backbones", name, params))


MAKERS: dict[str, Callable[..., Any]] = {
    "methods": method,
    "evaluators": evaluator,
    "backbones": backbone,
    "kl_policies": kl_policy,
    "noise_policies": noise_policy,
    "advantage_rules": advantage_rule,
}
"""Group to the function that makes its plug-ins."""


def source(group: str, name: str) -> dict[str, str]:
    """File of a plug-in to the digest of its code without comments (see `bench.core.plugin_sources`)."""
    find(group, name)
    return plugin_digests(group, name)
