"""The page of all places where our code departs from a paper or from its released code.

A departure is a sentence that starts with "Departs:" in a docstring, with its further lines indented.
`make departures` collects them into methods/DEPARTURES.md.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.core.provenance import ROOT

FOLDERS = ("methods", "bench", "evaluators")
PAGE = ROOT / "methods" / "DEPARTURES.md"

HEAD = """# Departures

Where our code departs from a paper or from its released code, and why.
Written by `make departures` from the docstrings; do not edit.
"""


class Departure(NamedTuple):
    file: str
    """Path from the project's root."""
    symbol: str
    """Class, function or field whose docstring says it; empty for the module's."""
    text: str


def _docstrings(node: ast.AST, symbol: str) -> Iterator[tuple[str, str]]:
    """Every docstring below a node, with the name it documents; a string under a field documents that field."""
    above = symbol
    for part in getattr(node, "body", []):
        if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str):
            yield above, part.value.value
        above = symbol
        if isinstance(part, ast.ClassDef | ast.FunctionDef):
            yield from _docstrings(part, f"{symbol}.{part.name}".lstrip("."))
        elif isinstance(part, ast.AnnAssign | ast.Assign):
            target = part.target if isinstance(part, ast.AnnAssign) else part.targets[0]
            above = f"{symbol}.{ast.unparse(target)}".lstrip(".")


def departures(root: Path = ROOT) -> list[Departure]:
    """All departures, in the order of the folders, the files' names and their lines."""
    found = []
    for path in [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]:
        if path == Path(__file__):
            continue
        name = path.relative_to(root).as_posix()
        for symbol, text in _docstrings(ast.parse(path.read_text(encoding="utf-8")), ""):
            for match in re.finditer(r"^Departs: (.*(?:\n +.*)*)", inspect.cleandoc(text), re.MULTILINE):
                found.append(Departure(name, symbol, " ".join(match[1].split())))
    return found


def page(root: Path = ROOT) -> str:
    """The page, with a heading per file."""
    lines, file = [HEAD.rstrip()], ""
    for departure in departures(root):
        if departure.file != file:
            file = departure.file
            lines += ["", f"## [{file}](../{file})", ""]
        lines.append(f"- {f'`{departure.symbol}`: ' if departure.symbol else ''}{departure.text}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}", file=sys.stderr)
