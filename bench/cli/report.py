"""`bench report`: one HTML page about a suite or a study."""

from __future__ import annotations

import argparse

from bench.cli.command import Command
from bench.cli.output import print_written
from bench.cli.suite_arguments import add_suite_arguments
from bench.cli.suite_records import recorded_suites
from bench.core.errors import BenchError
from bench.core.progress import working


def execute(args: argparse.Namespace) -> int:
    recorded = recorded_suites(args)
    if recorded[0].suite.search is not None:
        name = recorded[0].suite.name
        raise BenchError(f"suite {name} is a search, which has no page: use `bench table` and `bench figures`.")
    from bench.report.data.selection import Selection
    from bench.report.page.page import build_report

    suites = {each.suite.variant: (each.folder, Selection(each.rows, each.suite.seeds)) for each in recorded}
    with working("computing the tables and drawing the figures"):
        path = build_report(recorded[0].study_folder, suites)
    print_written(args, [path])
    return 0


COMMAND = Command(
    name="report",
    help="write the suite's report.html: tables, figures and notes on one page",
    add_arguments=add_suite_arguments,
    execute=execute,
    json="the written file",
    progress=True,
    examples=(
        "bench report nano",
        "bench report results/reference/nano  # a folder in place of the suite: with the settings that it stores",
    ),
)
