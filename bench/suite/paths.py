"""How the paths of a suite are resolved: one rule for suites, plug-in parameters and commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.core.provenance import ROOT

PATH_RULE = (
    "'nano' and 'nano/PART' are packaged checkpoints, 'bench/...' are packaged files, every other relative path "
    "counts from the folder of the YAML file that contains it, or from the current folder on the command line"
)
"""The rule of `locate` and `resolve` in words, for error messages and the documentation."""

PATHS = ("checkpoint", "base_model", "processor", "prompt_template")
"""Parameters of a plug-in that name a file or folder, beside those whose names end like `PATH_ENDINGS`."""

PATH_ENDINGS = ("_path", "_file", "_folder")
"""A parameter whose name ends so names a file or folder: a suite is read without the class that takes it."""

UNHASHED_PATHS = ("text_cache",)
"""Parameters that name a folder which decides no number."""

SECTIONS = ("backbone", "evaluator_params", "prompts")
"""Keys of a suite with paths below them."""


def packaged(name: str) -> bool:
    """Whether this is the name of a checkpoint that comes with the project: "nano" or "nano/PART"."""
    return name == "nano" or name.startswith("nano/")


def names_package(name: str) -> bool:
    """Whether this names something that comes with the project: a checkpoint, or a file "bench/..."."""
    return packaged(name) or name.startswith("bench/")


def resolve(name: str) -> Path:
    """The absolute path of a name; "nano" alone is the video generator, "nano/hunyuanvideo15".

    Other relative paths count from the current folder: those of a YAML file have been through `locate`.
    """
    if packaged(name):
        return ROOT / "bench" / "nano" / "checkpoints" / (name.removeprefix("nano").lstrip("/") or "hunyuanvideo15")
    if name.startswith("bench/"):
        return ROOT / name
    return Path(os.path.expanduser(name)).absolute()  # unlike Path.expanduser, it accepts the name of an unknown user


def locate(name: str, folder: Path) -> str:
    """A path that is written in a YAML file of `folder`, as one from the current folder; absolute outside of it."""
    if names_package(name):
        return name
    path = (folder / os.path.expanduser(name)).absolute()
    here = path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else ""
    return str(path) if not here or names_package(here) else here


def is_path_key(key: str) -> bool:
    """Whether a parameter of a plug-in names a file or folder, by its name."""
    return key in (*PATHS, *UNHASHED_PATHS) or key.endswith(PATH_ENDINGS)


def change_paths(settings: Mapping[str, Any], change: Callable[[str], str | None]) -> dict[str, Any]:
    """The settings of a suite with every path replaced by `change(path)`; None leaves the key out."""
    changed = {key: _change(value, change, key == "prompts") for key, value in settings.items() if key in SECTIONS}
    variants = settings.get("variants")
    if isinstance(variants, Mapping):
        changed["variants"] = {
            name: change_paths(each, change) if isinstance(each, Mapping) else each for name, each in variants.items()
        }
    return {**settings, **changed}


def _change(section: Any, change: Callable[[str], str | None], every: bool) -> Any:
    """A part of the settings with its paths changed; `every`: all of its texts are paths."""
    if not isinstance(section, Mapping):
        return section
    changed: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, str) and (every or is_path_key(str(key)) or _names_config(str(key), value)):
            path = change(value)
            changed |= {} if path is None else {key: path}
        else:
            changed[key] = _change(value, change, every)
    return changed


def _names_config(key: str, value: object) -> bool:
    """Whether `model` names a file; otherwise it is the name of a model."""
    return key == "model" and str(value).endswith(".json")


def path_parameters(params: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of a plug-in that name a file or folder that decides numbers."""
    return {
        key: str(value)
        for key, value in params.items()
        if isinstance(value, str | Path)
        and key not in UNHASHED_PATHS
        and (is_path_key(key) or _names_config(key, value))
    }


def resolve_parameters(params: Mapping[str, Any]) -> dict[str, Any]:
    """A plug-in's parameters with their paths resolved."""
    return {**params, **{key: resolve(name) for key, name in path_parameters(params).items()}}
