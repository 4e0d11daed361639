"""What commands print with `--json`: one document, without NaN, and nothing else on stdout."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.cli import app, main
from bench.cli.command import Command
from bench.cli.output import output_of, print_result, print_written, records


def run_command(execute: Any, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """Exit code of a command with this body."""
    command = Command("try", "try it", lambda parser: None, execute, ("bench try",), json="a document", progress=True)
    monkeypatch.setattr(app, "COMMANDS", (command,))
    return main(["try", *options])


def test_the_document_is_alone_on_stdout_and_has_no_nan(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(args: argparse.Namespace) -> int:
        print("from a library")
        numbers = [float("nan"), np.float32(np.inf), np.int64(3), True]
        print_result(args, "a text", {"numbers": numbers, "path": Path("a/b"), 1: None, "umlaut": "\u00e4"})
        return 1

    assert run_command(execute, monkeypatch, "--json") == 1
    out, err = capsys.readouterr()
    assert json.loads(out, parse_constant=pytest.fail) == {
        "numbers": [None, None, 3, True],
        "path": "a/b",
        "1": None,
        "umlaut": "\u00e4",
    }
    assert err == "from a library\n"
    assert run_command(execute, monkeypatch) == 1
    assert capsys.readouterr().out == "from a library\na text\n"


def test_written_files_are_named_on_stderr_and_in_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    for wanted in (False, True):
        args = argparse.Namespace(json=wanted)
        with output_of(args):
            print_written(args, [Path("a.png"), Path("b.png")])
        out, err = capsys.readouterr()
        assert err == "written: a.png, b.png\n"
        assert (json.loads(out) if wanted else out) == ({"written": ["a.png", "b.png"]} if wanted else "")


def test_lines_of_a_frame_keep_their_digits_and_have_none_for_a_missing_number() -> None:
    frame = pd.DataFrame({"a": [0.1 + 0.2, np.nan], "n": pd.array([1, None], dtype="Int64"), "t": ["x", None]})
    assert records(frame) == [{"a": 0.1 + 0.2, "n": 1, "t": "x"}, {"a": None, "n": None, "t": None}]


def test_every_command_with_a_result_has_json() -> None:
    assert [command.name for command in app.COMMANDS if command.json is None] == ["nano"]
