"""Read a suite's YAML: duplicate and unknown keys are refused, dotted overrides are part of the digest."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bench.core.budget import AdvantageRule, Budget
from bench.core.errors import BenchError
from bench.suite.schema import (
    BackboneSpec,
    CommonEta,
    Evaluation,
    Experiment,
    KLSpec,
    MatchedRSS,
    Native,
    Prompts,
    RowSpec,
)


class UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key given twice (plain YAML silently keeps the last one)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for name, _ in node.value:
            key = self.construct_object(name, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", name.start_mark)
            seen.add(key)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def load(path: Path | str, overrides: Sequence[str] = ()) -> Experiment:
    """Read a suite's YAML and apply overrides such as `budget.lr=1e-4` or `rows='[{method: cps}]'`.

    Of a study (see `load_all`) the override `variant=NAME` picks one variant.
    """
    found = load_all(path, overrides)
    if len(found) > 1:
        names = ", ".join(exp.variant for exp in found)
        raise BenchError(f"suite {path} is a study of {len(found)} variants: pick one with variant=NAME ({names}).")
    return found[0]


def load_all(path: Path | str, overrides: Sequence[str] = ()) -> list[Experiment]:
    """One suite per entry of the YAML's `variants:`, named "study/variant"; the suite itself if there are none.

    A variant's settings stand above the overrides, and merge as those of a suite that extends another.
    """
    data = _read(Path(path), [])
    for override in overrides:
        _apply(data, override)
    variants, wanted = data.pop("variants", None), data.pop("variant", None)
    if variants is None:
        if wanted is not None:
            raise BenchError(f"suite {path} has no variants: remove variant={wanted}.")
        return [_validated(path, data)]
    if not (isinstance(variants, dict) and variants and all(isinstance(v, dict) for v in variants.values())):
        raise BenchError(f"suite {path}: 'variants' is no mapping of names to settings, such as 'a: {{decode: ...}}'.")
    if wanted is not None and wanted not in variants:
        raise BenchError(f"suite {path} has no variant {wanted!r}: choose one of {', '.join(map(str, variants))}.")
    for name, settings in variants.items():
        odd = sorted({"suite", "seeds", "rows", "variants", "extends"} & settings.keys())
        if odd:
            raise BenchError(f"suite {path}: variant {name!r} sets {odd[0]!r}, which all variants share; move it up.")
    return [
        _validated(path, {**_merge(data, settings), "suite": f"{data.get('suite')}/{name}"})
        for name, settings in variants.items()
        if wanted in (None, name)
    ]


def _validated(path: Path | str, data: dict[str, Any]) -> Experiment:
    try:
        return Experiment.model_validate(data)
    except ValidationError as cause:
        raise BenchError(f"suite {path}: {_first(cause)}") from cause


MERGED = ("backbone", "budget", "advantage", "evaluation", "evaluator_params", "prompts")
"""Mappings that a suite which extends another one changes key by key; every other key replaces the other's whole."""


def read_mapping(path: Path, what: str = "suite", example: str = "bench/configs/nano.yaml") -> dict[str, Any]:
    """A YAML file's mapping, as it stands there."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeys)
    except OSError as cause:
        raise BenchError(
            f"{what} {path} cannot be read ({cause.strerror}): name a YAML file such as {example}."
        ) from cause
    except yaml.YAMLError as cause:
        raise BenchError(f"{what} {path} is not YAML: {' '.join(str(cause).split())}.") from cause
    if not isinstance(data, dict):
        raise BenchError(f"{what} {path} holds no mapping: start from {example}.")
    return data


def _read(path: Path, above: list[Path]) -> dict[str, Any]:
    """The file's mapping; `extends: other.yaml` (beside it) puts it on top of that suite."""
    data = read_mapping(path)
    parent = data.pop("extends", None)
    if parent is None:
        return data
    other = path.parent / str(parent)
    if other in above:
        raise BenchError(f"suite {path} extends {parent}, which extends it in turn: remove one 'extends:'.")
    return _merge(_read(other, [*above, path]), data)


def _merge(base: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: {**base[key], **data[key]}
        for key in MERGED
        if isinstance(base.get(key), dict) and isinstance(data.get(key), dict)
    }
    return {**base, **data, **both}


def _apply(data: dict[str, Any], override: str) -> None:
    key, found, value = override.partition("=")
    if not found:
        raise BenchError(f"override {override!r} has no '=': write it as key.subkey=value.")
    *parents, last = key.split(".")
    at: Any = data
    for name in parents:
        at = at.setdefault(name, {}) if isinstance(at, dict) else None
    if not isinstance(at, dict):
        raise BenchError(f"override {override!r}: {'.'.join(parents)!r} is no mapping in the suite.")
    try:
        at[last] = _number(yaml.safe_load(value))
    except yaml.YAMLError as cause:
        raise BenchError(f"override {override!r}: the value is not YAML.") from cause


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; an override means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


#: Where a key has several forms, pydantic adds the form's name to the key's path.
_FORMS: dict[str, Any] = {
    "native": Native,
    "common_eta": CommonEta,
    "matched_rss": MatchedRSS,
    "KLSpec": KLSpec,
    "str": KLSpec,
}


def _first(cause: ValidationError) -> str:
    """The first mistake of a suite in one sentence, with the nearest known key for a misspelt one."""
    errors = cause.errors()
    unknown = [e for e in errors if e["type"] in ("extra_forbidden", "unexpected_keyword_argument")]
    error = (unknown or errors)[0]  # a misspelt key first: it is why the right one is missing
    path = [str(part) for part in error["loc"]]
    where = ".".join(part for part in path if part not in _FORMS)
    if unknown:
        known = _known_keys(path[:-1])
        near = difflib.get_close_matches(path[-1], known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(sorted(known))}."
        return f"unknown key {where!r}; {hint}"
    if error["type"] == "missing":
        return f"key {where!r} is missing: add it (bench/configs/nano.yaml shows every key)."
    return f"key {where!r}: {error['msg']} (got {str(error['input'])[:60]!r})."


def _known_keys(path: Sequence[str]) -> list[str]:
    parts: dict[str, Any] = {
        "backbone": BackboneSpec,
        "evaluation": Evaluation,
        "prompts": Prompts,
        "rows": RowSpec,
        "budget": Budget,
        "advantage": AdvantageRule,
    }
    if not path:
        return list(Experiment.model_fields)
    known = _FORMS.get(path[-1], parts.get(path[0]))
    if known is None:
        return []
    return list(getattr(known, "model_fields", None) or [field.name for field in fields(known)])
