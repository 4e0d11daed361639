"""`bench verify`: stored records and tables against each other."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.cli.command import Command
from bench.cli.output import print_result
from bench.cli.suite_arguments import RESULTS
from bench.core.progress import working


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="FOLDER",
        help="folder of records (default: results/ below the current folder)",
    )


def execute(args: argparse.Namespace) -> int:
    with working("loading the checks"):
        from bench.audit.verify import verify

    report = verify(args.folders or [RESULTS])
    document = {
        "runs": report.runs,
        "suites": report.suites,
        "tables": report.tables,
        "wrong": report.wrong,
        "findings": [{"path": each.path, "text": each.text, "wrong": each.wrong} for each in report.findings],
    }
    print_result(args, report.text, document)
    return 1 if report.wrong else 0


COMMAND = Command(
    name="verify",
    help="check stored records and tables: one line per finding",
    add_arguments=add_arguments,
    execute=execute,
    json="the findings, and counts of runs, suites, tables and of what is wrong",
    progress=True,
    examples=(
        "bench verify",
        "bench verify results/reference/nano results/reference/nano_kl",
    ),
    exit_codes="0 if all is well, 1 if something is wrong, 2 for a mistake; figures and weights are not checked",
)
