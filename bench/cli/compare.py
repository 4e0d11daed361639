"""`bench compare`: two folders of records of one suite."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.cli.command import Command
from bench.cli.output import print_result, records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="folder of records, e.g. results/nano")
    parser.add_argument("b", type=Path, metavar="B", help="folder to compare with, e.g. results/reference/nano")
    parser.add_argument(
        "--open", action="store_true", help="allow other budgets or settings, and print the ledgers of both"
    )
    parser.add_argument("--csv", type=Path, default=None, metavar="FILE", help="also write the numbers to this file")


def execute(args: argparse.Namespace) -> int:
    from bench.report.data.comparison import compare
    from bench.report.tables.comparison import COLUMNS, markdown, write_csv

    comparison = compare(args.a, args.b, args.open)
    unequal = {name: dict(zip("ab", values, strict=True)) for name, values in comparison.unequal.items()}
    document = {"differences": records(comparison.table[list(COLUMNS)]), "unequal_settings": unequal}
    print_result(args, markdown(comparison, args.a, args.b), {**document, "unmatched": comparison.unmatched})
    if args.csv is not None:
        write_csv(comparison, args.csv)
        print(f"written: {args.csv}", file=sys.stderr)
    return 0


COMMAND = Command(
    name="compare",
    help="compare two folders of one suite's records: differences with intervals",
    add_arguments=add_arguments,
    execute=execute,
    json="the differences with their intervals, the settings that differ, and rows without a counterpart",
    examples=(
        "bench compare results/nano results/reference/nano",
        "bench compare results/reference/nano results/reference/nano_pilot/lr3e-4 --open --csv differences.csv",
    ),
)
