"""Import of a plug-in's module: from the installed packages, and from the current folder."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from bench.core.errors import BenchError
from bench.core.extras import missing_extra
from bench.core.plugin_sources import module_file

PACKAGES = ("methods", "evaluators")
"""Packages of the project whose names a user's own folder may have too."""


def import_plugin(module_name: str, plugin: str, is_entry_point: bool) -> ModuleType:
    """The module; `plugin` names the plug-in in messages.

    A folder `methods` or `evaluators` in the current folder extends the project's package of that name. A module that
    cannot be found is a `BenchError`; one that an extra of this project brings is left to the command line.
    """
    folder = _search(module_name, is_entry_point)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as cause:
        if missing_extra(cause):
            raise
        raise BenchError(f"{plugin}: {_missing(module_name, cause)}") from cause
    if folder is not None:
        _refuse_hidden(module, folder.joinpath(*module_name.split(".")[1:]), plugin)
    return module


def check_module(module_name: str, plugin: str, is_entry_point: bool) -> None:
    """Raise a `BenchError` if there is no such module; it is not imported."""
    _search(module_name, is_entry_point)
    if module_name not in sys.modules and module_file(module_name) is None:
        raise BenchError(
            f"{plugin}: module {module_name!r} cannot be imported; "
            "run from the folder that contains it, or install it."
        )


def _search(module_name: str, is_entry_point: bool) -> Path | None:
    """Let modules be found in the current folder; the user's folder `methods` or `evaluators`, if meant."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # "module:Class" may be a file beside the suite
    package = module_name.partition(".")[0]
    folder = Path.cwd() / package
    if package not in PACKAGES or is_entry_point or not folder.is_dir():
        return None
    _extend(package, folder)
    return folder


def _extend(package: str, folder: Path) -> None:
    """Let the project's package also find the modules of the user's folder of that name; its own come first."""
    path = importlib.import_module(package).__path__
    if str(folder) not in path:
        path.append(str(folder))


def _missing(module_name: str, cause: ModuleNotFoundError) -> str:
    """What cannot be imported: the plug-in's module, or a module that some file imports."""
    if f"{module_name}.".startswith(f"{cause.name}."):
        return f"module {cause.name!r} cannot be imported; run from the folder that contains it, or install it."
    frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if "importlib" not in frame.filename]
    return f"{frames[-1].filename}, line {frames[-1].lineno}, imports {cause.name!r}, which is missing; install it."


def _refuse_hidden(module: ModuleType, own: Path, plugin: str) -> None:
    """Refuse a module of the project if the user's folder has one of the same name, which it would hide."""
    for path in (own.with_name(f"{own.name}.py"), own / "__init__.py"):
        if path.is_file() and module.__file__ and not path.samefile(module.__file__):
            raise BenchError(
                f"{plugin}: {path} has the name of a module of this project, {module.__name__}, and is hidden by it; "
                "rename the file."
            )
