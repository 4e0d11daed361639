"""How the paths of a suite are resolved: one rule for suites, evaluator parameters and commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.core.provenance import ROOT

PATH_RULE = (
    "'nano' and 'nano/PART' are packaged checkpoints, 'bench/...' are packaged files, "
    "every other relative path counts from the current folder"
)
"""The rule of `resolve` in words, for error messages and the documentation."""

PATHS = ("checkpoint", "base_model", "processor", "prompt_template")
"""Evaluator parameters that name a file or folder."""


def packaged(name: str) -> bool:
    """Whether this is the name of a checkpoint that comes with the project: "nano" or "nano/PART"."""
    return name == "nano" or name.startswith("nano/")


def resolve(name: str) -> Path:
    """The absolute path of a name, by `PATH_RULE`; "nano" alone is the video generator, "nano/hunyuanvideo15"."""
    if packaged(name):
        return ROOT / "bench" / "nano" / "checkpoints" / (name.removeprefix("nano").lstrip("/") or "hunyuanvideo15")
    if name.startswith("bench/"):
        return ROOT / name
    return Path(name).expanduser().absolute()


def path_parameters(params: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of an evaluator that name a file or folder; `model` is one if it ends in ".json"."""
    paths = {key: params[key] for key in PATHS if isinstance(params.get(key), str)}
    if str(params.get("model", "")).endswith(".json"):  # otherwise the name of a model
        paths["model"] = params["model"]
    return paths


def resolve_parameters(params: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluator's parameters with their paths resolved."""
    return {**params, **{key: resolve(name) for key, name in path_parameters(params).items()}}
