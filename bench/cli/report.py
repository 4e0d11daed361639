"""`bench report`: one HTML page about a suite or a study."""

from __future__ import annotations

import argparse
import sys

from bench.cli.command import Command
from bench.cli.suite_arguments import add_suite_arguments
from bench.cli.suite_records import recorded_suites


def execute(args: argparse.Namespace) -> int:
    from bench.report.data.selection import Selection
    from bench.report.page.page import build_report

    recorded = recorded_suites(args)
    suites = {each.suite.variant: (each.folder, Selection(each.rows, each.suite.seeds)) for each in recorded}
    print(f"written: {build_report(recorded[0].study_folder, suites)}", file=sys.stderr)
    return 0


COMMAND = Command(
    name="report",
    help="write the suite's report.html: tables, figures and notes on one page",
    add_arguments=add_suite_arguments,
    execute=execute,
    examples=(
        "bench report bench/configs/nano.yaml",
        "bench report bench/configs/nano.yaml seeds='[0,1,2,3,4]' --results results/reference",
    ),
)
