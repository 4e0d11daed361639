"""The parser of the command line: messages that name the fix, and completion for shells."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

SHELLS = ("bash", "zsh", "tcsh")
"""Shells for which `--print-completion` writes a script."""


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors show the usage of the command and an example."""

    example: str | None = None
    """A complete command line."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        example = "" if self.example is None else f"example: {self.example}\n"
        self.exit(2, f"{self.prog}: error: {message}\n{example}")

    def commands(self) -> dict[str, CommandParser]:
        """Name to parser of every command."""
        (action,) = (each for each in self._actions if isinstance(each, argparse._SubParsersAction))
        return dict(action.choices)

    def refuse(self, unknown: Sequence[str], overrides: bool) -> NoReturn:
        """The error about arguments that the command does not have. `overrides`: whether it takes key=value."""
        message = f"unrecognized arguments: {' '.join(unknown)}"
        options = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], options, 1)
        if near:
            message += f"; did you mean {near[0]}?"
        elif overrides:
            message += "; settings of the suite are written without dashes, such as budget.updates=10"
        self.error(message)


class PrintCompletion(argparse.Action):
    """`--print-completion SHELL`: print the script that completes commands, options and files."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        import shtab

        assert isinstance(parser, CommandParser)
        for command in parser.commands().values():
            for action in command._actions:
                if action.type is Path:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, values))
        parser.exit()
