"""`bench suites`: the suites that come with the project."""

from __future__ import annotations

import argparse
import json

from bench.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


def execute(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    from bench.suite.catalogue import packaged_suites
    from bench.suite.packaged import CONFIGS

    suites = packaged_suites()
    if args.json:
        print(json.dumps([each.facts() for each in suites], indent=1))
        return 0
    rows = [[each.name, each.scale, each.size, each.description] for each in suites]
    print(tabulate(rows, ["suite", "scale", "rows x seeds", "what it is"], maxcolwidths=[None, None, None, 80]))
    print(f"\nfiles: {CONFIGS}; take a name in place of a file: bench run nano --dry-run")
    return 0


COMMAND = Command(
    name="suites",
    help="list the packaged suites, which every command takes by name",
    add_arguments=add_arguments,
    execute=execute,
    examples=("bench suites", "bench suites --json"),
)
