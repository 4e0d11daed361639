"""The source files of a plug-in: its module, and what that imports beside it. Nothing is imported to find them."""

from __future__ import annotations

import ast
import functools
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from bench.core.hashing import digest, sha256_file
from bench.core.provenance import ROOT, code_without_comments, parse_python, read_python

HARNESS = "bench"
"""The package of the harness, whose files the source digest covers; imports of it are not followed."""
PLUGIN_PACKAGES = ("methods", "evaluators")
"""Packages of the project's own plug-ins, from which a class may be derived anywhere."""
_INSTALLED = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
"""Folders of installed packages; those count by their versions."""


def entry_points(group: str) -> dict[str, str]:
    """Name to "module:Class" of one group, such as "methods", sorted."""
    return dict(_entry_points(group, tuple(sys.path)))


@functools.cache
def _entry_points(group: str, places: tuple[str, ...]) -> dict[str, str]:
    """The same, read once: `places` is the path on which packages are found."""
    points = sorted(metadata.entry_points(group=f"bench.{group}"), key=lambda point: point.name)
    return {point.name: point.value for point in points}


def plugin_digests(group: str, name: str) -> dict[str, str]:
    """File of a plug-in (see `plugin_files`) to the digest of its code without comments and docstrings."""
    return {key: _code_digest(path) for key, path in sorted(plugin_files(group, name).items())}


def plugin_files(group: str, name: str) -> dict[str, Path]:
    """The files of a plug-in that is an entry point or "module:Class"; {} if it is not found.

    They are the file of its module and the files that this imports, directly or through others, if they lie below the
    folder of the plug-in's top-level package or module, or belong to the project's own plug-ins. Each is named by its
    path relative to that folder. Imports inside functions count; imports by a computed name are not seen.
    """
    module = entry_points(group).get(name, name).partition(":")[0]
    start = module_file(module)
    if start is None:
        return {}
    tree = _Tree(module.split(".")[0], start.parents[module.count(".") + (start.name == "__init__.py")])
    files: dict[str, Path] = {}
    waiting = [(tree.folder, start), *tree.files(module)]
    while waiting:
        folder, path = waiting.pop()
        key = path.relative_to(folder).as_posix()
        if key not in files:
            files[key] = path
            for imported in _imports(path, read_python(path), key) if path.suffix == ".py" else ():
                waiting += tree.files(imported)
    return files


@dataclass(frozen=True)
class _Tree:
    """Where the modules that count for a plug-in are."""

    top: str
    """The plug-in's top-level package or module."""
    folder: Path
    """The folder that contains it."""

    def files(self, name: str) -> list[tuple[Path, Path]]:
        """Folder and file of a module and of the packages around it; [] if they do not count for the plug-in.

        The last parts of `name` may be names in the module.
        """
        top, *rest = name.split(".")
        folders = [ROOT] if top in PLUGIN_PACKAGES else []
        if top == self.top or str(self.folder) not in _INSTALLED:
            folders.insert(0, self.folder)
        for folder in folders if top != HARNESS else ():
            paths = [folder.joinpath(top, *rest[:length]) for length in range(len(rest) + 1)]
            files = [(folder, file) for path in paths for file in _candidates(path) if file.is_file()]
            if files:
                return files
        return []


def _code_digest(path: Path) -> str:
    return digest(code_without_comments(path)) if path.suffix == ".py" else sha256_file(path)


def _candidates(path: Path) -> tuple[Path, Path]:
    """The file of a module, which may be a package."""
    return path / "__init__.py", path.with_name(f"{path.name}.py")


def module_file(module: str) -> Path | None:
    """The file of a module; None if it is not found or has no file."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is not None:
        return Path(file).absolute()
    top, *rest = module.split(".")
    for spec in (util.find_spec(top), PathFinder.find_spec(top, [os.getcwd()])):
        for path in _places(spec, rest) if spec is not None else ():
            if path.is_file():
                return path.absolute()
    return None


def _places(spec: ModuleSpec, rest: Sequence[str]) -> Iterator[Path]:
    """Where the file of a module below a top-level package or module may be."""
    if spec.origin is not None and not rest:
        yield Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        yield from _candidates(Path(folder, *rest))


@functools.cache
def _imports(path: Path, text: str, key: str) -> tuple[str, ...]:
    """Dotted names that a file with this text imports; of `from a import b`, a.b.

    `key` is its path from the top-level folder.
    """
    package, names = key.split("/")[:-1], list[str]()
    for node in ast.walk(parse_python(path, text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            around = package[: len(package) - node.level + 1] if node.level else []
            names += [".".join([*around, *filter(None, [node.module]), alias.name]) for alias in node.names]
    return tuple(names)
