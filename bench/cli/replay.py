"""`bench replay`: repeat a recorded run and compare every number."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from bench.cli.command import Command
from bench.cli.consent import add_code_argument, check_consent
from bench.cli.output import print_result
from bench.core.errors import BenchError
from bench.core.progress import working


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of the run, e.g. results/nano/cps-fixed/seed-0")
    add_code_argument(parser)
    parser.add_argument(
        "--updates", type=int, default=None, metavar="N", help="only the first N updates, without the evaluation"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder of the second run (default: a temporary one)")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, metavar="X", help="largest allowed difference of a number (default: 0)"
    )


def execute(args: argparse.Namespace) -> int:
    from bench import store
    from bench.core.provenance import check_not_installed
    from bench.suite.recorded import suite_of_record

    if not 0 <= args.tolerance < math.inf:
        raise BenchError(f"--tolerance is {args.tolerance}: give a finite number of at least 0.")
    suite = suite_of_record(args.run, store.read_record(args.run))  # for its errors, before torch is imported
    check_consent(args.run, [suite], args.allow_code)
    check_not_installed(args.run, "replay a copy of it")
    with working("loading torch"):
        from bench.audit.replay import replay, replay_document, replay_page, write_verdict
        from bench.core.process_state import fix_process_state
    fix_process_state()  # as in a run
    verdict = replay(args.run, args.updates, args.out)
    print_result(args, replay_page(verdict, args.tolerance), replay_document(verdict, args.tolerance))
    if verdict.whole:
        print(f"written: {write_verdict(verdict)}", file=sys.stderr)
    return 0 if verdict.largest <= args.tolerance else 1


COMMAND = Command(
    name="replay",
    help="repeat a recorded run: equal bits, or the first difference",
    add_arguments=add_arguments,
    execute=execute,
    json="whether all numbers are equal, the largest difference, and what else differs",
    progress=True,
    examples=(
        "bench replay results/reference/nano/cps-fixed/seed-0",
        "bench replay results/nano/cps-fixed/seed-0 --updates 2",
        "bench replay results/nano/cps-fixed/seed-0 --out again --tolerance 1e-6",
    ),
    exit_codes="0 for equal bits or differences within --tolerance, 1 for larger differences, 2 for a mistake",
    interrupted="with --out the same command continues from the last checkpoint, without it nothing is kept",
)
