"""Which evaluators score, with which parameters, and what identifies their numbers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from bench import plugins
from bench.api import BenchError, Evaluator
from bench.core.hashing import plain
from bench.core.manifest import MANIFEST, verify_manifest
from bench.core.provenance import package_versions
from bench.suite.schema import NANO, PATHS, packaged, resolve


def evaluator_parameters(
    names: Sequence[str], given: Sequence[str], nano: bool, dtype: str | None, device: str | None
) -> dict[str, dict[str, Any]]:
    """Constructor arguments of each evaluator, checked against its signature; nothing is loaded.

    `given`: "name.key=value" each; they win over `nano`'s packaged checkpoints. `dtype` and `device` go to every
    evaluator, and one that has no such parameter is refused.
    """
    if len(set(names)) < len(names):
        raise BenchError(f"evaluators {' '.join(names)}: name each once.")
    found = {name: dict(NANO["evaluator_params"].get(name, {})) if nano else {} for name in names}
    for name in names:
        for key, value in (("dtype", dtype), ("device", device)):
            if value is None:
                continue
            if key not in inspect.signature(plugins.find("evaluators", name)).parameters:
                raise BenchError(f"evaluator {name!r} has no parameter {key!r}: leave out --{key} where it scores.")
            found[name][key] = value
    for text in given:
        name, key, value = _split(text, names)
        found[name][key] = value
    for name, params in found.items():
        _check(name, params, nano)
    return found


def _split(text: str, names: Sequence[str]) -> tuple[str, str, Any]:
    """Evaluator, parameter and value of "name.key=value"; the longest name that fits."""
    left, equals, value = text.partition("=")
    name = max((name for name in names if left.startswith(f"{name}.")), key=len, default=None)
    if name is None or not equals:
        raise BenchError(
            f"--params {text}: write it as name.key=value with one of the evaluators {', '.join(names)} as the name."
        )
    key = left.removeprefix(f"{name}.")
    try:
        return name, key, value if key in PATHS else yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BenchError(f"--params {text}: the value is not YAML, put it in quotes.") from error


def _check(name: str, params: dict[str, Any], nano: bool) -> None:
    plugins.check("evaluators", name, params)
    known = inspect.signature(plugins.find("evaluators", name)).parameters
    lacking = [
        key
        for key, parameter in known.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and key not in params
    ]
    if lacking:
        hint = "" if nano or name not in NANO["evaluator_params"] else ", or --nano for the packaged miniature"
        raise BenchError(f"evaluator {name!r} needs {lacking[0]!r}: give --params {name}.{lacking[0]}=VALUE{hint}.")
    if str(params.get("device", "")).startswith("cuda") and not torch.cuda.is_available():
        raise BenchError(f"evaluator {name!r} shall use a GPU and torch sees none: take --device cpu.")


def locate_paths(params: Mapping[str, Any]) -> dict[str, Any]:
    """The same with paths: "nano/<part>" is a packaged checkpoint, all others count from the current folder."""
    found = dict(params)
    for key in PATHS:
        if isinstance(found.get(key), str):
            value = found[key]
            found[key] = resolve(value) if packaged(value) else Path(value).expanduser()
    return found


def make_evaluators(name: str, params: Mapping[str, Any]) -> tuple[Evaluator, dict[str, Any]]:
    """An evaluator and what identifies its numbers; a checkpoint with a manifest is verified file by file."""
    paths = locate_paths(params)
    for key in PATHS:
        if isinstance(paths.get(key), Path) and (paths[key] / MANIFEST).is_file():
            verify_manifest(paths[key])
    evaluator = plugins.evaluator(name, **paths)
    return evaluator, plain(
        {
            "fingerprint": evaluator.fingerprint(),
            "source": plugins.source("evaluators", name),
            "device": params.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"),
            "versions": package_versions(),
        }
    )
