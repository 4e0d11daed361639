"""What a command prints on stdout: a text, or with `--json` one JSON document and nothing else."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def output_of(args: argparse.Namespace) -> contextlib.AbstractContextManager[Any]:
    """The context in which a command runs: with `--json`, stdout is kept for `print_result`; all else is on stderr."""
    args.stdout = sys.stdout
    return contextlib.redirect_stdout(sys.stderr) if getattr(args, "json", False) else contextlib.nullcontext()


def print_result(args: argparse.Namespace, text: str, document: Any) -> None:
    """Print the result of a command: its text (nothing if it is empty), or with `--json` the document."""
    if args.json:
        text = json.dumps(_finite(document), indent=1, ensure_ascii=False, allow_nan=False)
    if text:
        print(text, file=args.stdout)


def print_written(args: argparse.Namespace, paths: Iterable[Path]) -> None:
    """Name the files that a command has written, on stderr, and with `--json` as the document."""
    files = [str(path) for path in paths]
    print(f"written: {', '.join(files)}", file=sys.stderr)
    print_result(args, "", {"written": files})


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One mapping of column to value per line of a data frame; a missing number is None."""
    lines = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(column): value for column, value in line.items()} for line in lines]


def _finite(value: Any) -> Any:
    """The value in JSON's types, with null for NaN and infinity, which JSON does not have."""
    from bench.core.hashing import plain

    value = plain(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
