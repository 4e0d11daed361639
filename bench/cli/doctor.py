"""`bench doctor`: whether this machine can run a suite, and for how long."""

from __future__ import annotations

import argparse

from bench.cli.command import Command
from bench.cli.consent import add_code_argument
from bench.cli.output import print_result
from bench.cli.suite_arguments import add_suite_arguments, one_suite


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_suite_arguments(parser)
    add_code_argument(parser)


def execute(args: argparse.Namespace) -> int:
    prepared = one_suite(args)
    from bench.audit.doctor import examine

    report = examine(prepared, args.results)
    print_result(args, report.verdict, report.document())
    return 0 if report.go else 1


COMMAND = Command(
    name="doctor",
    help="check in minutes whether this machine can run a suite, and how long it will take",
    add_arguments=add_arguments,
    execute=execute,
    json="the verdict, every check with its result, measured seconds and extrapolated hours",
    progress=True,
    examples=("bench doctor nano", "bench doctor hunyuanvideo15_single_gpu"),
    exit_codes="0 for GO, 1 for NO-GO, 2 for a mistake",
)
