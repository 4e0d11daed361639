"""`bench compare`: two folders of records of one suite."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.cli.command import Command
from bench.cli.output import print_result, records
from bench.core.errors import BenchError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="folder of records, e.g. results/nano")
    parser.add_argument("b", type=Path, metavar="B", help="folder to compare with, e.g. results/reference/nano")
    parser.add_argument(
        "--open", action="store_true", help="allow other budgets or settings, and print the ledgers of both"
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="A=B",
        help="compare these rows, by their labels in A and in B (default: rows with equal settings)",
    )
    parser.add_argument("--csv", type=Path, default=None, metavar="FILE", help="also write the numbers to this file")


def execute(args: argparse.Namespace) -> int:
    from bench.report.data.comparison import compare
    from bench.report.tables.comparison import COLUMNS, markdown, write_csv

    rows = None if args.rows is None else [_pair(word) for word in args.rows]
    comparison = compare(args.a, args.b, args.open, rows)
    unequal = {name: dict(zip("ab", values, strict=True)) for name, values in comparison.unequal.items()}
    document = {"differences": records(comparison.table[list(COLUMNS)]), "unequal_settings": unequal}
    print_result(args, markdown(comparison, args.a, args.b), {**document, "unmatched": comparison.unmatched})
    if args.csv is not None:
        write_csv(comparison, args.csv)
        print(f"written: {args.csv}", file=sys.stderr)
    return 0


def _pair(word: str) -> tuple[str, str]:
    """The two labels of one word of `--rows`."""
    a, _, b = word.partition("=")
    if not (a and b):
        raise BenchError(f"--rows takes A=B, got {word!r}: write for example sage_grpo-tuned=sage_grpo-dual.")
    return a, b


COMMAND = Command(
    name="compare",
    help="compare two folders of one suite's records: differences with intervals",
    add_arguments=add_arguments,
    execute=execute,
    json="the differences with their intervals, the settings that differ, and rows without a counterpart",
    examples=(
        "bench compare results/nano results/reference/nano",
        "bench compare results/reference/nano results/reference/nano_pilot/lr3e-4 --open --csv differences.csv",
        "bench compare results/nano_tuned results/nano --open --rows sage_grpo-tuned=sage_grpo-dual",
    ),
)
