"""`bench audit`: the importance ratio before the first update."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.cli.command import Command
from bench.cli.consent import add_code_argument
from bench.cli.output import print_result
from bench.cli.suite_arguments import add_suite_arguments, prepare_suites


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_suite_arguments(parser)
    add_code_argument(parser)
    parser.add_argument("--row", nargs="+", action="extend", default=[], metavar="LABEL", help="rows (default: all)")
    parser.add_argument(
        "--policy", type=Path, default=None, metavar="RUN", help="folder of a finished run whose policy is used"
    )


def execute(args: argparse.Namespace) -> int:
    suites = prepare_suites(args)
    from bench.audit.ratio import audit_suite, write_audit
    from bench.audit.ratio_page import ratio_page
    from bench.core.process_state import fix_process_state

    fix_process_state()  # as in a run
    audits = [audit_suite(prepared, args.row, args.policy) for prepared in suites]
    written = [write_audit(each, args.results) for each in audits]
    print_result(args, "\n\n".join(map(ratio_page, audits)), audits)
    print("written: " + ", ".join(map(str, written)), file=sys.stderr)
    return 0 if all(each["passed"] for each in audits) else 1


COMMAND = Command(
    name="audit",
    help="check that the ratio is 1 before the first update, and measure what would change it",
    add_arguments=add_arguments,
    execute=execute,
    json="a list with the audit of each suite, as in audit.json",
    progress=True,
    examples=(
        "bench audit nano",
        "bench audit nano --row cps-fixed sage_grpo-dual",
        "bench audit nano --policy results/nano/cps-fixed/seed-0",
    ),
    exit_codes="0 if every row's ratio is 1 within the tolerance, 1 if one is not, 2 for a mistake",
)
