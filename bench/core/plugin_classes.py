"""Whether a class can be a plug-in, by its source, which is read without running it."""

from __future__ import annotations

import ast
import sys

from bench.core.errors import BenchError
from bench.core.plugin_sources import module_file
from bench.core.provenance import parse_python, read_python


def refuse_by_source(module: str, name: str, needs_base: bool) -> str | None:
    """Why `module:name` cannot be a plug-in, as far as its source shows it; None if it may be one.

    `needs_base`: the class must be derived from another one. What a module takes from elsewhere is not followed.
    """
    if module.split(".")[0] in sys.stdlib_module_names:
        return f"{module} is a module of Python itself"
    path = module_file(module)
    if path is None or path.suffix != ".py":
        return None
    try:
        tree = parse_python(path, read_python(path))
    except BenchError:  # importing it says what is wrong, with the line
        return None
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            return f"class {name} of {path} is derived from no class" if needs_base and not statement.bases else None
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and statement.name == name:
            return f"{name} of {path} is a function, not a class"
    names = {word for node in ast.walk(tree) for word in _names(node)}
    return None if names & {name, *DYNAMIC} else f"module {module} has no class {name!r}"


DYNAMIC = ("*", "__getattr__", "globals", "exec", "setattr")
"""Names in a module that may get classes which its source does not show."""


def _names(node: ast.AST) -> list[str]:
    """Names that occur in one node of a module's syntax tree."""
    if isinstance(node, ast.alias):
        return [(node.asname or node.name).split(".")[0]]
    if isinstance(node, ast.Name):
        return [node.id]
    return [node.name] if isinstance(node, ast.ClassDef | ast.FunctionDef) else []
