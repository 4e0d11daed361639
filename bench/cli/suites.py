"""`bench suites`: the suites that come with the project."""

from __future__ import annotations

import argparse

from bench.cli.command import Command
from bench.cli.output import print_result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def execute(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    from bench.suite.catalogue import packaged_suites
    from bench.suite.packaged import CONFIGS

    suites = packaged_suites()
    rows = [[each.name, each.scale, each.size, each.description] for each in suites]
    table = tabulate(rows, ["suite", "scale", "rows x seeds", "what it is"], maxcolwidths=[None, None, None, 80])
    text = f"{table}\n\nfiles: {CONFIGS}; take a name in place of a file: bench run nano --dry-run"
    print_result(args, text, [each.facts() for each in suites])
    return 0


COMMAND = Command(
    name="suites",
    help="list the packaged suites, which every command takes by name",
    add_arguments=add_arguments,
    execute=execute,
    json="each suite with its name, file, scale, rows and seeds",
    examples=("bench suites", "bench suites --json"),
)
