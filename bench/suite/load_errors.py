"""What is wrong with a suite's YAML, in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from pydantic import ValidationError

from bench.core.budget import AdvantageSettings, Budget
from bench.core.parameters import quotes_hint
from bench.core.text import shown
from bench.suite.difference import flatten
from bench.suite.schema import (
    NANO,
    BackboneSpec,
    CommonEta,
    Evaluation,
    KLSpec,
    MatchedRSS,
    Native,
    PluginSpec,
    Prompts,
    RowSpec,
    Suite,
)
from bench.suite.search import SearchSpec

_UNION_MEMBERS: dict[str, Any] = {
    "native": Native,
    "common_eta": CommonEta,
    "matched_rss": MatchedRSS,
    "rule": AdvantageSettings,
    "plugin": PluginSpec,
    "KLSpec": KLSpec,
    "str": KLSpec,
}
"""Names that pydantic adds to a key's path where the key is a union of types, and the types with their keys."""


def first_error(cause: ValidationError, data: dict[str, Any]) -> str:
    """The first error of the suite `data` in one sentence, with the nearest known key for a misspelt one."""
    errors = cause.errors()
    unknown = [e for e in errors if e["type"] in ("extra_forbidden", "unexpected_keyword_argument")]
    error = (unknown or errors)[0]  # a misspelt key comes first: it is the reason that another one is missing
    path = [str(part) for part in error["loc"]]
    key = ".".join(part for part in path if part not in _UNION_MEMBERS)
    if unknown:
        known = _known_keys(path[:-1])
        near = [*_nested_keys(path, data), *difflib.get_close_matches(path[-1], known, 1)]
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(sorted(known))}."
        return f"unknown key {key!r}; {hint}"
    if error["type"] == "missing":
        return _missing(key, data)
    if error["type"] == "string_pattern_mismatch":
        return (
            f"key {key!r}: {error['input']!r} is not a name: write letters, digits, '-' and '_', and one '/' between "
            "a study and its variant."
        )
    if error["type"] == "list_type" and not isinstance(error["input"], dict):
        items = str(error["input"]).replace(",", " ").split()
        return (
            f"key {key!r}: {shown(error['input'], 60)} is not a list: write {key}='[{shown(', '.join(items), 60)}]'."
        )
    hint = quotes_hint(error["type"], error["input"])
    return f"key {key!r}: {error['msg']} (got {str(error['input'])[:60]!r}){hint}."


def _missing(key: str, data: dict[str, Any]) -> str:
    """The sentence about a missing key; one that only suites on nano's checkpoint can leave out is explained."""
    backbone = data.get("backbone")
    checkpoint = backbone.get("checkpoint") if isinstance(backbone, dict) else None
    if key.partition(".")[0] in NANO and checkpoint is not None:
        return (
            f"key {key!r} is missing: only a suite on the checkpoint 'nano' has default prompts and evaluators, and "
            f"backbone.checkpoint is {checkpoint}; start from a suite of full size (`bench suites` lists them), or "
            "give prompts and evaluator_params too."
        )
    return f"key {key!r} is missing: add it (bench/configs/nano.yaml shows every key)."


HARNESS_KEYS = ("device", "dtype", "parallel")
"""Arguments of a backbone that suites may leave out and that the harness itself reads."""


def _nested_keys(path: Sequence[str], data: dict[str, Any]) -> list[str]:
    """Dotted keys that end with this unknown key of the top level: `backbone.train.device` for `device`."""
    if len(path) > 1:
        return []
    models = {"backbone", "evaluation", "prompts", "search", "budget", "advantage"}
    keys = [f"{name}.{key}" for name in sorted(models) for key in _known_keys([name])]
    keys += [f"backbone.train.{key}" for key in HARNESS_KEYS]
    keys += [key for key in flatten(data) if not key.startswith("evaluator_params.")]
    return [key for key in dict.fromkeys(keys) if "." in key and key.rpartition(".")[2] == path[0]]


def _known_keys(path: Sequence[str]) -> list[str]:
    """Keys that the mapping at `path` may have; empty if any key is allowed."""
    models: dict[str, Any] = {
        "backbone": BackboneSpec,
        "evaluation": Evaluation,
        "prompts": Prompts,
        "rows": RowSpec,
        "search": SearchSpec,
        "budget": Budget,
        "advantage": AdvantageSettings,
    }
    if not path:
        return list(Suite.model_fields)
    model = _UNION_MEMBERS.get(path[-1], models.get(path[0]))
    if model is None:
        return []
    return list(getattr(model, "model_fields", None) or [field.name for field in fields(model)])
