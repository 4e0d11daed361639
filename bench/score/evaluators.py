"""Evaluators of `bench score`: their parameters, and their identity, which is stored with the scores."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import plugins
from bench.api import Evaluator
from bench.core.errors import BenchError
from bench.core.hashing import MANIFEST, plain, verify_manifest
from bench.core.provenance import package_versions
from bench.core.strict_yaml import parse_yaml
from bench.core.text import shown
from bench.suite.paths import is_path_key, resolve_parameters
from bench.suite.schema import NANO


def evaluator_parameters(
    names: Sequence[str], overrides: Sequence[str], nano: bool, dtype: str | None, device: str | None
) -> dict[str, dict[str, Any]]:
    """Constructor arguments of each evaluator, checked against its signature; nothing is loaded.

    `overrides`: "name.key=value" each; they replace the packaged checkpoints of `nano`. `dtype` and `device` apply to
    every evaluator; one without such a parameter is an error.
    """
    if len(set(names)) < len(names):
        raise BenchError(f"evaluators {' '.join(names)}: name each once.")
    params = {name: dict(NANO["evaluator_params"].get(name, {})) if nano else {} for name in names}
    for name in names:
        for key, value in (("dtype", dtype), ("device", device)):
            if value is None:
                continue
            if key not in inspect.signature(plugins.find("evaluators", name)).parameters:
                raise BenchError(f"evaluator {name!r} has no parameter {key!r}: leave out --{key} where it scores.")
            params[name][key] = value
    for text in overrides:
        name, key, value = _split(text, names)
        params[name][key] = value
    for name, own in params.items():
        _check(name, own, nano)
    return params


def _split(text: str, names: Sequence[str]) -> tuple[str, str, Any]:
    """Evaluator, parameter and value of "name.key=value"; of several names that match, the longest."""
    left, equals, value = text.partition("=")
    name = max((name for name in names if left.startswith(f"{name}.")), key=len, default=None)
    if name is None or not equals:
        raise BenchError(
            f"--params {shown(text)}: write it as name.key=value, where the name is one of {', '.join(names)}."
        )
    key = left.removeprefix(f"{name}.")
    return name, key, parse_yaml(value, f"--params {shown(text)}", key, is_path_key)


def _check(name: str, params: dict[str, Any], nano: bool) -> None:
    plugins.check("evaluators", name, params)
    known = inspect.signature(plugins.find("evaluators", name)).parameters
    missing = [
        key
        for key, parameter in known.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and key not in params
    ]
    if missing:
        hint = "" if nano or name not in NANO["evaluator_params"] else ", or --nano for the packaged miniature"
        raise BenchError(f"evaluator {name!r} needs {missing[0]!r}: give --params {name}.{missing[0]}=VALUE{hint}.")
    if str(params.get("device", "")).startswith("cuda") and not torch.cuda.is_available():
        raise BenchError(f"evaluator {name!r} is to use a GPU and torch sees none: use --device cpu.")


def make_evaluator(name: str, params: Mapping[str, Any]) -> tuple[Evaluator, dict[str, Any]]:
    """An evaluator and its identity; a checkpoint with a manifest is verified file by file."""
    resolved = resolve_parameters(params)
    for value in resolved.values():
        if isinstance(value, Path) and (value / MANIFEST).is_file():
            verify_manifest(value)
    evaluator = plugins.evaluator(name, **resolved)
    return evaluator, plain(
        {
            "fingerprint": evaluator.fingerprint(),
            "source": plugins.source("evaluators", name),
            "device": params.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"),
            "versions": package_versions(),
        }
    )
