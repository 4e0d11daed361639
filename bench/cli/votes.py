"""`bench votes`: the user study of a report, from the files that its raters exported."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.cli.command import Command
from bench.cli.output import print_result, records
from bench.cli.suite_arguments import RESULTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="votes-*.csv as the report saves them")
    parser.add_argument(
        "--suite",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="records that the votes are checked against, e.g. results/nano (default: the suite's folder below "
        "results/; without one the votes are only counted)",
    )


def execute(args: argparse.Namespace) -> int:
    from bench.report.data.votes import read_votes
    from bench.report.tables.user_study import load_user_study
    from bench.report.tables.votes import user_study_text, write_user_study

    votes = read_votes(args.files)
    usual = RESULTS / votes.suite
    folder = args.suite or (usual if usual.is_dir() else None)
    study = load_user_study(votes, folder)
    document = {
        "shares": records(study.table),
        "checks": records(study.checks),
        "raters": records(study.raters),
        "without_votes": study.without_votes,
    }
    written = write_user_study(study, folder) if folder is not None else {}
    print_result(args, user_study_text(study), {**document, "written": list(map(str, written.values()))})
    if written:
        print(f"written: {', '.join(map(str, written.values()))}", file=sys.stderr)
    return 0


COMMAND = Command(
    name="votes",
    help="count the votes of a report's blind vote: shares won with intervals, strengths, checks of the raters",
    add_arguments=add_arguments,
    execute=execute,
    json="shares and strengths with their intervals, the checks, the raters, and the files written",
    examples=(
        "bench votes votes-nano-*.csv",
        "bench votes votes-nano-anna.csv votes-nano-ben.csv --suite results/nano",
    ),
)
