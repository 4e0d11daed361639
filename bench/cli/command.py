"""What a command of the command line consists of; each module of a command defines one `COMMAND`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """One command: help line, options, body and examples.

    Modules of commands import nothing heavy (torch, pandas, pydantic) at their top, so that `bench --help` is fast;
    the bodies do.
    """

    name: str
    """The word after `bench`."""
    help: str
    """One line, shown by `bench --help`."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    """Adds the options and arguments to the command's parser."""
    execute: Callable[[argparse.Namespace], int]
    """The body: parsed arguments in, exit code out. A `BenchError` becomes exit code 2."""
    examples: tuple[str, ...]
    """Complete command lines, each with a comment if needed; shown by `bench NAME --help`."""
    exit_codes: str | None = None
    """What each exit code means, where 1 is possible; shown by `bench NAME --help`."""
    json: str | None = None
    """What the document of `--json` contains; None for a command without a result to print."""
    progress: bool = False
    """Whether the command takes long enough to show progress, so that it has `--quiet`."""
    interrupted: str = "run the same command again"
    """What is kept after Ctrl-C, and how to continue."""

    def add_to(self, commands: argparse._SubParsersAction[Any]) -> None:
        """Add the command's parser to those of `bench`."""
        parser = commands.add_parser(
            self.name,
            help=self.help,
            description=f"{self.help[0].upper()}{self.help[1:]}.",
            epilog=self._epilog(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.example = self.examples[0]
        self.add_arguments(parser)
        if self.json is not None:
            parser.add_argument("--json", action="store_true", help=f"print one JSON document: {self.json}")
        if self.progress:
            parser.add_argument(
                "--quiet", action="store_true", help="show no progress, only results, warnings and errors"
            )

    def _epilog(self) -> str:
        codes = "" if self.exit_codes is None else f"exit code: {self.exit_codes}\n\n"
        return codes + "\n".join(["examples:", *(f"  {example}" for example in self.examples)])
