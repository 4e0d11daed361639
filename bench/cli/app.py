"""The command line: the list of commands, the parser, and exit codes.

Exit code 0 if all is well, 1 where a command defines it, 2 for a mistake that the user can fix, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from bench import __version__
from bench.cli import (
    assets,
    audit,
    check,
    compare,
    doctor,
    encode,
    evaluate,
    export,
    figures,
    gallery,
    nano,
    plan,
    replay,
    report,
    run,
    score,
    sde_study,
    suites,
    table,
    verify,
    votes,
)
from bench.cli.command import Command
from bench.cli.output import output_of
from bench.cli.parser import SHELLS, CommandParser, PrintCompletion
from bench.core.errors import BenchError, plugin_error
from bench.core.extras import missing_extra
from bench.core.progress import set_quiet

COMMANDS: tuple[Command, ...] = (
    run.COMMAND,
    plan.COMMAND,
    doctor.COMMAND,
    table.COMMAND,
    figures.COMMAND,
    compare.COMMAND,
    votes.COMMAND,
    report.COMMAND,
    verify.COMMAND,
    check.COMMAND,
    audit.COMMAND,
    replay.COMMAND,
    gallery.COMMAND,
    score.COMMAND,
    suites.COMMAND,
    assets.COMMAND,
    sde_study.COMMAND,
    evaluate.COMMAND,
    encode.COMMAND,
    export.COMMAND,
    nano.COMMAND,
)
"""Every command, in the order of `bench --help`."""


def parser() -> CommandParser:
    """The parser of all commands; the documentation's command reference is made from it."""
    bench = CommandParser(
        prog="bench",
        description="Compare GRPO variants on video generators under one budget, with equal seeds and error bars.",
    )
    bench.add_argument("--version", action="version", version=__version__)
    bench.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=SHELLS,
        metavar="SHELL",
        help=f"print the script that completes commands, options and files in a shell: {', '.join(SHELLS)}",
    )
    commands = bench.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return bench


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments; overrides may stand before and after options."""
    bench = parser()
    args, rest = bench.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    overrides = hasattr(args, "overrides")
    if rest and (unknown or not overrides):
        bench.commands()[args.command].refuse(unknown or rest, overrides)
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded without the user's knowledge
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    args = parse(argv)
    command = next(command for command in COMMANDS if command.name == args.command)
    set_quiet(getattr(args, "quiet", False))
    try:
        with output_of(args):
            code = command.execute(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except BenchError as error:
        print(f"bench {command.name}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        sentence = missing_extra(error)
        if sentence is None:
            raise
        print(f"bench {command.name}: {sentence}", file=sys.stderr)
        return 2
    except Exception as error:
        sentence = plugin_error(error)
        if sentence is None:  # a bug of this project
            raise
        print(f"bench {command.name}: {sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {command.interrupted}", file=sys.stderr)
        return 130
    return code
